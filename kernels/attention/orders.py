"""Stored orders as the kernel reads them: a table of original tokens.

Four bytes a token and order, read once a key tile, beat computing them: the divisions of an axis
order cost 6 to 12 % of a whole kernel on an H100, those of cubes that edges cut far more
(docs/performance.md).  A list that comes with the call is read as it is; what is made of one (its
inverse, a chain) becomes a table when the list is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.expr.nodes import Expr, const, var
from kdsl.expr.tables import Table, tables_of
from kdsl.orders import Listed, Order
from kdsl.specs import Attention

Tables = Mapping[str, npt.NDArray[Any]]


def tables(spec: Attention) -> tuple[Table, ...]:
    """Every table the leaves of a spec read, in the order they take them."""
    indices = (*expressions(spec, "query"), *expressions(spec, "key"))
    return tables_of((*spec.element_mask.variants, *indices))


def table_values(spec: Attention, given: Tables) -> dict[str, Any]:
    """Values of `tables` by name, from those of the spec's open tables."""
    made = {table.name: order for table, order in _index_tables(spec).values()}
    out: dict[str, Any] = {}
    for table in tables(spec):
        if table.values is not None:
            out[table.name] = table.values
        elif table.name in made:
            out[table.name] = _index(made[table.name], given)
        else:
            out[table.name] = given[table.name]
    return out


def expressions(spec: Attention, which: str) -> list[Expr]:
    """The original token at stored position ``s``, for each head or for all.

    ``which`` is ``"query"`` or ``"key"``.
    """
    order = spec.query_order if which == "query" else spec.kv_order
    held = _index_tables(spec).get(which)
    if held is None:
        return [o.expr for o in order.parts]
    distinct = list(dict.fromkeys(order.parts))
    return [held[0][const(distinct.index(o)), var("s")] for o in order.parts]


def _index_tables(spec: Attention) -> dict[str, tuple[Table, Order]]:
    """The tables that stand for orders, by side."""
    taken = {t.name for t in spec.tables}
    out = {}
    for which, order in (("query", spec.query_order), ("key", spec.kv_order)):
        name = "order" if spec.query_order == spec.kv_order else f"{which}_order"
        while name in taken:
            name += "_"
        if not order.is_identity and not all(map(_is_open_list, order.parts)):
            out[which] = _index_table(order, name), order
    return out


def _is_open_list(order: Order) -> bool:
    return isinstance(order, Listed) and order.entries.values is None


@lru_cache(maxsize=32)
def _index_table(order: Order, name: str) -> Table:
    """Original token by order and stored position, ``[distinct orders, tokens]``."""
    shape = (len(set(order.parts)), order.tokens)
    known = all(t.values is not None for t in order.tables)
    values = _index(order, {}) if known else None
    return Table(name, shape, "int32", 0, max(order.tokens - 1, 0), values)


def _index(order: Order, given: Tables) -> npt.NDArray[np.int32]:
    return np.stack([o.index(given) for o in dict.fromkeys(order.parts)]).astype(np.int32)
