"""Splice generated leaves into the templates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from kdsl.expr import triton_source
from kdsl.expr.bounds import Bounds
from kdsl.expr.nodes import Expr
from kdsl.kernels.attention import orders
from kdsl.specs import Attention

PORTABLE = Path(__file__).parent / "forward.py"
BEGIN = "# --- leaves: replaced by generated functions of the same names ---\n"
END = "# --- end of leaves ---\n"

HOPPER = tuple(
    Path(__file__).parent / "hopper" / f"{name}.py"
    for name in ("choices", "softmax", "work", "producer", "steps", "finish", "forward")
)
"""The modules of the Hopper template, each after those it imports."""
MARK = "# --- template ---\n"
GLUON_IMPORTS = """
from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

"""


@cache
def template_hash() -> str:
    """Changes with the templates, and with the modules that print leaves into them."""
    modules = (Path(__file__), Path(orders.__file__), Path(triton_source.__file__))
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in (PORTABLE, *HOPPER, *modules))
    ).hexdigest()[:16]


def source(spec: Attention, template: str = "portable") -> str:
    """The complete kernel file for a spec: a template with the spec's leaves."""
    own = triton_source.HELPERS.lstrip() + "\n\n" + leaves(spec)
    if template == "portable":
        before, rest = PORTABLE.read_text().split(BEGIN)
        _, after = rest.split(END)
        return before + own + after.lstrip("\n")
    texts = [path.read_text() for path in HOPPER]
    head = texts[-1].split("\n\nfrom ")[0].rstrip() + "\n" + GLUON_IMPORTS
    bodies = [text.split(MARK)[1].strip("\n") for text in texts]
    return head + "\n" + "\n\n\n".join([triton_source.for_gluon(own).strip("\n"), *bodies]) + "\n"


def leaves(spec: Attention) -> str:
    """The leaf functions `mask`, `query_index` and `key_index`."""
    bounds = spec.index_bounds
    blocks = {
        name: (0, bounds[stored][1] // size)
        for name, stored, size in zip(("row", "column"), ("qs", "ks"), spec.block, strict=True)
    }
    mask = triton_source.leaf(
        "mask",
        ("q", "k", "qs", "ks", "row", "column", "head", "batch"),
        variants([by_block(e, spec.block) for e in spec.element_mask.variants]),
        bounds | blocks,
        orders.tables(spec),
    )
    parts = [mask, index_leaf("query", bounds["qs"], spec), index_leaf("key", bounds["ks"], spec)]
    return "\n\n".join(parts) + "\n\n"


def by_block(expr: Expr, block: tuple[int, int]) -> Expr:
    """The mask with stored positions over the block size read as the tile's row and column.

    A block map is then looked up once a tile, not once for each pair in it.
    """
    names = {"qs": ("row", block[0]), "ks": ("column", block[1])}

    def change(node: Expr) -> Expr | None:
        if node.op != "floordiv" or node.args[0].op != "var" or node.args[0].data not in names:
            return None
        name, size = names[node.args[0].data]
        divisor = node.args[1].value
        if divisor is None or divisor % size:
            return None
        return Expr("var", (), name) // (divisor // size)

    return expr.rebuild(change)


def index_leaf(which: str, positions: Bounds, spec: Attention) -> str:
    """Original token at a stored position, by head where heads differ."""
    bounds = {"s": positions, "head": (0, spec.heads - 1)}
    exprs = variants(orders.expressions(spec, which))
    return triton_source.leaf(f"{which}_index", ("s", "head"), exprs, bounds, orders.tables(spec))


def variants(exprs: Sequence[Expr]) -> list[tuple[list[int], Expr]]:
    """Heads grouped by equal expressions, most heads last (they need no test)."""
    groups: dict[str, tuple[list[int], Expr]] = {}
    for head, expr in enumerate(exprs):
        groups.setdefault(expr.key, ([], expr))[0].append(head)
    return sorted(groups.values(), key=lambda g: len(g[0]))
