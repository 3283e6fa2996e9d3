"""Shared memory of the backward kernels, from their configurations alone.

Read off what Triton 3.7 allocates; the units are those of the forward's table (`..shared`).  Two
tiles stay (K and V, or Q and dO), two move with each step, and dK's kernel reads two numbers a
query beside them.

=======  ===========================================================================================
unit     beside the tiles that stay
=======  ===========================================================================================
FMA      P and dS
mma      the tiles in flight, P or dS unless each warp holds whole rows
wgmma    the tiles in flight and those in use
tcgen05  likewise, and what the products leave
=======  ===========================================================================================
"""

from __future__ import annotations

from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import ITEM_BYTES, Config, head_parts
from kdsl.kernels.attention.shared import BARRIERS, PADDING, table_bytes, unit_of
from kdsl.specs import Attention
from kdsl.targets import Target


def shared_bytes(spec: Attention, config: Config, part: Part, target: Target) -> int:
    """Bytes that a block asks for: never below the compiler's figure, at most 10 % above."""
    item, d = ITEM_BYTES[spec.dtype], spec.head_dim
    stay, move = config.block_m, config.block_n
    if part == "keys":
        stay, move = move, stay
    kept, moving, scores = (2 * n * d * item for n in (stay, move)), 0, 0
    del kept, moving, scores
    resident, step = 2 * stay * d * item, 2 * move * d * item
    pairs = stay * move * item
    vectors = 8 * move * (config.num_stages - 1) if part == "keys" else 0
    _, tail = head_parts(d)
    flight = max(config.num_stages - 1, 1) * step
    described = config.loads == "descriptor"
    unit = unit_of(spec, config, target)
    if unit == "mma":
        p = pairs if stay == 16 or (not tail and stay < d) else 0
        held = resident + flight + p + vectors + (BARRIERS if described else 0)
    elif unit == "wgmma":
        held = resident + config.num_stages * step + vectors + (PADDING if described else 0)
    else:
        held = resident + config.num_stages * step + vectors + PADDING
    return held + table_bytes(spec, config)
