"""The kernels that make lists compile for every architecture that attention declares."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from kdsl import masks, orders, targets
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.attention import arguments, generate
from kdsl.kernels.lists import choose, template
from kdsl.runtime import codecache
from kdsl.runtime.compiled import compile_triton
from kdsl.specs import Attention
from kdsl.targets import Target

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090")]
CLASSIFY = Path(template.__file__).parent / "classify.py"
INT = "i32"
NIGHT = settings.default.max_examples > 50
T = TypeVar("T")


@pytest.mark.parametrize("number", range(len(CHIPS)), ids=[f"sm_{t.cc}" for t in CHIPS])
def test_list_lines(number: int) -> None:
    """A form of a map and a direction for each chip, all of them together, in registers alone."""
    target, turned = CHIPS[number], number % 2 == 1
    form = ("bytes", "bits", "codes")[number // 2]
    pointers = ("start", "full", "partial", "index")
    integers = ("f_b", "f_h", "f_row", "p_b", "p_h", "p_row", "heads", "lines", "entries",
                "capacity", "shared")  # fmt: skip
    signature = {"full_map": "*u8", "overflow": "*u8", **dict.fromkeys(pointers, "*i32")}
    signature |= dict.fromkeys(integers, INT)
    constants = {"f_column": 1, "p_column": 1, "FORM": form, "TURNED": turned, "RAGGED": True,
                 "LINES": 32 if turned else 4, "CHUNK": 128 if turned else 256}  # fmt: skip
    if form == "codes":
        constants["partial_map"] = None
    else:
        signature["partial_map"] = "*u8"
    made = compile_triton(
        template.list_lines, target, signature, constants, options={"num_warps": 4}
    )
    assert made.spill_bytes == 0


def turns(target: Target, *choices: T) -> tuple[T, ...]:
    """Of choices one for each chip, by turns, so that all are tried; at night each on each chip."""
    return choices if NIGHT else (choices[CHIPS.index(target) % len(choices)],)


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_order_and_marks(target: Target) -> None:
    """The order of tiles, for few long and for many heads, and codes of lists."""
    signature = dict.fromkeys(("full", "partial", "tiles"), "*i32")
    signature |= dict.fromkeys(("l_b", "l_h", "batches", "groups", "lines"), INT)
    for groups, lines in turns(target, (16, 256), (64, 1024)):
        sizes = {"SUMMED": 1, "GROUPS": groups, "LINES": 16, "CHUNK": 256}
        sizes["WIDE"] = min(lines, 4096 // groups)
        made = compile_triton(
            template.order_tiles, target, signature, sizes, options={"num_warps": 8}
        )
        assert made.spill_bytes == 0
    signature = dict.fromkeys(("start", "full", "partial", "index"), "*i32") | {"codes": "*u8"}
    signature |= dict.fromkeys(("l_b", "l_h", "heads", "rows", "columns"), INT)
    compile_triton(template.mark_blocks, target, signature, {"CHUNK": 256})


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_pooling_and_choice(target: Target) -> None:
    """Means of blocks of bfloat16, and both ways to choose among 1,024 columns, spill nothing."""
    integers = ("x_b", "x_h", "x_n", "index_h", "heads", "blocks", "tokens", "head_dim")
    plain = {"x": "*bf16", "out": "*fp32", **dict.fromkeys(integers, INT)}
    sizes = {"x_d": 1, "SHARED": 2, "BLOCK": 128, "STRIP": 32, "WIDTH": 128}
    forms: tuple[tuple[dict[str, str], dict[str, object]], ...] = (
        ({}, {"index": None}),
        ({"index": "*i32"}, {}),
    )
    for extra, none in turns(target, *forms):
        signature, held = {**plain, **extra}, {**sizes, **none}
        assert compile_triton(choose.pool_blocks, target, signature, held).spill_bytes == 0
    pointers = {"scores": "*fp32", "always": "*u8", "allowed": "*u8", "kept": "*u8"}
    integers = ("a_b", "a_h", "a_row", "m_b", "m_h", "m_row", "heads", "rows", "columns")
    signature = {**pointers, **dict.fromkeys(integers, INT), "wanted": "fp32"}
    for by_mass in turns(target, False, True):
        sizes = {"a_column": 1, "m_column": 1, "BY_MASS": by_mass, "WIDTH": 1024}
        assert compile_triton(choose.choose_blocks, target, signature, sizes).spill_bytes == 0


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_classify(target: Target) -> None:
    """The generated leaf in the kernel that sorts blocks: documents, windows in an order, a
    map, a choice."""
    grid = Grid(frames=5, height=9, width=14, text=20)
    doc = Table("doc", (2, grid.tokens), "uint8", 0, 9)
    order = orders.cubes(grid, (2, 4, 5))
    for mask in turns(
        target,
        masks.same(doc),
        masks.window(grid, (3, 5, 5)) | masks.text(grid),
        masks.blocks("plan", order=order) & masks.causal(),
        masks.topk(4, order) & masks.causal(),
    ):
        spec = Attention(tokens=grid, heads=2, head_dim=64, mask=mask, order=order)
        module = codecache.load(generate.source(spec, CLASSIFY))
        signature: dict[str, object] = {"codes": "*u8"}
        arguments.add_tables(spec, signature, [])
        names = ("heads", "rows", "columns", "queries", "keys")
        compile_triton(
            module.classify_blocks,
            target,
            {**signature, **dict.fromkeys(names, INT)},
            {"MASK_M": 128, "MASK_N": 128, "STRIP": 16},
            options={"num_warps": 4},
        )
