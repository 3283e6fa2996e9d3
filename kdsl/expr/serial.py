"""Expressions as canonical JSON values, and their structure without sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from kdsl.errors import SpecError, reading
from kdsl.expr.nodes import BOOL_OPS, INT_OPS, VARIABLES, Expr, make
from kdsl.expr.tables import Table
from kdsl.grid import AXES

COORDINATES = (*AXES, "length")


def to_json(expr: Expr) -> list[Any]:
    """The distinct nodes in order, arguments by number; the last one is the expression."""
    number: dict[str, int] = {}
    out: list[Any] = []
    for node in expr.walk():
        number[node.key] = len(out)
        out.append([node.op, _data(node), *(number[a.key] for a in node.args)])
    return out


def _data(node: Expr) -> Any:
    if node.op == "table":
        return node.data.to_json()
    if node.op == "blocks":
        # A capacity is written where there is one: it came after the form was frozen.
        held = [node.data.name, list(node.data.block), node.data.shared]
        return held if node.data.capacity is None else [*held, node.data.capacity]
    if node.op == "chosen":
        held = [node.data.name, list(node.data.block), node.data.rule]
        return [*held, float(node.data.amount).hex(), node.data.capacity]
    if node.op in ("coord", "visual"):
        return [list(d) if isinstance(d, tuple) else d for d in node.data]
    return node.data


@reading("expression")
def from_json(value: list[Any]) -> Expr:
    """The expression written by `to_json`; operations, indices and names are checked."""
    nodes: list[Expr] = []
    for op, data, *args in value:
        if op not in INT_OPS | BOOL_OPS:
            raise SpecError(f"unknown operation {op!r}", hint=", ".join(sorted(INT_OPS | BOOL_OPS)))
        if not all(isinstance(i, int) and 0 <= i < len(nodes) for i in args):
            raise SpecError(f"arguments {args} of {op!r} are not nodes before it")
        nodes.append(make(op, tuple(nodes[i] for i in args), _from_data(op, data)))
    return nodes[-1]


def _from_data(op: str, data: Any) -> Any:
    if op == "table":
        return Table.from_json(data)
    if op == "blocks":
        from kdsl.masks.base import BlockMap, block_sizes, checked_capacity

        name, block, shared, *capacity = data
        held = checked_capacity(*capacity) if capacity else None
        return BlockMap(str(name), block_sizes(block), bool(shared), held)
    if op == "chosen":
        from kdsl.masks.base import block_sizes, checked_capacity
        from kdsl.masks.chosen import Choice

        name, block, rule, amount, most = data
        amount = float.fromhex(amount)
        amount = int(amount) if rule == "topk" and amount.is_integer() else amount
        return Choice(str(name), block_sizes(block), str(rule), amount, checked_capacity(most))
    if op == "coord":
        shape, start, axis, name = data
        return (tuple(map(int, shape)), int(start), int(axis), _one_of(name, COORDINATES))
    if op == "visual":
        return (int(data[0]), int(data[1]))
    if op == "var":
        return _one_of(data, VARIABLES)
    return int(data) if op in ("const", "bool") else None


def _one_of(name: Any, known: Sequence[str]) -> str:
    if name not in known:
        raise SpecError(f"unknown index {name!r}", hint=", ".join(known))
    return str(name)


def structure(expr: Expr) -> str:
    """Hash of the tree without constants, tables and sizes: what makes another program.

    Of the tree, not of its distinct nodes: which of them coincide depends on the constants.
    """
    known: dict[str, str] = {}
    for node in expr.walk():
        text = repr((node.op, _kind(node), [known[a.key] for a in node.args]))
        known[node.key] = hashlib.sha256(text.encode()).hexdigest()[:24]
    return known[expr.key]


def _kind(node: Expr) -> Any:
    if node.op == "table":
        return [len(node.data.shape), node.data.dtype]
    if node.op == "coord":
        return [len(node.data[0]), node.data[2]]
    return node.data if node.op in ("var", "bool") else None
