"""Splice generated leaves into the template."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from kdsl.expr import triton_source
from kdsl.kernels.attention import heads, tables, tiles
from kdsl.kernels.attention.heads import grouped
from kdsl.specs import Attention

TEMPLATE = Path(__file__).parent / "forward.py"
COMMON = Path(__file__).parent / "common.py"
IMPORT = re.compile(r"from kdsl\.kernels\.attention\.common import \(\n(?:    \w+,\n)+\)\n")
BEGIN = "# --- leaves: replaced by generated functions of the same names ---\n"
END = "# --- end of leaves ---\n"


@cache
def template_hash(template: Path = TEMPLATE) -> str:
    """Changes with the template, what it shares with others, and what prints leaves into it."""
    modules = (tables, heads, tiles, triton_source)
    parts = (template, COMMON, Path(__file__), *(Path(str(m.__file__)) for m in modules))
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:16]


def source(spec: Attention, template: Path = TEMPLATE) -> str:
    """The complete kernel file for a spec: the template, what it shares, the spec's leaves."""
    before, rest = inlined(template).split(BEGIN)
    _, after = rest.split(END)
    return before + triton_source.HELPERS + "\n\n" + leaves(spec) + after.lstrip("\n")


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
            {"s": bounds[stored], "head": bounds["head"]},
            held,
        )
        for which, stored in (("query", "qs"), ("key", "ks"))
    ]
    return "\n\n".join([facts, mask, *indices]) + "\n\n"
