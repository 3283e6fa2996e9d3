"""The physical bound, and what a calibration adds to it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdsl
from kdsl import masks, targets
from kdsl.errors import StoreError
from kdsl.runtime import calibration
from kdsl.runtime.calibration import Calibration, CostModel
from kdsl.runtime.predict import (
    LEVEL,
    Figures,
    Loading,
    Physics,
    Prediction,
    finish,
    physical_us,
    predict,
    traits,
)
from kdsl.runtime.tunables import tunable_for
from kdsl.work import Work

H100 = targets.get("h100")
PARAMS = {"block_m": 128, "num_stages": 2}
WORK = Work(
    flop=1e12,
    useful_flop=9e11,
    bytes=1e8,
    unit="bfloat16",
    programs=3000,
    threads=128,
    shared_bytes=65536,
    steps=np.arange(3000, 0, -1) // 30 + 1,
    step_flop=4.0 * 128 * 64 * 128,
    step_bytes=2.0 * 64 * 128 * 2,
    step_exp=128.0 * 64,
    partial=0.2,
    registers=168,
)
FITTED = Calibration(
    op="attention",
    unit="bfloat16",
    cc=90,
    overhead=2.0,
    l2=4.0,
    exposed=0.6,
    intercept=0.1,
    weights={"num_stages=2": 0.2, "partial": 0.5},
    low=-1.0,
    high=1.0,
    typical_error=1.2,
    large_error=1.6,
    rows=100,
    workloads=("clip",),
    devices=("h100",),
    templates=("t",),
    evidence="e",
)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=300), st.integers(1, 40))
def test_makespans_are_between_their_bounds(times: list[int], slots: int) -> None:
    """List scheduling ends no earlier than the longest program and the even share, and no later
    than twice the larger of the two (Graham's bound); beyond 64 programs a slot by an estimate."""
    ordered = np.array(sorted(times, reverse=True), np.float64)
    found = finish(ordered, slots)
    bound = max(ordered.max(), ordered.sum() / slots)
    assert bound * (1 - 1e-12) <= found or len(times) > 64 * slots
    assert found <= 2 * bound * (1 + 1e-12)


def test_a_tail_shows() -> None:
    """The same steps in a few long programs take longer than spread evenly."""
    even = replace(WORK, steps=np.full(3000, 50))
    skewed = np.full(3000, 40)
    skewed[:30] = 1040
    loading = Loading.of(WORK, H100)
    assert skewed.sum() == even.steps.sum()
    assert physical_us(replace(WORK, steps=skewed), H100, loading) > 1.5 * physical_us(
        even, H100, loading
    )


def test_more_of_anything_takes_longer() -> None:
    """Spills, exposed exponentials, overhead and bytes lengthen the bound; a faster L2 does not."""
    loading = Loading.of(WORK, H100)
    plain = physical_us(WORK, H100, loading)
    assert physical_us(WORK, H100, replace(loading, spill_bytes=512)) > plain
    assert physical_us(WORK, H100, loading, Physics(exposed=1.0)) > plain
    assert physical_us(WORK, H100, loading, Physics(overhead=8.0)) > plain
    assert physical_us(WORK, H100, loading, Physics(l2=9.0)) <= plain
    assert physical_us(replace(WORK, bytes=1e12), H100, loading) > plain
    assert physical_us(replace(WORK, step_flop=0.0), H100, loading) < plain


def test_the_bound_is_below_the_peak() -> None:
    """No prediction of the bound does more operations a second than the data sheet's peak."""
    for target in targets.known():
        us = physical_us(WORK, target, Loading.of(WORK, target))
        total = float(WORK.steps.sum()) * WORK.step_flop
        assert total / us * 1e6 <= (target.peak("bfloat16") or math.inf)


def test_figures_of_the_compiler_come_first() -> None:
    """Registers, spills and shared memory are the compiler's where it was asked, else estimates."""
    guess = Loading.of(WORK, H100)
    assert (guess.registers, guess.spill_bytes) == (168, 0)
    told = Loading.of(WORK, H100, Figures(64, 8, 1024))
    assert (told.registers, told.spill_bytes) == (64, 8)
    assert told.slots > guess.slots
    assert Loading.of(replace(WORK, shared_bytes=10**9), H100).slots == 1


def test_a_calibration_is_a_factor() -> None:
    """Weights of the traits at hand add up, others do not count, and the sum stays within what the
    fit has seen."""
    loading = Loading.of(WORK, H100)
    found = FITTED.factor(PARAMS, WORK, loading)
    assert found == pytest.approx(math.exp(0.1 + 0.2 + 0.5 * 0.2))
    assert replace(FITTED, high=0.3).factor(PARAMS, WORK, loading) == pytest.approx(math.exp(0.3))
    assert replace(FITTED, low=0.9).factor(PARAMS, WORK, loading) == pytest.approx(math.exp(0.9))
    said = predict(PARAMS, WORK, H100, calibration=FITTED)
    assert said.us == physical_us(WORK, H100, loading, FITTED.physics) * found
    assert (said.typical_error, said.model) == (1.2, FITTED.id)
    assert "typical error 1.20x" in str(said)


def test_another_capability_is_no_evidence() -> None:
    """A calibration of other cards orders configurations, but its error is not claimed."""
    said = predict(PARAMS, WORK, targets.get("a100"), calibration=FITTED)
    assert said.typical_error is None
    assert "never calibrated on such a card" in str(said)
    assert "never calibrated" in str(Prediction(10.0))


def test_traits_of_a_workload_do_not_depend_on_the_choice() -> None:
    """What lifts a workload as a whole is the same for two tiles of it."""
    spec = kdsl.Attention(tokens=1024, heads=2, head_dim=64, mask=masks.causal())
    tunable = tunable_for(spec)
    seen = set()
    for block_n in (64, 128):
        params = {**tunable.default(H100), "block_n": block_n}
        work = tunable.work(params, H100)
        found = traits(params, work, Loading.of(work, H100))
        seen.add(tuple(found[name] for name in LEVEL))
    assert len(seen) == 1


def test_files_round_trip() -> None:
    """Text gives the same calibration back, in one form whatever the order, and ids follow what
    predictions depend on."""
    other = replace(FITTED, cc=80, intercept=0.5)
    text = calibration.text((FITTED, other))
    assert calibration.parse(text, "here") == (other, FITTED)
    assert calibration.text((other, FITTED)) == text
    assert replace(FITTED, weights={"partial": 0.5}).id != FITTED.id


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 2, "entries": []}', '{"version": 1, "entries": [{}]}',
     '{"version": 1, "entries": [3]}'],
)  # fmt: skip
def test_broken_files_are_refused(text: str) -> None:
    """What is no file of calibrations is an error that names the place."""
    with pytest.raises(StoreError):
        calibration.parse(text, "here")
    infinite = json.loads(calibration.text((FITTED,)))
    infinite["entries"][0]["intercept"] = float("inf")
    with pytest.raises(StoreError):
        calibration.parse(json.dumps(infinite), "here")


