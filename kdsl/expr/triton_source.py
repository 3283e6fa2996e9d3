"""Print expressions as a Triton leaf function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdsl.expr.bounds import Bounds, check_int32
from kdsl.expr.nodes import Expr
from kdsl.expr.printing import Dialect, render
from kdsl.expr.tables import Table

HELPERS = '''
@triton.jit
def floordiv(a, b):
    """Quotient rounded down; Triton's own truncates."""
    return (a - (a % b + b) % b) // b


@triton.jit
def floormod(a, b):
    """Remainder with the sign of a positive divisor."""
    return (a % b + b) % b
'''


def _look_up(table: Table, offset: str) -> str:
    load = f"tl.load({table.name} + ({offset}))"
    return load if table.dtype == "int32" else f"{load}.to(tl.int32)"


DIALECT = Dialect(
    formats={
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "floordiv": "{0} // {1}",
        "mod": "{0} % {1}",
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
        "floor": "floordiv({0}, {1})",
    },
    calls=frozenset({"abs", "floormod", "floor", "min", "max", "where"}),
    look_up=_look_up,
    true="True",
    false="False",
)


def leaf(
    name: str,
    params: Sequence[str],
    variants: Sequence[tuple[Sequence[int], Expr]],
    indices: Mapping[str, Bounds],
    tables: Sequence[Table] = (),
) -> str:
    """Source of one leaf: ``name(*params, tables)``.

    ``variants`` are pairs of heads and the expression those heads use; with one pair the heads do
    not matter.  Tables arrive as a tuple of pointers in the order given.
    """
    lines = ["@triton.jit", f"def {name}({', '.join([*params, 'tables'])}):"]
    used = {n.data.name for _, e in variants for n in e.walk() if n.op == "table"}
    lines += [f"    {t.name} = tables[{i}]" for i, t in enumerate(tables) if t.name in used]
    is_mask = variants[0][1].is_bool
    everything = " & ".join(f"({p} >= 0)" for p in params[:2]) if is_mask else f"{params[0]} + 0"
    if len(variants) == 1:
        body, result = _body(variants[0][1], indices, "    ")
        # A mask must come out as a tensor even where it is the same for all tokens.
        if variants[0][1].value is not None:
            result = everything if result == "True" else f"~({everything})" if is_mask else result
        return "\n".join([*lines, *body, f"    return {result}", ""])
    # The heads' branches must agree in shape, so each one narrows the same full-size value.
    lines.append(f"    out = {everything}")
    for i, (heads, expr) in enumerate(variants):
        body, result = _body(expr, indices, "        ")
        if i + 1 == len(variants):
            lines.append("    else:")
        else:
            test = " or ".join(f"head == {h}" for h in heads)
            lines.append(f"    {'if' if i == 0 else 'elif'} {test}:")
        lines += [
            *body,
            f"        out = out & ({result})" if is_mask else f"        out = {result}",
        ]
    return "\n".join([*lines, "    return out", ""])


def _body(expr: Expr, indices: Mapping[str, Bounds], indent: str) -> tuple[list[str], str]:
    check_int32(expr, indices)
    printed = render(expr, DIALECT, indices)
    return [f"{indent}{name} = {text}" for name, text in printed.lines], printed.result
