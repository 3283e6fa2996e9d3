"""Pictures of masks show the blocks that dense NumPy finds."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings

from kdsl import masks, orders
from kdsl.draw import ASCII, UNICODE, show, svg
from kdsl.errors import SpecError
from kdsl.grid import Grid
from tests.strategies import Problem, blocks_of, problems

VIDEO = Grid(frames=3, height=4, width=4, text=4)
SVG = "{http://www.w3.org/2000/svg}"


def test_causal() -> None:
    """A small causal mask, character by character, with its line of counts."""
    assert show(masks.causal(), 32, block=(8, 8)) == (
        "32 x 32 tokens in blocks of 8 x 8\n"
        "▒···\n"
        "█▒··\n"
        "██▒·\n"
        "███▒\n"
        "6 full, 4 partial, 6 empty; density 62.5 %; longest row 4 of 4"
    )
    assert masks.causal().show(32, block=(8, 8), ascii=True).splitlines()[1:5] == [
        "+...",
        "#+..",
        "##+.",
        "###+",
    ]


def test_text_and_windows_under_an_order() -> None:
    """Text rows and columns stay dense; the order is named above the picture."""
    mask = masks.window(VIDEO, (1, 3, 3)) | masks.text(VIDEO)
    drawn = mask.show(VIDEO, order=orders.axes(VIDEO, "HWF"), block=(4, 4))
    heading, *lines, counts = drawn.splitlines()
    assert heading.endswith("'HWF')")
    assert lines[0] == "█" * 13
    assert all(line[0] == "█" for line in lines)
    assert counts.startswith("25 full, ")


@settings(max_examples=20)
@given(problems(1))
def test_characters_are_the_blocks(problem: Problem) -> None:
    """Each character says whether its block is empty, mixed or full in the dense mask."""
    mask = problem.masks[0]
    drawn = show(
        mask,
        problem.queries,
        problem.keys,
        order=problem.query_order,
        block=problem.block,
        head=1,
        batch=1,
        tables=problem.tables,
        width=96,
    )
    # Keys follow the queries' order on their own grid, and keep theirs on another.
    same = problem.queries == problem.keys
    key_order = problem.query_order if same else orders.identity(problem.keys)
    parts = problem.masks, problem.queries, problem.keys, problem.query_order, key_order
    dense = Problem(*parts, problem.block, problem.tables).truth(mask, 1, 1)
    some, every = blocks_of(dense, problem.block)
    kinds = some.astype(int) + every
    assert drawn.splitlines()[1:-1] == ["".join(UNICODE[n] for n in row) for row in kinds]


def test_wide_masks_fit_the_line() -> None:
    """More blocks than `width` are gathered to cells; the counts still count blocks."""
    drawn = (masks.causal() & masks.window(4096)).show(1 << 20, block=(128, 128), width=32)
    heading, *lines, counts = drawn.splitlines()
    assert heading == "1,048,576 x 1,048,576 tokens in blocks of 128 x 128, 256 x 256 blocks a cell"
    assert [len(line) for line in lines] == [32] * 32
    assert counts.startswith("253,456 full, 16,352 partial, ")
    assert {c for line in lines for c in line} == {"▒", "·"}


def test_block_defaults_to_what_fits() -> None:
    """Without a block the smallest power of two is taken; short sequences show single tokens."""
    assert show(masks.causal(), 16).startswith("16 x 16 tokens in blocks of 1 x 1\n█···")
    assert show(masks.causal(), 100, 300, width=20).startswith(
        "100 x 300 tokens in blocks of 16 x 16"
    )


def test_heads_batches_and_tables() -> None:
    """A picture is of one head of one batch item, with tables as in a call."""
    mask = masks.per_head([masks.causal(), masks.everything()])
    assert show(mask, 16, block=(16, 16), head=0).splitlines()[1] == "▒"
    assert show(mask, 16, block=(16, 16), head=1).splitlines()[1] == "█"
    plan = masks.blocks("plan", block=(16, 16))
    kept = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 1]]])
    drawn = show(plan, 32, block=(16, 16), head=1, tables={"plan": kept})
    assert drawn.splitlines()[1:3] == ["·█", "██"]
    ids = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    assert show(masks.same(ids), 4, batch=1).splitlines()[1:5] == ["█···", "·███", "·███", "·███"]


def test_svg_draws_the_same_cells() -> None:
    """The SVG parses, has a title and a legend, and its paths cover the characters' cells."""
    mask = masks.window(VIDEO, (1, 3, 3)) | masks.text(VIDEO)
    drawn = svg(mask, VIDEO, block=(4, 4), title="text & <windows>")
    root = ElementTree.fromstring(drawn)
    title, style = root.find(f"{SVG}title"), root.find(f"{SVG}style")
    assert title is not None
    assert title.text == "text & <windows>"
    assert style is not None
    assert "prefers-color-scheme:dark" in str(style.text)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert texts[:3] == ["full", "partial", "empty"]
    lines = show(mask, VIDEO, block=(4, 4)).splitlines()
    assert "; ".join(str(t) for t in texts[-2:]) == lines[-1]
    cells = {sign: np.zeros((13, 13), bool) for sign in "█▒"}
    for path, sign in zip(root.iter(f"{SVG}path"), "█▒", strict=True):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", path.get("d", "")):
            cells[sign][int(y), int(x) : int(x) + int(width)] = True
    for sign, found in cells.items():
        wanted = np.array([[c == sign for c in line] for line in lines[1:-1]])
        np.testing.assert_array_equal(found, wanted)
    assert masks.causal().svg(16).startswith("<svg ")


@pytest.mark.parametrize("tokens", [0, 1])
def test_short_sequences(tokens: int) -> None:
    """No tokens give a picture of nothing; one gives one character."""
    lines = show(masks.causal(), tokens).splitlines()
    assert len(lines) == 2 + tokens
    ElementTree.fromstring(svg(masks.causal(), tokens))
    assert len(ASCII) == len(UNICODE) == 3


def test_errors() -> None:
    """Wrong grids, heads and widths are refused."""
    with pytest.raises(SpecError, match="the mask speaks of"):
        show(masks.text(VIDEO), 52)
    with pytest.raises(SpecError, match=r"head 2 of a mask, order and tables for \[2\] heads"):
        show(masks.per_head([masks.causal()] * 2), 8, head=2)
    with pytest.raises(SpecError, match="width=0"):
        show(masks.causal(), 8, width=0)
