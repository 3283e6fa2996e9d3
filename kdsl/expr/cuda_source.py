"""Print expressions as a CUDA C leaf function, which a host compiler accepts too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdsl.expr.bounds import Bounds
from kdsl.expr.nodes import Expr
from kdsl.expr.printing import Dialect, Variant, prepare, render, table_name
from kdsl.expr.tables import Table

HELPERS = """\
#ifdef __CUDACC__
#define KDSL_LEAF __host__ __device__ __forceinline__
#else
#define KDSL_LEAF static inline
#endif

// Quotient rounded down; C truncates.  The divisor is positive.
KDSL_LEAF int floordiv(int a, int b) { return a / b - (a % b < 0); }
KDSL_LEAF int floormod(int a, int b) { return a % b + (a % b < 0 ? b : 0); }
KDSL_LEAF int absolute(int a) { return a < 0 ? -a : a; }
KDSL_LEAF int minimum(int a, int b) { return a < b ? a : b; }
KDSL_LEAF int maximum(int a, int b) { return a > b ? a : b; }
"""

C_TYPES = {"int32": "int", "int16": "short", "uint8": "unsigned char", "int8": "signed char"}

DIALECT = Dialect(
    formats={
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "floordiv": "{0} / {1}",
        "mod": "{0} % {1}",
        "shr": "{0} >> {1}",
        "floor": "floordiv({0}, {1})",
        "floormod": "floormod({0}, {1})",
        "abs": "absolute({0})",
        "min": "minimum({0}, {1})",
        "max": "maximum({0}, {1})",
        "where": "({0} ? {1} : {2})",
        "lt": "{0} < {1}",
        "le": "{0} <= {1}",
        "eq": "{0} == {1}",
        "ne": "{0} != {1}",
        "and": "{0} && {1}",
        "or": "{0} || {1}",
        "not": "!{0}",
        "clear": "(((({0}) | ({1})) & ({2})) == 0)",
    },
    calls=frozenset({"abs", "floormod", "floor", "min", "max", "clear"}),
    look_up=lambda table, offset: f"{table_name(table)}[{offset}]",
    true="true",
    false="false",
)


def leaf(
    name: str,
    params: Sequence[str],
    variants: Sequence[Variant],
    indices: Mapping[str, Bounds],
    tables: Sequence[Table] = (),
) -> str:
    """Source of one leaf: ``name(int params..., const T* tables...)``.

    ``variants`` are pairs of heads and the expression those heads use; ``params`` must hold
    ``head`` when there are several.  Table pointers follow the indices, in the order given.
    SpecError where a value may leave 32 bits or a look-up its table.
    """
    arguments = [f"int {p}" for p in params]
    arguments += [f"const {C_TYPES[t.dtype]}* __restrict__ {table_name(t)}" for t in tables]
    kind = "bool" if variants[0][1].is_bool else "int"
    lines = [f"KDSL_LEAF {kind} {name}({', '.join(arguments)}) {{"]
    plain = prepare(variants, indices)
    if len(plain) == 1:
        return "\n".join([*lines, *_body(plain[0][1], indices, "  "), "}", ""])
    lines.append("  switch (head) {")
    for i, (heads, expr) in enumerate(plain):
        labels = [f"case {h}:" for h in heads] if i + 1 < len(plain) else ["default:"]
        lines.append(f"    {' '.join(labels)} {{")
        lines += [*_body(expr, indices, "      "), "    }"]
    return "\n".join([*lines, "  }", "}", ""])


def _body(expr: Expr, indices: Mapping[str, Bounds], indent: str) -> list[str]:
    printed = render(expr, DIALECT, indices)
    lines = [f"{indent}const auto {name} = {text};" for name, text in printed.lines]
    return [*lines, f"{indent}return {printed.result};"]
