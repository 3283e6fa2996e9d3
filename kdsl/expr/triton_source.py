"""Print expressions as a Triton leaf function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kdsl.expr.bounds import Bounds
from kdsl.expr.nodes import Expr
from kdsl.expr.printing import Dialect, Variant, prepare, render, table_name
from kdsl.expr.tables import Table

HELPERS = '''
@triton.jit
def floordiv(a, b):
    """Quotient rounded down; Triton's own truncates.  The divisor is positive."""
    return tl.where(a % b < 0, a // b - 1, a // b)


@triton.jit
def floormod(a, b):
    """Remainder with the sign of a positive divisor."""
    return tl.where(a % b < 0, a % b + b, a % b)
'''


def _look_up(table: Table, offset: str) -> str:
    load = f"tl.load({table_name(table)} + ({offset}))"
    return load if table.dtype == "int32" else f"{load}.to(tl.int32)"


DIALECT = Dialect(
    formats={
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "floordiv": "{0} // {1}",
        "mod": "{0} % {1}",
        "shr": "{0} >> {1}",
        "floormod": "floormod({0}, {1})",
        "abs": "tl.abs({0})",
        "min": "tl.minimum({0}, {1})",
        "max": "tl.maximum({0}, {1})",
        "where": "tl.where({0}, {1}, {2})",
        "lt": "{0} < {1}",
        "le": "{0} <= {1}",
        "eq": "{0} == {1}",
        "ne": "{0} != {1}",
        "and": "{0} & {1}",
        "or": "{0} | {1}",
        "not": "~{0}",
        "clear": "(((({0}) | ({1})) & ({2})) == 0)",
        "floor": "floordiv({0}, {1})",
    },
    calls=frozenset({"abs", "floormod", "floor", "min", "max", "clear", "where"}),
    look_up=_look_up,
    true="True",
    false="False",
)


def for_gluon(source: str) -> str:
    """Leaves and helpers as Gluon has them: the same functions in another module."""
    return re.sub(r"\btl\.", "gl.", source.replace("@triton.jit", "@gluon.jit"))


def leaf(
    name: str,
    params: Sequence[str],
    variants: Sequence[Variant],
    indices: Mapping[str, Bounds],
    tables: Sequence[Table] = (),
    select: bool = False,
) -> str:
    """Source of one leaf: ``name(*params, tables)``.

    ``variants`` are pairs of heads and the expression those heads use; with one pair the heads do
    not matter.  Tables arrive as a tuple of pointers in the order given.  A mask comes out in the
    shape of its first two parameters together; an index speaks of its first parameter and the head,
    and comes out in that one's shape.  SpecError where a value may leave 32 bits or a look-up its
    table.

    With ``select`` all variants are worked out and the heads choose among them, in place of
    branches.
    """
    plain = prepare(variants, indices)
    used = {n.data.name for _, e in plain for n in e.walk() if n.op == "table"}
    lines = ["@triton.jit", f"def {name}({', '.join([*params, 'tables'])}):"]
    lines += [f"    {table_name(t)} = tables[{i}]" for i, t in enumerate(tables) if t.name in used]
    if len(plain) == 1:
        body, result = _body(plain[0][1], params, indices, "    ", 0)
        return "\n".join([*lines, *body, f"    return {result}", ""])
    named = 0
    if select:
        found: list[str] = []
        for heads, expr in plain:
            body, result = _body(expr, params, indices, "    ", named)
            named += len(body)
            lines += [*body, f"    out_{len(found)} = {result}"]
            found.append(" | ".join(f"(head == {h})" for h in heads))
        *rest, last = (f"out_{i}" for i in range(len(found)))
        for test, out in zip(found, rest, strict=False):
            last = f"tl.where({test}, {out}, {last})"
        return "\n".join([*lines, f"    return {last}", ""])
    for i, (heads, expr) in enumerate(plain):
        # A name that two branches give to different types is an error of Triton's.
        body, result = _body(expr, params, indices, "        ", named)
        named += len(body)
        test = " or ".join(f"head == {h}" for h in heads)
        lines.append(
            f"    {'if' if i == 0 else 'elif'} {test}:" if i + 1 < len(plain) else "    else:"
        )
        lines += [*body, f"        out = {result}"]
    return "\n".join([*lines, "    return out", ""])


def _body(
    expr: Expr, params: Sequence[str], indices: Mapping[str, Bounds], indent: str, first: int
) -> tuple[list[str], str]:
    printed = render(expr, DIALECT, indices, first)
    lines = [f"{indent}{name} = {text}" for name, text in printed.lines]
    return lines, _full_size(expr, printed.result, params)


def _full_size(expr: Expr, result: str, params: Sequence[str]) -> str:
    """The result as a tensor of the leaf's shape, also where it does not depend on all of it.

    Branches for different heads must agree in type and shape, and templates index the result.
    """
    used = expr.variables()
    if not expr.is_bool:
        return result if params[0] in used else f"{params[0]} * 0 + ({result})"
    # Stored positions have the shape of the tokens at them.
    if all({p, f"{p}s"} & used for p in params[:2]):
        return result
    everything = " & ".join(f"({p} >= 0)" for p in params[:2])
    if expr.value is None:
        return f"{everything} & ({result})"
    return everything if expr.value else f"~({everything})"
