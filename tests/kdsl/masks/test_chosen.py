"""Masks that choose blocks in the call: as values, text, JSON, and by the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.blocks import Blocks
from kdsl.errors import InputError, SpecError
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.masks import Choice, Mask
from kdsl.reference.attention import attention
from kdsl.reference.selection import chosen
from kdsl.runtime import build
from kdsl.specs import Attention

GRID = Grid(height=8, width=12, text=5)
TOP = masks.topk(2, block=(16, 32))
ORDER = orders.axes(GRID, "WH")
NAMES = {"masks": masks, "orders": orders, "Grid": Grid, "Choice": Choice, "Table": Table}
MASKS: dict[str, Mask] = {
    "alone": TOP,
    "causal": TOP & masks.causal(),
    "text": TOP & masks.window(GRID, (5, 5)) | masks.text(GRID),
    "mass": masks.topp(0.75, block=(16, 32), capacity=5) | masks.sink(3),
    "order": masks.topk(2, ORDER, (16, 32)) & masks.causal(),
    "heads": masks.per_head([TOP, masks.causal()]),
}


def spec_of(mask: Mask, **fields: Any) -> Attention:
    """Two heads over the grid, in the mask's order."""
    plain = {"tokens": GRID, "heads": 2, "head_dim": 64, "dtype": "float32", "block": (16, 32)}
    return Attention(**{**plain, "mask": mask, "order": mask.order, **fields})


@pytest.mark.parametrize("name", MASKS)
def test_text_and_json_read_back(name: str) -> None:
    """The repr and the JSON of a choice, with capacity, order and what stands beside it, make an
    equal mask and spec; the text names the rule and its number."""
    mask = MASKS[name]
    assert eval(repr(mask), dict(NAMES)) == mask
    spec = spec_of(mask)
    assert Attention.from_json(spec.to_json()) == spec
    assert ("topp(0.75)" if name == "mass" else "topk(2)") in str(mask)
    assert spec.open_tables == ()


def test_numbers_do_not_change_the_program() -> None:
    """How many blocks are chosen is a constant of the choice: it changes the spec's identity and
    not its program, while another combination changes both."""
    two, three = spec_of(TOP), spec_of(masks.topk(3, block=(16, 32)))
    assert two.fingerprint != three.fingerprint
    assert two.program == three.program != spec_of(MASKS["causal"]).program


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ~TOP, "combine by `&` and `|` alone"),
        (lambda: TOP ^ masks.causal(), "combine by `&` and `|` alone"),
        (lambda: ~(TOP & masks.causal()), "combine by `&` and `|` alone"),
        (lambda: TOP | masks.topk(3, block=(16, 32)), "chooses blocks in one way"),
        (lambda: masks.per_head([TOP, masks.topp(0.5, block=(16, 32))]), "in one way"),
        (lambda: masks.topk(0), "count of at least 1"),
        (lambda: masks.topk(True), "masks.topk"),
        (lambda: masks.topk(2.5), "count of at least 1"),
        (lambda: masks.topp(1.5), "at most 1"),
        (lambda: masks.topp(float("nan")), "at most 1"),
        (lambda: masks.topk("2"), "masks.topk"),
        (lambda: masks.topk(2, block=(8, 8)), "at least 16 x 16"),
        (lambda: masks.topk(2, name="no name"), "plain identifier"),
        (lambda: masks.topk(2, capacity=0), "capacity=0"),
        (lambda: masks.blocks("plan", capacity=-1), "capacity=-1"),
        (lambda: spec_of(masks.topk(2)), "block="),
        (lambda: spec_of(MASKS["order"], order=None), "another stored order"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, match: str) -> None:
    """A choice under anything but & and |, two of them, bad numbers: when it is written."""
    with pytest.raises(SpecError, match=match):
        make()


