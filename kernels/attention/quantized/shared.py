"""Shared memory of the quantized template, from its configuration alone.

As for 16-bit attention (`kdsl.kernels.attention.shared`), with tiles of other sizes: Q and K take a
byte an entry, V and P one or two.
"""

from __future__ import annotations

from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.shared import PADDING, table_bytes
from kdsl.layouts.attention import SUMMED
from kdsl.layouts.groups import Lanes
from kdsl.specs import Attention
from kdsl.targets import Target


def shared_bytes(spec: Attention, config: Config, target: Target) -> int:
    """Bytes that a block asks for: never below the compiler's figure, at most 10 % above."""
    layout = spec.layout
    assert layout is not None
    m, n, stages = config.block_m, config.block_n, config.num_stages
    first, tail = head_parts(spec.head_dim)
    item = 2 if layout.weights is None else 1
    q, k, v = m * spec.head_dim, n * spec.head_dim, n * spec.head_dim * item
    if warpgroups(config, target):
        held = q + stages * (k + v) + PADDING
    else:
        # Rows split over warps for one product and columns for the other: P changes hands.
        # Once for each part of the output that is wider than the tile has rows.
        moves = 2 * (m < tail) if tail > 32 else int(m == 16 or (not tail and m < spec.head_dim))
        # Maxima of rows that several warps share, and their factors.
        held = q + (stages - 1) * (k + v) + moves * m * n * item + 4 * m
    if layout.weights == "uint8":
        held += 2 * spec.head_dim * (n // SUMMED) * (stages - 1)
    held += table_bytes(spec, config) + _scales(layout.k.group, config)
    # The output changes hands on its way out.
    return max(held, 2 * m * first)


def warpgroups(config: Config, target: Target) -> bool:
    """Whether warpgroups multiply tiles, straight from shared memory."""
    return target.capability[0] == 9 and config.block_m >= 64


def _scales(group: tuple[int | None, int | None] | Lanes, config: Config) -> int:
    """Scales of keys that are loaded ahead: one a step, or one a key."""
    one = not isinstance(group, Lanes) and (group[0] or config.block_n) % config.block_n == 0
    return max(16, 4 * (1 if one else config.block_n) * (config.num_stages - 1))
