"""Put generated constants and the generated index function into the template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from kdsl.expr import cuda_source
from kdsl.expr.nodes import Expr
from kdsl.expr.tables import Table
from kdsl.kernels.permute.config import Config, Sizes, method
from kdsl.specs import Permute

FOLDER = Path(__file__).parent
TEMPLATE = FOLDER / "permute.cu"
BEGIN = "// --- stand-in: replaced by the generated part ---\n"
END = "// --- end of the stand-in ---\n"
INCLUDED = ("numbers.cuh", "rows.cuh")

ENTRIES = {
    "PERMUTE": "permute",
    "EACH_ROW": "quantize_rows",
    "BLOCKS": "quantize_blocks",
    "GROUPS": "quantize_groups",
}


@cache
def template_hash() -> str:
    """Changes with the template, and with the modules that print into it."""
    here = [TEMPLATE, *(FOLDER / name for name in INCLUDED), Path(__file__)]
    parts = (*here, FOLDER / "config.py", Path(cuda_source.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:16]


def entry(spec: Permute) -> str:
    """Name of the kernel in the generated file."""
    return ENTRIES[method(spec)]


def source(spec: Permute, config: Config) -> str:
    """The complete CUDA C file for a spec and a configuration; it includes nothing."""
    before, rest = TEMPLATE.read_text().split(BEGIN)
    _, after = rest.split(END)
    for name in INCLUDED:
        after = after.replace(f'#include "{name}"\n', (FOLDER / name).read_text())
    parts = (cuda_source.HELPERS, constants(spec, config), index_leaf(spec))
    return before + "\n".join(parts) + after


def constants(spec: Permute, config: Config) -> str:
    """Definitions of the template's constants."""
    sizes = Sizes(spec, config)
    tokens = sizes.group[0]
    if sizes.method == "GROUPS" and tokens >= spec.grid.tokens:
        tokens = 0
    names = [f"table_{i}" for i in range(len(spec.tables))]
    types = [cuda_source.C_TYPES[t.dtype] for t in spec.tables]
    values: dict[str, object] = {
        "METHOD": sizes.method,
        "ITEM": sizes.item,
        "FROM_BITS": f"from_{spec.dtype}",
        "HEAD_DIM": spec.head_dim,
        "GROUP_TOKENS": tokens,
        "GROUP_CHANNELS": sizes.group[1],
        "VECTOR": config.vector,
        "LANES": config.lanes,
        "ROWS": config.rows,
        "WARPS": config.warps,
        "TABLE_PARAMETERS": "".join(
            f", const {t}* __restrict__ {n}" for t, n in zip(types, names, strict=True)
        ),
        "TABLE_ARGUMENTS": "".join(f", {n}" for n in names),
    }
    return "".join(f"#define {name} {value}".rstrip() + "\n" for name, value in values.items())


def index_leaf(spec: Permute) -> str:
    """The function ``index(s, head, tables...)``: the original token at a stored position."""
    tokens = spec.grid.tokens
    held = tuple(_numbered(t, i) for i, t in enumerate(spec.tables))
    names = dict(zip((t.name for t in spec.tables), held, strict=True))
    exprs = [o.expr.rebuild(lambda node: _renamed(node, names)) for o in spec.order.parts]
    bounds = {"s": (0, max(tokens - 1, 0)), "head": (0, spec.heads - 1)}
    return cuda_source.leaf("index", ("s", "head"), variants(exprs), bounds, held)


def _numbered(table: Table, i: int) -> Table:
    # A user's name may be a word of C or of the template.
    return Table(f"table_{i}", table.shape, table.dtype, table.low, table.high)


def _renamed(node: Expr, names: dict[str, Table]) -> Expr | None:
    return Expr("table", node.args, names[node.data.name]) if node.op == "table" else None


def variants(exprs: Sequence[Expr]) -> list[tuple[list[int], Expr]]:
    """Heads grouped by equal expressions, most heads last (they need no test)."""
    groups: dict[str, tuple[list[int], Expr]] = {}
    for head, expr in enumerate(exprs):
        groups.setdefault(expr.key, ([], expr))[0].append(head)
    return sorted(groups.values(), key=lambda g: len(g[0]))
