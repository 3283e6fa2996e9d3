"""Random attention specs that the interpreter can afford, with values for their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.masks import Mask
from kdsl.orders import Order, PerHead
from kdsl.specs import HEAD_DIMS, Attention
from tests.strategies import Scope, grids, late_orders, order_of, truth

BLOCKS = ((32, 32), (32, 64), (64, 32), (64, 64), (128, 64), (128, 128), (64, 16), (16, 32))
TOKENS = 130
"""At most: three rows of the smallest common blocks, the last one ragged."""


@dataclass
class Case:
    """A spec, the values of its open tables, and what else a call needs."""

    spec: Attention
    tables: dict[str, npt.NDArray[Any]]
    batch: int
    seed: int


class Drawn:
    """Hypothesis's choices for one spec, and the tables that they name."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.tables: dict[str, npt.NDArray[Any]] = {}
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.heads = draw(st.sampled_from((1, 2, 3, 4)))
        self.batch = draw(st.sampled_from((1, 1, 1, 2)))
        self.maps = True

    def number(self, low: int, high: int) -> int:
        """An integer of the range, ends included."""
        return int(self.draw(st.integers(low, high)))

    def one_of(self, *choices: Any) -> Any:
        """One of the values."""
        return self.draw(st.sampled_from(choices))

    def fresh(self, kind: str) -> str:
        """A name that no table has yet."""
        return f"{kind}{len(self.tables)}"

    def other_keys(self, queries: Grid) -> Grid:
        """Keys with the same axes and other sizes."""
        if not queries.axes:
            return Grid(self.number(1, TOKENS), text=queries.text, text_at=queries.text_at)
        sizes = {name: self.number(1, 5) for name in queries.axes}
        return Grid(**sizes, text=self.one_of(0, 5), text_at=self.one_of("start", "end"))

    def order(self, grid: Grid) -> Order | None:
        """An order of a grid, known now or at the call, or one for each head; None by halves."""
        kind = self.one_of("none", "none", "one", "late", "heads")
        if kind == "none":
            return None
        if kind == "heads":
            return orders.per_head([self.plain_order(grid) for _ in range(self.heads)])
        return self.late_order(grid) if kind == "late" else self.plain_order(grid)

    def plain_order(self, grid: Grid) -> Order:
        """An order that is known now."""
        made: Order = self.draw(order_of(grid))
        return made

    def late_order(self, grid: Grid) -> Order:
        """A list that comes with the call, or what is made of one."""
        made: Order = self.draw(late_orders(grid, self.tables, self.fresh("order")))
        return made

    # --- masks ---

    def mask(self, queries: Grid, keys: Grid, order: Order | None, block: tuple[int, int]) -> Mask:
        """One mask or one a head, combined of up to three parts."""
        if self.one_of(False, False, False, True):
            return masks.per_head(
                [self.combined(queries, keys, order, block) for _ in range(self.heads)]
            )
        return self.combined(queries, keys, order, block)

    def combined(
        self, queries: Grid, keys: Grid, order: Order | None, block: tuple[int, int]
    ) -> Mask:
        """Parts joined by and, or, not."""
        out = self.part(queries, keys, order, block)
        for _ in range(self.one_of(0, 0, 1, 1, 2)):
            other = self.part(queries, keys, order, block)
            how = self.one_of("and", "or", "xor", "without")
            if how == "and":
                out = out & other
            elif how == "or":
                out = out | other
            elif how == "xor":
                out = out ^ other
            else:
                out = out & ~other
        return out

    def part(self, queries: Grid, keys: Grid, order: Order | None, block: tuple[int, int]) -> Mask:
        """One of the built-in masks, or a predicate."""
        simple: list[Callable[[], Mask]] = [
            lambda: masks.everything(),
            lambda: masks.nothing(),
            lambda: masks.causal(self.number(-20, 20)),
            lambda: masks.window(self.number(1, 70)),
            lambda: masks.sink(self.number(0, 40)),
            lambda: masks.prefix(self.number(0, 60)),
            lambda: masks.text(queries, keys),
            lambda: self.near(queries, keys),
            lambda: self.near(queries, keys, dilated=True),
            lambda: self.ids(queries, keys),
            lambda: self.tree(queries, keys),
            lambda: self.predicate(),
            lambda: self.anything(queries, keys),
            lambda: self.anything(queries, keys),
        ]
        if self.maps:
            simple.append(lambda: self.block_map(queries, keys, order, block))
        if "frames" in queries.axes:
            simple.append(lambda: masks.frame_band(queries, self.number(0, 2), keys=keys))
        if len(queries.axes) == 3:
            simple.append(lambda: masks.radial(queries, self.number(1, 20), keys=keys))
        made: Mask = self.draw(st.sampled_from(simple))()
        return made

    def near(self, queries: Grid, keys: Grid, dilated: bool = False) -> Mask:
        """A window in coordinates."""
        extent = [self.number(1, 7) for _ in queries.shape]
        if dilated:
            steps = [self.number(1, 3) for _ in queries.shape]
            return masks.dilated(queries, extent, steps, keys=keys)
        return masks.window(queries, extent, keys=keys)

    def ids(self, queries: Grid, keys: Grid) -> Mask:
        """Documents: ids known now, at the call, or at the call for each batch item."""
        n = max(queries.tokens, keys.tokens)
        kind = self.one_of("now", "call", "batch")
        shape = (self.batch, n) if kind == "batch" else (n,)
        values = np.sort(self.rng.integers(0, 4, shape), axis=-1).astype(np.int32)
        if kind == "now":
            return masks.same(values)
        name = self.fresh("doc")
        self.tables[name] = values
        dtype = self.one_of("int32", "int16", "uint8")
        return masks.same(Table(name, shape, dtype, 0, 9))

    def tree(self, queries: Grid, keys: Grid) -> Mask:
        """A prefix and two branches behind it."""
        n = max(queries.tokens, keys.tokens)
        cut = np.sort(self.rng.integers(0, n + 1, 2))
        start = np.repeat([0, cut[0], cut[1]], [cut[0], cut[1] - cut[0], n - cut[1]])
        end = np.repeat([n, cut[1], n], [cut[0], cut[1] - cut[0], n - cut[1]])
        return masks.tree(start, end)

    def block_map(
        self, queries: Grid, keys: Grid, order: Order | None, block: tuple[int, int]
    ) -> Mask:
        """Blocks that come with the call, for all heads or for each."""
        name, shared = self.fresh("plan"), bool(self.one_of(False, True))
        heads = 1 if shared else self.heads
        shape = (heads, -(-queries.tokens // block[0]), -(-keys.tokens // block[1]))
        self.tables[name] = (self.rng.random(shape) < self.one_of(0.2, 0.6)).astype(np.uint8)
        return masks.blocks(name, order=order, block=block, shared=shared)

    def predicate(self) -> Mask:
        """A rule over token numbers, heads and negative dividends."""
        step, shift = self.number(2, 9), self.number(-9, 9)
        rules: tuple[Callable[..., Any], ...] = (
            lambda q, k: (q - k) % step == 0,
            lambda q, k: (k - q) // step >= shift,
            lambda q, k, head: (q + head * shift) // step <= (k + shift) // step,
            lambda q, k, head: (q * step + k) % (head + 2) != 1,
            lambda q: q % step != 0,
            lambda k, head: k >= head * step,
        )
        return masks.predicate(self.draw(st.sampled_from(rules)))

    def anything(self, queries: Grid, keys: Grid) -> Mask:
        """Any expression over tokens, coordinates and tables."""
        scope = Scope(queries, keys, self.heads, self.batch, self.tables)
        return Mask((truth(self.draw, scope, 2),), queries, keys)


@st.composite
def cases(
    draw: Callable[[Any], Any],
    dtypes: Sequence[str] = ("float16", "float32"),
    head_dims: Sequence[int] = HEAD_DIMS,
    blocks: Sequence[tuple[int, int]] = BLOCKS,
    tokens: int = TOKENS,
    ordered: bool = True,
) -> Case:
    """Specs over masks, orders, ragged sizes, grouped heads, head dimensions and dtypes.

    Without ``ordered`` tokens are stored as they are.
    """
    d = Drawn(draw)
    queries = d.draw(grids(tokens))
    keys = queries if d.one_of(True, True, False) else d.other_keys(queries)
    block = d.one_of(*blocks)
    order = d.order(queries) if ordered else None
    key_order = None
    if ordered and (keys != queries or d.one_of(False, False, False, True)):
        key_order = d.order(keys)
    # A block map speaks of one stored order, the queries'.
    d.maps = key_order is None
    groups = [n for n in range(1, d.heads + 1) if d.heads % n == 0]
    # Heads that share stored keys have one key order.
    stored = ordered and d.one_of(False, False, True)
    by_head = any(isinstance(o, PerHead) for o in (order, key_order))
    spec = Attention(
        queries=queries,
        keys=keys,
        heads=d.heads,
        kv_heads=d.heads if stored and by_head else d.one_of(*groups),
        head_dim=d.one_of(*head_dims),
        dtype=d.one_of(*dtypes),
        mask=d.mask(queries, keys, order, block),
        order=order,
        key_order=key_order,
        scale=d.one_of(None, None, 0.05, 0.4),
        return_lse=d.one_of(True, True, False),
        block=block,
        stored=stored,
    )
    # Names that the spec's simplification dropped are no tables of the spec.
    wanted = {t.name for t in spec.open_tables}
    tables = {name: values for name, values in d.tables.items() if name in wanted}
    return Case(spec, tables, d.batch, d.number(0, 2**31))
