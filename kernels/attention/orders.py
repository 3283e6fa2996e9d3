"""Stored orders as the kernel reads them: a table of original tokens.

Four bytes a token and order, read once a key tile, beat computing them: the divisions of an axis
order cost 6 to 12 % of a whole kernel on an H100, those of cubes that edges cut far more
(docs/performance.md).  What stays open until the call is a table already.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kdsl.expr.nodes import Expr, const, var
from kdsl.expr.tables import Table
from kdsl.orders import Order
from kdsl.specs import Attention


@lru_cache(maxsize=32)
def index_table(order: Order, name: str) -> Table | None:
    """Original token by order and stored position, ``[distinct orders, tokens]``.

    None where nothing moves, and where the order is known only at the call.
    """
    parts = tuple(dict.fromkeys(order.parts))
    is_open = any(n.op == "table" and n.data.values is None for o in parts for n in o.expr.walk())
    if order.is_identity or is_open:
        return None
    index = np.stack([o.index() for o in parts]).astype(np.int32)
    return Table(name, index.shape, "int32", 0, max(order.tokens - 1, 0), index)


def tables(spec: Attention) -> tuple[Table, ...]:
    """Every table the leaves of a spec read, in the order they take them."""
    mask = {t.name: t for t in spec.element_mask.tables()}
    open_orders = {t.name: t for t in spec.open_tables if t.name not in mask}
    orders = {t.name: t for t in _order_tables(spec).values()}
    return tuple((mask | open_orders | orders).values())


def expressions(spec: Attention, which: str) -> list[Expr]:
    """The original token at stored position ``s``, for each head or for all.

    ``which`` is ``"query"`` or ``"key"``.
    """
    order = spec.query_order if which == "query" else spec.kv_order
    held = _order_tables(spec).get(which)
    if held is None:
        return [o.expr for o in order.parts]
    distinct = list(dict.fromkeys(order.parts))
    return [held[const(distinct.index(o)), var("s")] for o in order.parts]


def _order_tables(spec: Attention) -> dict[str, Table]:
    taken = {t.name for t in spec.tables}
    out = {}
    for which, order in (("query", spec.query_order), ("key", spec.kv_order)):
        name = "order" if spec.query_order == spec.kv_order else f"{which}_order"
        while name in taken:
            name += "_"
        held = index_table(order, name)
        if held is not None:
            out[which] = held
    return out
