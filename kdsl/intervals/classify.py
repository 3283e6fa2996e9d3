"""Rows of full and partial blocks of a mask under an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks, from_lists, stack_heads
from kdsl.errors import SpecError
from kdsl.expr.bounds import Bounds, check_tables
from kdsl.expr.nodes import Expr
from kdsl.grid import Grid, as_grid
from kdsl.intervals.boxes import Boxes, Side
from kdsl.intervals.hierarchy import decide
from kdsl.intervals.lookup import RangeTables
from kdsl.intervals.reader import Reader
from kdsl.masks import Mask
from kdsl.orders import Order, identity

Tables = Mapping[str, npt.NDArray[Any]]


def classify(
    mask: Mask,
    queries: Grid | int,
    keys: Grid | int | None = None,
    *,
    block: tuple[int, int] = (128, 128),
    query_order: Order | None = None,
    key_order: Order | None = None,
    heads: int = 1,
    batch: int = 1,
    tables: Tables | None = None,
) -> Blocks:
    """Sort the blocks of a mask over stored tokens into full, partial and empty.

    Never wrong where it says full or empty.  A block is left partial though it is uniform only when
    the work inside undecided blocks exceeds its budget.  ``key_order`` defaults to ``query_order``
    where the keys are the queries.  Rows come for one head where neither mask nor order differs by
    head, and for one batch item where the mask does not speak of the batch.
    """
    grid_q = as_grid(queries, "queries")
    grid_k = grid_q if keys is None else as_grid(keys, "keys")
    mask.check_grids(grid_q, grid_k)
    if len(mask.variants) not in (1, heads):
        raise SpecError(
            f"masks for {len(mask.variants)} heads, asked for {heads}",
            hint=f"heads={len(mask.variants)}",
        )
    mask = mask.resolve(heads, grid_q.tokens, grid_k.tokens)
    mask.tables()  # Raises where two share a name.
    order_q = query_order or identity(grid_q)
    order_k = key_order or (query_order if grid_k == grid_q and query_order else identity(grid_k))
    for order, grid in ((order_q, grid_q), (order_k, grid_k)):
        if order.tokens != grid.tokens:
            raise SpecError(f"an order of {order.tokens} tokens", where=repr(grid))
        if len(order.parts) not in (1, heads):
            raise SpecError(f"orders for {len(order.parts)} heads, asked for {heads}")
    used = frozenset[str]().union(*(e.variables() for e in mask.variants))
    by_head = len(mask.variants) > 1 or "head" in used
    by_head |= len(order_q.parts) > 1 or len(order_k.parts) > 1
    known: dict[Any, Blocks] = {}
    prepared = RangeTables(tables)
    out = []
    for b in range(batch if "batch" in used else 1):
        per_head = []
        for h in range(heads if by_head else 1):
            expr = mask.head(h).replace({"head": h, "batch": b})
            # The reader relies on divisors above 0 and on look-ups inside their tables.
            check_tables(expr, token_bounds(grid_q, grid_k))
            orders = head_order(order_q, h), head_order(order_k, h)
            key = (expr.key, *orders)
            if key not in known:
                sides = _sides(expr, (grid_q, grid_k), orders, tables or {})
                known[key] = _one(expr, sides, block, prepared)
            per_head.append(known[key])
        out.append(stack_heads(per_head))
    return out[0] if len(out) == 1 else _stack_batch(out)


def token_bounds(queries: Grid, keys: Grid) -> dict[str, Bounds]:
    """Ranges of tokens and of their stored positions."""
    q, k = (0, max(queries.tokens - 1, 0)), (0, max(keys.tokens - 1, 0))
    return {"q": q, "qs": q, "k": k, "ks": k}


def head_order(order: Order, head: int) -> Order:
    """The order of one query head."""
    return order.parts[head if len(order.parts) > 1 else 0]


def _sides(
    expr: Expr, grids: tuple[Grid, Grid], orders: tuple[Order, Order], tables: Tables
) -> tuple[Side, Side]:
    coordinates = {"q": False, "k": False}
    for node in expr.walk():
        if node.op in ("coord", "visual") and node.args[0].op == "var":
            coordinates[node.args[0].data] = True
    q, k = (
        Side(grid, order, coordinates[name], tables)
        for name, grid, order in zip("qk", grids, orders, strict=True)
    )
    return q, k


def _one(
    expr: Expr, sides: tuple[Side, Side], block: tuple[int, int], tables: RangeTables
) -> Blocks:
    tokens = sides[0].tokens, sides[1].tokens
    rows, columns = (-(-n // size) for n, size in zip(tokens, block, strict=True))
    if not rows or not columns:
        nothing = np.zeros(0, np.int64)
        return from_lists(nothing, nothing, nothing > 0, (1, 1, rows), block, *tokens)
    narrow = magnitude(expr, tokens) < 2**31
    made: dict[tuple[int, int, bool], Boxes] = {}

    def boxes(which: int, size: int, hull: bool) -> Boxes:
        if (which, size, hull) not in made:
            found = boxes(which, size, False).hull() if hull else sides[which].boxes(size)
            made[which, size, hull] = found.narrow() if narrow and not hull else found
        return made[which, size, hull]

    def reader(query_size: int, key_size: int, hull: bool) -> Reader:
        return Reader(expr, boxes(0, query_size, hull), boxes(1, key_size, hull), tables)

    found = decide(rows, columns, block, reader, _cuts(block))
    listed = from_lists(found.row, found.column, found.partial, (1, 1, rows), block, *tokens)
    start, full, partial = (
        x[..., found.first] for x in (listed.start, listed.full, listed.partial)
    )
    return Blocks(start, full, partial, listed.index, block, *tokens)


def magnitude(expr: Expr, tokens: tuple[int, int]) -> int:
    """What no sum of terms that the reader forms can exceed.

    A hull that mixes text and grid lets a token reach up to twice the sequence's length.
    """
    done: dict[str, int] = {}
    for node in expr.walk():
        args = [done[a.key] for a in node.args]
        if node.op == "table":
            size = max(abs(node.data.low), abs(node.data.high))
        elif node.op == "const":
            size = abs(node.data)
        elif node.op == "mul":
            size = args[0] * args[1]
        elif node.op in ("min", "max", "where", "floordiv", "mod"):
            size = max(args)
        else:
            size = sum(args, start=2 * max(*tokens, 1))
        done[node.key] = size
    return max(done.values())


def _cuts(block: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes of ever smaller runs to cut the two sides of a block into, down to single tokens."""
    out, left = [], block
    while max(left) > 1:
        q, k = (n // next(f for f in (4, 2, max(n, 1)) if n % f == 0) for n in left)
        left = (q, k)
        out.append(left)
    return tuple(out)


def _stack_batch(items: list[Blocks]) -> Blocks:
    offsets = np.cumsum([0] + [len(b.index) for b in items[:-1]]).astype(np.int32)
    return Blocks(
        np.concatenate([b.start + n for b, n in zip(items, offsets, strict=True)]),
        np.concatenate([b.full for b in items]),
        np.concatenate([b.partial for b in items]),
        np.concatenate([b.index for b in items]),
        items[0].block,
        items[0].queries,
        items[0].keys,
    )
