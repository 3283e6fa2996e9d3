"""Splice generated leaves into the templates."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from kdsl.expr import triton_source
from kdsl.kernels.attention import heads, ranges, tables, tiles
from kdsl.kernels.attention.heads import grouped
from kdsl.specs import Attention

PORTABLE = Path(__file__).parent / "forward.py"
COMMON = Path(__file__).parent / "common.py"
IMPORT = re.compile(r"from kdsl\.kernels\.attention\.common import \(\n(?:    \w+,\n)+\)\n")
BEGIN = "# --- leaves: replaced by generated functions of the same names ---\n"
END = "# --- end of leaves ---\n"

HOPPER = tuple(
    Path(__file__).parent / "hopper" / f"{name}.py"
    for name in (
        *("choices", "copy", "softmax", "bits", "work", "producer", "steps", "finish", "forward"),
    )
)
"""The modules of the Hopper template, each after those it imports."""
HOPPER_BACKWARD = (
    HOPPER[0],
    *(
        Path(__file__).parent / "hopper" / "backward" / f"{name}.py"
        for name in ("choices", "weights", "keys", "queries")
    ),
)
"""The modules of its backward."""
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
def template_hash(*templates: Path) -> str:
    """Changes with templates (the forward's unless given), what they share, what prints leaves."""
    modules = (tables, heads, ranges, tiles, triton_source)
    own = templates or (PORTABLE, *HOPPER)
    parts = (*own, COMMON, Path(__file__), *(Path(str(m.__file__)) for m in modules))
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:16]


def source(spec: Attention, template: Path = PORTABLE) -> str:
    """The complete kernel file for a spec: the template, what it shares, the spec's leaves."""
    before, rest = inlined(template).split(BEGIN)
    _, after = rest.split(END)
    return before + triton_source.HELPERS + "\n\n" + leaves(spec) + after.lstrip("\n")


def hopper_source(spec: Attention, modules: tuple[Path, ...] = HOPPER) -> str:
    """The complete file of the Hopper template for a spec: the forward's, or other modules."""
    own = triton_source.HELPERS.lstrip() + "\n\n" + leaves(spec)
    texts = [path.read_text() for path in modules]
    head = texts[-1].split("\n\nfrom ")[0].rstrip() + "\n" + GLUON_IMPORTS
    bodies = [text.split(MARK)[1].strip("\n") for text in texts]
    return head + "\n" + "\n\n\n".join([triton_source.for_gluon(own).strip("\n"), *bodies]) + "\n"


def inlined(template: Path) -> str:
    """A template with the text of `common` in place of its import: it stands alone."""
    text = template.read_text()
    shared = BEGIN + COMMON.read_text().split(BEGIN)[1]
    return IMPORT.sub(lambda _: shared, text)


def leaves(spec: Attention) -> str:
    """The leaf functions `tile_facts`, `mask`, `query_index` and `key_index`."""
    held = tables.tables(spec)
    bounds = tables.index_bounds(spec)
    variants, known = tables.masks(spec)
    facts = triton_source.leaf(
        "tile_facts", ("row", "column", "head", "batch"), [([], known)], bounds, held
    )
    params = ("q", "k", "qs", "ks", "row", "column", "known", "head", "batch")
    mask = triton_source.leaf("mask", params, variants, bounds, held)
    indices = [
        triton_source.leaf(
            f"{which}_index",
            ("s", "head"),
            grouped(tables.index(spec, which)),
            {"s": spec.index_bounds[stored], "head": bounds["head"]},
            held,
        )
        for which, stored in (("query", "qs"), ("key", "ks"))
    ]
    return "\n\n".join([facts, mask, *indices]) + "\n\n"