def test_the_users_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's entry hides the shipped one; without the capability the nearest speaks."""
    monkeypatch.setattr(calibration, "shipped", lambda: (FITTED, replace(FITTED, cc=80)))
    path = tmp_path / "calibration.json"
    assert calibration.find("attention", "bfloat16", 90, path) == FITTED
    path.write_text(calibration.text((replace(FITTED, intercept=0.7),)))
    mine = calibration.find("attention", "bfloat16", 90, path)
    assert mine is not None
    assert mine.intercept == 0.7
    near = calibration.find("attention", "bfloat16", 89, path)
    assert near is not None
    assert near.intercept == 0.7
    assert calibration.find("attention", "bfloat16", 80, path) == replace(FITTED, cc=80)
    assert calibration.find("permute", "bfloat16", 90, path) is None


def test_operators_say_how_good_a_prediction_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`explain` names the typical error of the calibration, or that there is none."""
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "tuning.db"))
    monkeypatch.setattr(calibration, "shipped", lambda: ())
    spec = kdsl.Attention(tokens=1024, heads=2, head_dim=64, mask=masks.causal())
    assert "never calibrated on such a card" in kdsl.build(spec, gpu="h100").explain()
    (tmp_path / "calibration.json").write_text(calibration.text((FITTED,)))
    op = kdsl.build(spec, gpu="h100")
    assert re.search(r"predicted +\d+ us, typical error 1.20x", op.explain())
    model = CostModel.of(tunable_for(spec), H100)
    assert model.calibrated
    assert op.cost()["predicted_us"] == pytest.approx(model(op.config).us)
