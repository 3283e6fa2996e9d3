"""What the printers share: formats per operation, and names for what occurs twice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kdsl.expr.bounds import Bounds, bounds, check_int32, check_tables
from kdsl.expr.lower import lower
from kdsl.expr.nodes import Expr
from kdsl.expr.tables import Table

ATOMS = frozenset({"const", "bool", "var"})
CHAINS = frozenset({"add", "and", "or", "mul"})
FLOORED = {"floordiv": "floor", "mod": "floormod"}
"""Formats that round towards minus infinity, for dividends that may be negative."""

Variant = tuple[Sequence[int], Expr]
"""Heads, and the expression those heads use."""


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


def table_name(table: Table) -> str:
    """A table's name in generated code: the suffix keeps it apart from every other name there."""
    return f"{table.name}_table"


def prepare(variants: Sequence[Variant], indices: Mapping[str, Bounds]) -> list[Variant]:
    """Variants checked for 32 bits and table bounds, and made plain."""
    for _, expr in variants:
        check_int32(expr, indices)
        check_tables(expr, indices)
    return [(heads, lower(expr, indices)) for heads, expr in variants]


def render(expr: Expr, dialect: Dialect, indices: Mapping[str, Bounds], first: int = 0) -> Printed:
    """Print a plain expression (see `lower`) for indices inside the given ranges.

    Division prints as the language's truncating one where the ranges prove that both agree, and as
    a helper with floor semantics otherwise.  Names count from ``first``.
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
            written, own = _atom(node, dialect), node.op != "const" or node.data >= 0
        elif node.op == "table":
            flat = _offset(node.data, [operand(a, "mul") for a in node.args])
            written, own = dialect.look_up(node.data, flat), True
        else:
            form = _form(node, ranges)
            own = form in dialect.calls
            inner = [text[a.key] if own else operand(a, node.op) for a in node.args]
            written = dialect.formats[form].format(*inner)
        if uses[node.key] > 1 and node.op not in ATOMS:
            name = f"t{first + len(out.lines)}"
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


def _offset(table: Table, at: Sequence[str]) -> str:
    """Row-major offset of an entry."""
    parts = []
    for axis, (text, size) in enumerate(zip(at, table.shape, strict=True)):
        stride = math.prod(table.shape[axis + 1 :])
        if size > 1:
            parts.append(text if stride == 1 else f"{text} * {stride}")
    return " + ".join(parts) or "0"