def test_a_file_cannot_hide_a_choice_below_a_not() -> None:
    """JSON meets the same rules: a choice under `~`, a rule that does not exist, a bad number."""
    value = spec_of(TOP).to_json()
    (nodes,) = value["mask"]["variants"]
    for change in (
        [*nodes, ["not", None, len(nodes) - 1]],
        [[op, ["topk", [16, 32], "best", "0x1p+1", None], *a] if op == "chosen" else [op, d, *a]
         for op, d, *a in nodes],
        [[op, ["topk", [16, 32], "topk", "nan", None], *a] if op == "chosen" else [op, d, *a]
         for op, d, *a in nodes],
    ):  # fmt: skip
        with pytest.raises(SpecError):
            Attention.from_json({**value, "mask": {**value["mask"], "variants": [change]}})


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(MASKS)), seed=st.integers(0, 2**31), group=st.sampled_from([1, 2])
)
def test_the_reference_by_its_definition(name: str, seed: int, group: int) -> None:
    """Means, scores, open blocks and the choice, by loops over tokens and blocks: what the mask
    keeps with the block chosen and does not without is what is open; attention over the chosen
    blocks is that of a plain map of them."""
    spec, rng = spec_of(MASKS[name], kv_heads=2 // group), np.random.default_rng(seed)
    q = rng.standard_normal((1, 2, 101, 64))
    k = rng.standard_normal((1, 2 // group, 101, 64))
    found, choice = chosen(spec, q, k), spec.mask.choice
    assert choice is not None
    place = spec.query_order.index()
    tokens = np.arange(101)
    inverse = np.argsort(place)
    for head in range(2):
        with_all, without = (
            spec.settled().element_mask.dense(
                tokens, tokens, head=head, stored=(inverse, inverse),
                tables={choice.name: np.full((2, 7, 4), value, np.uint8)},
            )[np.ix_(place, place)]
            for value in (1, 0)
        )  # fmt: skip
        matters = with_all & ~without
        for row in range(7):
            mine = slice(row * 16, row * 16 + 16)
            means = [k[0, head // group, place[c * 32 : c * 32 + 32]].mean(0) for c in range(4)]
            score = np.array(means) @ q[0, head, place[mine]].mean(0) / 8
            open_ = [c for c in range(4) if matters[mine, c * 32 : c * 32 + 32].any()]
            best = sorted(open_, key=lambda c: -score[c])
            if choice.rule == "topk":
                wanted = best[:2]
            else:
                weight = np.exp(score[best])
                before = np.cumsum(weight) - weight
                wanted = [c for c, b in zip(best, before, strict=True) if b < 0.75 * weight.sum()]
            assert np.nonzero(found[0, head, row])[0].tolist() == sorted(wanted)
    out, _ = attention(spec, q, k, k)
    kept = {choice.name: found[0].astype(np.uint8)}
    assert np.array_equal(out, attention(spec.settled(), q, k, k, kept)[0])


def test_the_estimate_counts_as_the_choice_does() -> None:
    """Density and rows that the tuner sees before any call are those of a real choice, for counts
    do not depend on values; a mass is not known before, a sample of it is taken."""
    rng = np.random.default_rng(0)
    for name in ("alone", "causal", "heads"):
        spec = spec_of(MASKS[name])
        op = build(spec, gpu="a100")
        q = rng.standard_normal((1, 2, 101, 64))
        kept = {"topk": chosen(spec, q, q)[0].astype(np.uint8)}
        real: Blocks = op.blocks(kept)  # type: ignore[attr-defined]
        assert np.array_equal(np.broadcast_to(op.blocks().counts, real.counts.shape), real.counts)  # type: ignore[attr-defined]
        assert np.array_equal(spec.rows(kept).kept(), real.kept())
        with pytest.raises(InputError, match="chosen in the call"):
            spec.rows()
        assert op.cost()["density"] == pytest.approx(real.density)
        assert "density" in op.explain()
    mass = build(spec_of(MASKS["mass"]), gpu="a100")
    assert "density" not in mass.cost()
    with pytest.raises(InputError, match="depends on q and k"):
        mass.blocks()  # type: ignore[attr-defined]
    sample = build(spec_of(MASKS["mass"]), gpu="a100", tables={"topp": np.ones((2, 7, 4), bool)})
    assert sample.cost()["density"] == 1.0


def test_pictures_say_what_they_show() -> None:
    """Without values all that can be chosen is drawn, with a sample the sample; both say so."""
    text = MASKS["causal"].show(GRID, block=(16, 32))
    assert "all that topk(2) chooses from" in text.splitlines()[0]
    lines = text.splitlines()[1:-1]
    assert len(lines) == 7
    assert lines[0].endswith("·" * 3)
    sample = {"topk": np.zeros((2, 7, 4), np.uint8)}
    drawn = TOP.show(GRID, block=(16, 32), tables=sample)
    assert "topk(2) of a sample" in drawn
    assert "█" not in drawn.splitlines()[1]


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_numbers_that_are_none_are_never_chosen() -> None:
    """Blocks whose score is no number are not chosen, infinity is the largest score there is."""
    spec = spec_of(TOP)
    q = np.ones((1, 2, 101, 64))
    k = np.zeros((1, 2, 101, 64))
    k[:, :, 0], k[:, :, 40] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        found = chosen(spec, q, k)
    assert (found == [False, True, True, False]).all()
