"""Shared memory of the attention template, from its configuration alone.

What the compiler allocates depends on the unit that multiplies.  Read off the binaries of Triton
3.7, by a sample of the space in each run of the tests and by all of it at night:

=========  =======================================  =============================================
unit       where                                    what lies in shared memory
=========  =======================================  =============================================
FMA        float32                                  Q, P, K and V of each step in flight, a row
mma        sm_8x and sm_12x, and tiles of fewer     Q (descriptors: not past the first loads), K
           than 64 queries everywhere               and V, P unless each warp holds whole rows
wgmma      sm_90, from 64 queries on                Q, K and V once more than are in flight
tcgen05    sm_100, likewise                         Q, K and V likewise, a piece of O
=========  =======================================  =============================================

With ``num_stages`` 1 nothing is in flight: K and V take turns in one place, and so do the scores
where a mask reads a table by key and each thread holds an entry of it, for then they change hands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdsl.expr.nodes import Expr
from kdsl.kernels.attention.config import ITEM_BYTES, Config, head_parts, table_dtype
from kdsl.kernels.attention.tables import masks
from kdsl.specs import Attention
from kdsl.targets import Target

BARRIERS = 128
"""Barriers of descriptor loads, 8 bytes a stage and part."""
PADDING = 1024
"""What a tile that a descriptor fills is aligned to."""


@dataclass(frozen=True)
class Tiles:
    """Bytes of the tiles of one step."""

    q: int
    kv: int
    """Of K, and of V."""
    p: int


Unit = Literal["fma", "mma", "wgmma", "tcgen05"]


def unit_of(spec: Attention, config: Config, target: Target) -> Unit:
    """What multiplies the tiles."""
    if spec.dtype == "float32":
        return "fma"
    if config.block_m < 64 or target.capability[0] not in (9, 10):
        return "mma"
    return "wgmma" if target.capability[0] == 9 else "tcgen05"


def shared_bytes(spec: Attention, config: Config, target: Target) -> int:
    """Bytes that a block asks for: never below the compiler's figure, at most 10 % above."""
    item = ITEM_BYTES[spec.dtype]
    m, n, stages = config.block_m, config.block_n, config.num_stages
    tiles = Tiles(m * spec.head_dim * item, n * spec.head_dim * item, m * n * item)
    unit = unit_of(spec, config, target)
    scores = _moved_scores(spec, config, unit)
    if unit == "fma":
        row = max(m, 32) * 4 if stages > 1 else 0
        held = tiles.q + _in_flight(stages) * tiles.kv + tiles.p + row
    elif unit == "mma":
        held = _mma(spec, config, tiles, scores)
    elif unit == "wgmma":
        padding = PADDING if config.loads == "descriptor" else 0
        held = tiles.q + max((2 * stages if stages > 1 else 1) * tiles.kv, scores) + padding
    elif stages == 1 and scores:
        held = tiles.q + max(tiles.kv + tiles.p, scores)
    elif stages == 1:
        held = tiles.q + tiles.kv + (4096 if m == 128 and config.num_warps == 8 else 1024)
    else:
        by_query = sum(bool(n.variables() & {"q", "qs"}) for n in _look_ups(spec))
        held = tiles.q + 2 * stages * tiles.kv + PADDING + 6 * BARRIERS + 4 * m * by_query
    return held + table_bytes(spec, config)


def _mma(spec: Attention, config: Config, tiles: Tiles, scores: int) -> int:
    first, tail = head_parts(spec.head_dim)
    m, stages = config.block_m, config.num_stages
    # Rows split over warps for one product and columns for the other: P changes hands.
    p = tiles.p if (m == 16 and stages > 1) or (not tail and m < spec.head_dim) else 0
    if tail > 32 and m < tail:
        p += tiles.p
    # Maxima of rows that several warps share.
    p += 16 if m == 16 else 0
    if config.loads == "pointer":
        return tiles.q + max(_in_flight(stages) * tiles.kv + p, scores)
    # Q lies there until it is in registers, a tail after the rest.
    q = m * (first if tail else spec.head_dim) * ITEM_BYTES[spec.dtype]
    if stages > 1:
        return max(_in_flight(stages) * tiles.kv + p + BARRIERS, q + 8)
    if tail:
        return max(q + 8, config.block_n * first * ITEM_BYTES[spec.dtype] + 8, scores)
    return max(tiles.kv + p + 8, q + 8, scores)


def _moved_scores(spec: Attention, config: Config, unit: Unit) -> int:
    """Bytes of float32 scores that change hands to meet a table's entries; 0 where none do."""
    if config.num_stages > 1 or config.block_n < 32 * config.num_warps:
        return 0
    # Where a thread has a whole row of scores, a packed test goes without.
    packed = unit == "tcgen05" and config.block_m == 128
    nodes = _look_ups(spec, packed=not packed)
    by_key = any(n.variables() & {"k", "ks"} and table_dtype(n.data) == "int32" for n in nodes)
    return 4 * config.block_m * config.block_n if by_key else 0


def _look_ups(spec: Attention, packed: bool = True) -> list[Expr]:
    """What the masks look up in tables; ``packed``: in tests of several ranges at once too."""
    found: dict[str, Expr] = {}

    def walk(node: Expr) -> None:
        if node.op == "table":
            found[node.key] = node
        if packed or node.op != "clear":
            for arg in node.args:
                walk(arg)

    for _, expr in masks(spec)[0]:
        walk(expr)
    return list(found.values())


def _in_flight(stages: int) -> int:
    """Tiles of K and V together."""
    return max(2 * (stages - 1), 1)


def table_bytes(spec: Attention, config: Config, moving: str = "k") -> int:
    """Entries of the mask's tables: what is loaded ahead, by key or by pair.

    Where they are narrow, a whole tile of them changes hands.  ``moving`` is the side of which each
    step takes other tokens, ``"k"`` or ``"q"``.
    """
    pairs = config.block_m * config.block_n
    held = 0
    for node in _look_ups(spec):
        names = node.variables()
        if table_dtype(node.data) != "int32" and names & {"q", "qs", "k", "ks"}:
            held += 4 * pairs
        elif names & {moving, f"{moving}s"}:
            sides = {name[0] for name in names & {"q", "qs", "k", "ks"}}
            alone = config.block_n if moving == "k" else config.block_m
            entries = pairs if len(sides) > 1 else alone
            held += 4 * entries * (config.num_stages - 1)
    return held
