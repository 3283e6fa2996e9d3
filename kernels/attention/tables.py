"""What a spec's leaves compute, and the tables they read.

Stored orders are tables of original tokens: four bytes a token and order, read once a key tile,
beat computing them, since the divisions of an axis order cost 6 to 12 % of a whole kernel on an
H100, those of cubes that edges cut far more (docs/performance.md).  A list that comes with the call
is read as it is; what is made of one (its inverse, a chain) becomes a table when the list is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.expr.bounds import Bounds
from kdsl.expr.evaluate import evaluate
from kdsl.expr.nodes import Expr, const, minimum, var
from kdsl.expr.tables import Table, tables_of
from kdsl.intervals.classify import head_order
from kdsl.kernels.attention.heads import Variant, merged, provable
from kdsl.kernels.attention.ranges import Keep, together
from kdsl.kernels.attention.tiles import MOST, by_block, split
from kdsl.orders import Listed, Order
from kdsl.specs import Attention

Tables = Mapping[str, npt.NDArray[Any]]

FEW = 2
"""Packed tests of a mask whose limits are looked up too."""
MOST_KEPT = 2**24
"""Entries of a table that is kept instead of arithmetic: 64 MiB."""


def index_bounds(spec: Attention) -> dict[str, Bounds]:
    """Ranges of the indices that a mask's leaf may name: the spec's, and those of tiles.

    Stored positions run to the end of the last block, past the last token.
    """
    own, out = spec.index_bounds, {"known": (0, 2**MOST - 1)}
    for stored, tile, size in zip(("qs", "ks"), ("row", "column"), spec.block, strict=True):
        last = own[stored][1] // size
        out |= {tile: (0, last), stored: (0, (last + 1) * size - 1)}
    return {**own, **out}


@lru_cache(maxsize=32)
def masks(spec: Attention) -> tuple[tuple[Variant, ...], Expr]:
    """Heads and the mask they use, and what the masks know of a tile beforehand (``known``)."""
    indices = index_bounds(spec)
    last = {name: minimum(var(name), spec.index_bounds[name][1]) for name in ("qs", "ks")}
    variants = [by_block(e, spec.block).replace(last) for e in spec.element_mask.variants]
    found, known = split(merged(variants, indices))
    kept: dict[str, Expr] = {}

    def keep(expr: Expr) -> Expr:
        if expr.key not in kept:
            kept[expr.key] = _kept(spec, expr)
        return kept[expr.key]

    return tuple((heads, _together(e, indices, keep)) for heads, e in found), known


def _together(mask: Expr, indices: Mapping[str, Bounds], keep: Keep) -> Expr:
    other = together(mask, indices, keep)
    if sum(node.op == "clear" for node in other.walk()) > FEW:
        # Limits of many ranges, looked up, would fill the registers.
        other = together(mask, indices, lambda x: x if x.variables() & {"q", "qs"} else keep(x))
    # Sums in another sequence may leave 32 bits where the mask's own do not.
    return other if provable(other, indices) else mask


def _kept(spec: Attention, expr: Expr) -> Expr:
    """A number of each query's or key's, from a table by stored position where it is known now.

    It costs one load instead of the arithmetic, and of the look-up of the order.
    """
    for stored, order in (("qs", spec.query_order), ("ks", spec.kv_order)):
        held = [*tables_of([expr]), *order.tables]
        if expr.variables() - {"head"} <= {stored[0], stored}:
            rows = spec.heads if "head" in expr.variables() else len(set(order.parts))
            entries = rows * (index_bounds(spec)[stored][1] + 1)
            known = all(t.values is not None for t in held)
            if known and order.tokens and entries <= MOST_KEPT:
                return _kept_table(spec, order, stored, expr)
    return expr


def index(spec: Attention, which: str) -> list[Expr]:
    """The original token at stored position ``s``, for each head or for all.

    ``which`` is ``"query"`` or ``"key"``.
    """
    order = spec.query_order if which == "query" else spec.kv_order
    if order.tokens == 1:
        # Any order of one token; a look-up in the same place each time would leave loads in a
        # loop that do not depend on it, which Triton's scheduler does not survive.
        return [var("s")]
    stored = _stored_orders(spec).get(which)
    return [order.parts[0].expr] if stored is None else [stored[0]]


def tables(spec: Attention) -> tuple[Table, ...]:
    """Every table that the leaves read, in the order they take them."""
    variants, known = masks(spec)
    indices = (*index(spec, "query"), *index(spec, "key"))
    return tables_of((*(e for _, e in variants), known, *indices))


def table_values(spec: Attention, given: Tables) -> dict[str, Any]:
    """Values of `tables` by name, from those of the spec's open tables."""
    made = {t.name: order for expr, order in _stored_orders(spec).values() for t in _outer(expr)}
    out: dict[str, Any] = {}
    for table in tables(spec):
        if table.values is not None:
            out[table.name] = table.values
        elif table.name in made:
            out[table.name] = _index_values(made[table.name], given)
        else:
            out[table.name] = given[table.name]
    return out


