"""What the printers share: formats per operation, and names for what occurs twice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdsl.errors import SpecError
from kdsl.expr.bounds import Bounds, bounds
from kdsl.expr.nodes import Expr
from kdsl.expr.tables import Table

ATOMS = frozenset({"const", "bool", "var"})
CHAINS = frozenset({"add", "and", "or", "mul"})
FLOORED = {"floordiv": "floor", "mod": "floormod"}
"""Formats that round towards minus infinity, for dividends that may be negative."""


@dataclass(frozen=True)
class Dialect:
    """How one language writes each operation; ``{0}``, ``{1}`` stand for the arguments."""

    formats: Mapping[str, str]
    calls: frozenset[str]
    """Operations whose format brings its own brackets."""
    look_up: Callable[[Table, str], str]
    """Text of a table entry, from the table and the text of its flat offset."""
    true: str
    false: str


@dataclass
class Printed:
    """Lines that define what occurs twice, and the text of the result."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    result: str = ""


def render(
    expr: Expr, dialect: Dialect, indices: Mapping[str, Bounds], names: str = "t"
) -> Printed:
    """Print an expression for indices inside the given ranges.

    Division prints as the language's truncating one where the ranges prove that both agree, and as
    a helper with floor semantics otherwise.
    """
    ranges = bounds(expr, indices)
    uses = Counter(a.key for node in expr.walk() for a in node.args)
    out, text = Printed(), dict[str, str]()
    bracketed: dict[str, bool] = {}

    def operand(node: Expr, parent: str) -> str:
        chain = parent in CHAINS and node.op == parent
        return text[node.key] if bracketed[node.key] or chain else f"({text[node.key]})"

    for node in expr.walk():
        if node.op in ATOMS:
            written, own = _atom(node, dialect), node.value is None or node.value >= 0
        elif node.op == "coord":
            written, own = _coordinate(node, operand(node.args[0], "sub"), ranges, dialect)
        elif node.op == "visual":
            written, own = _visual(node, operand(node.args[0], "lt"), ranges, dialect), False
        elif node.op == "table":
            flat = _offset(node.data, [operand(a, "mul") for a in node.args], node, ranges)
            written, own = dialect.look_up(node.data, flat), True
        else:
            form = _form(node, ranges)
            own = form in dialect.calls
            inner = [text[a.key] if own else operand(a, node.op) for a in node.args]
            written = dialect.formats[form].format(*inner)
        if uses[node.key] > 1 and node.op not in ATOMS:
            name = f"{names}{len(out.lines)}"
            out.lines.append((name, written))
            written, own = name, True
        text[node.key], bracketed[node.key] = written, own
    out.result = text[expr.key]
    return out


def _atom(node: Expr, dialect: Dialect) -> str:
    if node.op == "bool":
        return dialect.true if node.data else dialect.false
    return str(node.data)


def _form(node: Expr, ranges: Mapping[str, Bounds]) -> str:
    """The format to use: a division of what may be negative needs its helper."""
    if node.op in FLOORED and ranges[node.args[0].key][0] < 0:
        return FLOORED[node.op]
    return node.op


def _offset(table: Table, at: list[str], node: Expr, ranges: Mapping[str, Bounds]) -> str:
    """Row-major offset of an entry; SpecError where an index may leave the table."""
    parts = []
    for axis, (text, index) in enumerate(zip(at, node.args, strict=True)):
        low, high = ranges[index.key]
        size = table.shape[axis]
        if low < 0 or high >= max(size, 1):
            raise SpecError(
                f"index {index!r} of table {table.name!r} runs from {low} to {high}, "
                f"the table from 0 to {size - 1}",
                where=repr(node),
                hint=f"minimum(maximum(index, 0), {size - 1})",
            )
        stride = math.prod(table.shape[axis + 1 :])
        if size > 1:
            parts.append(text if stride == 1 else f"{text} * {stride}")
    return " + ".join(parts) or "0"


def _coordinate(
    node: Expr, token: str, ranges: Mapping[str, Bounds], dialect: Dialect
) -> tuple[str, bool]:
    """A coordinate in plain arithmetic, without the steps that the ranges make idle."""
    shape, start, axis = node.data
    low, high = ranges[node.args[0].key]
    stride = math.prod(shape[axis + 1 :])
    text = token
    if low < start:
        text = dialect.formats["max"].format(f"{token} - {start}" if start else token, "0")
    elif start:
        text = f"({token} - {start})"
    if shape[axis] <= 1:
        return "0", True
    if stride > 1:
        text = dialect.formats["floordiv"].format(text, stride)
    if axis or high - start >= math.prod(shape):
        text = dialect.formats["mod"].format(f"({text})" if stride > 1 else text, shape[axis])
    return text, text == token


def _visual(node: Expr, token: str, ranges: Mapping[str, Bounds], dialect: Dialect) -> str:
    """Whether a token has coordinates: text stands at one end, so one comparison is enough."""
    start, count = node.data
    low, high = ranges[node.args[0].key]
    above = dialect.formats["le"].format(start, token)
    below = dialect.formats["lt"].format(token, start + count)
    tests = [t for t, idle in ((above, low >= start), (below, high < start + count)) if not idle]
    if len(tests) == 2:
        return dialect.formats["and"].format(*(f"({t})" for t in tests))
    return tests[0] if tests else dialect.true
