"""What a spec's leaves compute, and the tables they read.

Stored orders are tables of original tokens: four bytes a token and order, read once a key tile,
beat computing them, since the divisions of an axis order cost 6 to 12 % of a whole kernel on an
H100, those of cubes that edges cut far more (docs/performance.md).  A list that comes with the call
is read as it is; what is made of one (its inverse, a chain) becomes a table when the list is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.expr.bounds import Bounds
from kdsl.expr.evaluate import evaluate
from kdsl.expr.nodes import Expr, const, var
from kdsl.expr.tables import Table, tables_of
from kdsl.kernels.attention.heads import Variant, merged, provable
from kdsl.kernels.attention.ranges import together
from kdsl.kernels.attention.tiles import MOST, by_block, split
from kdsl.orders import Listed, Order
from kdsl.specs import Attention

Tables = Mapping[str, npt.NDArray[Any]]


def index_bounds(spec: Attention) -> dict[str, Bounds]:
    """Ranges of the indices that leaves may name: the spec's, and those of tiles."""
    own = spec.index_bounds
    tiles = {
        name: (0, own[stored][1] // size)
        for name, stored, size in zip(("row", "column"), ("qs", "ks"), spec.block, strict=True)
    }
    return {**own, **tiles, "known": (0, 2**MOST - 1)}


def masks(spec: Attention) -> tuple[list[Variant], Expr]:
    """Heads and the mask they use, and what the masks know of a tile beforehand (``known``)."""
    indices = index_bounds(spec)
    variants = [by_block(e, spec.block) for e in spec.element_mask.variants]
    found, known = split(merged(variants, indices))
    return [(heads, _together(spec, e, indices)) for heads, e in found], known


def _together(spec: Attention, mask: Expr, indices: Mapping[str, Bounds]) -> Expr:
    other = together(mask, indices, lambda key: _kept(spec, key))
    # Sums in another sequence may leave 32 bits where the mask's own do not.
    return other if provable(other, indices) else mask


def _kept(spec: Attention, key: Expr) -> Expr:
    """A number of each key's, from a table by stored position where its values are known now.

    It costs one load a key instead of the arithmetic, and of the look-up of the order.
    """
    tables = [*tables_of([key]), *spec.kv_order.tables]
    if not key.variables() <= {"k", "ks"} or any(t.values is None for t in tables):
        return key
    return _kept_table(spec.kv_order, _Shown(key))


def index(spec: Attention, which: str) -> list[Expr]:
    """The original token at stored position ``s``, for each head or for all.

    ``which`` is ``"query"`` or ``"key"``.
    """
    order = spec.query_order if which == "query" else spec.kv_order
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


@dataclass(frozen=True)
class _Shown:
    """An expression, equal by structure."""

    expr: Expr = field(compare=False)
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.expr.key)


@lru_cache(maxsize=32)
def _kept_table(order: Order, shown: _Shown) -> Expr:
    """An entry of the table ``[distinct orders, tokens]`` of an expression by stored key."""
    stored = np.arange(order.tokens)
    parts = dict.fromkeys(order.parts)
    found = [evaluate(shown.expr, {"k": o.index({}), "ks": stored}) for o in parts]
    values = np.stack(found).astype(np.int32)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    name = f"keys_{shown.key[:10]}"
    table = Table(name, values.shape, "int32", low, high, values)
    return table[_row(order, name), var("ks")]


def _index_values(order: Order, given: Tables) -> npt.NDArray[np.int32]:
    return np.stack([o.index(given) for o in dict.fromkeys(order.parts)]).astype(np.int32)