def made_on_host(spec: Attention) -> bool:
    """Whether a table that the leaves read is made of open ones: an inverse, a chain of lists."""
    made = _stored_orders(spec).values()
    return any(t.values is None for _, order in made for t in order.tables)


def _stored_orders(spec: Attention) -> dict[str, tuple[Expr, Order]]:
    """Orders that are read from a table made of them, by side."""
    taken = {t.name for t in spec.tables}
    out = {}
    for which, order in (("query", spec.query_order), ("key", spec.kv_order)):
        name = "order" if spec.query_order == spec.kv_order else f"{which}_order"
        while name in taken:
            name += "_"
        if not order.is_identity and not _is_open_list(order):
            out[which] = _index_expr(order, name), order
    return out


def _is_open_list(order: Order) -> bool:
    """One list for all heads, known only at the call."""
    parts = set(order.parts)
    return len(parts) == 1 and all(
        isinstance(o, Listed) and o.entries.values is None for o in parts
    )


def _outer(expr: Expr) -> list[Table]:
    return [expr.data] if expr.op == "table" else []


@lru_cache(maxsize=32)
def _index_expr(order: Order, name: str) -> Expr:
    """An entry of the table ``[distinct orders, tokens]``; heads look up which order is theirs."""
    known = all(t.values is not None for t in order.tables)
    values = _index_values(order, {}) if known else None
    shape = (len(set(order.parts)), order.tokens)
    table = Table(name, shape, "int32", 0, max(order.tokens - 1, 0), values)
    return table[_row(order, name), var("s")]


def _row(order: Order, name: str) -> Expr:
    """Which of an order's distinct parts is the head's."""
    distinct = list(dict.fromkeys(order.parts))
    numbers = np.array([distinct.index(o) for o in order.parts])
    if len(distinct) == 1:
        return const(0)
    if len(distinct) == len(numbers):
        return var("head")
    of_head = Table(f"{name}_of_head", numbers.shape, "int32", 0, len(distinct) - 1, numbers)
    return of_head[var("head")]


def _kept_table(spec: Attention, order: Order, stored: str, expr: Expr) -> Expr:
    """An entry of the table ``[distinct orders or heads, positions]`` of an expression's values.

    Positions past the end read what the last token does.
    """
    at = np.arange(order.tokens)
    name = f"{stored}_{expr.key[:10]}"
    if "head" in expr.variables():
        rows, row = [(head_order(order, h), h) for h in range(spec.heads)], var("head")
    else:
        rows, row = [(part, 0) for part in dict.fromkeys(order.parts)], _row(order, name)
    found = [
        evaluate(expr, {stored[0]: part.index({}), stored: at, "head": head}) for part, head in rows
    ]
    past = index_bounds(spec)[stored][1] + 1 - order.tokens
    values = np.pad(np.stack(found), ((0, 0), (0, past)), mode="edge").astype(np.int32)
    table = Table(name, values.shape, "int32", int(values.min()), int(values.max()), values)
    return table[row, var(stored)]


def _index_values(order: Order, given: Tables) -> npt.NDArray[np.int32]:
    return np.stack([o.index(given) for o in dict.fromkeys(order.parts)]).astype(np.int32)
