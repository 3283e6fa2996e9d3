"""The shapes suite without a GPU: its cases, its counts, its check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import shapes
from benchmarks.shapes import SHAPES, Made, Subject, pairs, twin
from kdsl import Attention, Grid, masks, orders
from kdsl.kernels.attention.runner import seen
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.masks import Mask
from kdsl.targets import get

pytest.importorskip("torch")
pytest.importorskip("triton")

GRID = Grid(frames=6, height=8, width=13, text=3)


def small() -> Made:
    """A window with text in cubes, two heads."""
    mask = masks.window(GRID, (3, 5, 5)) | masks.text(GRID)
    spec = Attention(
        tokens=GRID, heads=2, head_dim=64, mask=mask, order=orders.cubes(GRID, (1, 4, 5)),
        block=(64, 64), return_lse=True,
    )  # fmt: skip
    return Made(spec, {})


def line(mask: Mask, **fields: Any) -> Attention:
    """Two heads on a line of tokens."""
    return Attention(tokens=200, heads=2, head_dim=64, mask=mask, **fields)


@pytest.mark.parametrize("name", SHAPES)
def test_every_case_has_a_kernel(name: str) -> None:
    """Its spec is whole with its tables, keeps some blocks and not all; both templates take it."""
    made = SHAPES[name]()
    tunable = AttentionTunable(made.spec, made.tables)
    assert 0 < tunable.statistics()["density"] < 1
    for template in ("portable", "hopper"):
        only = AttentionTunable(made.spec, made.tables, templates=(template,))
        assert only.default(get("h100"))["template"] == template


def test_work_is_counted() -> None:
    """Useful pairs are those of the dense mask, with one mask for all heads, with one each, with a
    map; kept blocks are those of the rows."""
    window = small()
    plan = masks.blocks("plan", block=(64, 64)) & masks.causal()
    kept = np.array(np.random.default_rng(0).random((2, 4, 4)) < 0.5, np.uint8)
    by_head = masks.per_head([masks.causal(), masks.window(40)])
    cases = (
        window,
        Made(
            Attention(tokens=200, heads=2, head_dim=64, mask=plan, block=(64, 64)), {"plan": kept}
        ),
        Made(Attention(tokens=200, heads=2, head_dim=64, mask=by_head), {}),
    )
    for made in cases:
        wanted = sum(seen(made.spec, head, 0, made.tables).sum() for head in range(2))
        assert pairs(made.spec, made.tables, "cpu") == wanted
    subject = Subject(window, "cpu")
    assert subject.useful_flop == 4 * 64 * pairs(window.spec, {}, "cpu")
    blocks = window.spec.rows()
    assert subject.kept_flop == 4 * 64 * 64 * 64 * 2 * blocks.counts.sum()
    assert subject.useful_flop < subject.kept_flop


def test_random_blocks_are_as_many() -> None:
    """The twin keeps as many blocks in each row of each head, elsewhere, and none is partial."""
    subject = Subject(small(), "cpu")
    other = twin(subject)
    blocks, own = other.spec.rows(other.tables), subject.tunable.blocks
    assert own is not None
    assert (blocks.counts == np.broadcast_to(own.counts, blocks.counts.shape)).all()
    assert not blocks.partial.any()
    assert (blocks.kept() != own.kept()).any()


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_results_are_checked() -> None:
    """By the reference a call is right; with one key more it is not.  Scores that grow do so."""
    made = small()
    subject = Subject(made, "cpu")
    assert subject.ours("reference").check().right
    wider = masks.window(GRID, (3, 7, 5)) | masks.text(GRID)
    other = Subject(Made(replace(made.spec, tokens=None, mask=wider), {}), "cpu")
    other.runner.samples = subject.runner.samples
    assert not other.ours("reference").check().right
    grown = Subject(replace(made, grows=True), "cpu")
    assert grown.ours("reference").check().right
    q, k = (x[0, 0, :, 0].float() for x in (grown.runner.q, grown.runner.k))
    log2 = q[0] * k * made.spec.softmax_scale / np.log(2)
    assert float(log2[-1] - log2[0]) == pytest.approx(shapes.GROWTH, rel=0.02)
