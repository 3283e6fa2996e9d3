"""Shared memory of the backward kernels, from their configurations alone.

Two tiles stay (K and V for dK and dV; Q and dO for dQ), two move with each step; dK's kernel reads
two numbers a query beside them.  Read off what Triton 3.7 allocates, by the unit that multiplies:

=========  ========================================  ==========================================
unit       where                                     what lies in shared memory
=========  ========================================  ==========================================
FMA        float32                                   what stays, each step in flight, dS
mma        sm_8x and sm_12x, and where fewer than    what stays (from descriptors: not past the
           64 rows stay                              first loads), each step in flight, dS unless
                                                     each warp holds whole rows
wgmma      sm_90, from 64 rows on                    what stays, and each step once more than
                                                     are in flight
tcgen05    sm_100, likewise                          likewise, and what the next product reads:
                                                     Q and dO, or K, tails with their heads
=========  ========================================  ==========================================
"""

from __future__ import annotations

from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import ITEM_BYTES, Config, head_parts
from kdsl.kernels.attention.shared import BARRIERS, PADDING, table_bytes
from kdsl.specs import Attention
from kdsl.targets import Target


def shared_bytes(spec: Attention, config: Config, part: Part, target: Target) -> int:
    """Bytes that a block asks for: never below the compiler's figure, at most 10 % above."""
    item, d = ITEM_BYTES[spec.dtype], spec.head_dim
    first, tail = head_parts(d)
    stay, move = config.block_m, config.block_n
    if part == "keys":
        stay, move = move, stay
    stages, described = config.num_stages, config.loads == "descriptor"
    kept, step = 2 * stay * d * item, 2 * move * d * item
    vectors = 8 * move if part == "keys" else 0
    if spec.dtype == "float32":
        # With one stage dS of dQ's kernel takes the place of what was read.
        scores = stay * move * item if part == "keys" or stages > 1 else 0
        held = kept + max(stages - 1, 1) * step + (stages - 1) * vectors + scores
    elif stay < 64 or target.capability[0] not in (9, 10):
        split = (not tail and stay < d) or (stay == 16 and not described)
        p = stay * move * item if split else 0
        # The two numbers of a query change hands where a tile has few.
        again = 512 if vectors and move == 16 else 0
        held = (stages - 1) * (step + vectors) + p + again
        if described and part == "queries":
            held = max(held, stay * first * item) + BARRIERS
        else:
            held += kept + (BARRIERS if described else 0)
    else:
        held = kept + stages * step + (PADDING if described else 0)
        held += (stages - 1) * vectors + (max(vectors, 512) if vectors else 0)
        if target.capability[0] == 10:
            again = move * (d + (first if tail else 0)) * item
            held += PADDING + 4 * BARRIERS + again * (2 if part == "keys" else 1)
    return held + table_bytes(spec, config, "q" if part == "keys" else "k")
