"""The calibration study on a slice of the real clip: what it claims holds on unseen frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from examples.paro.__main__ import WORST, main
from examples.paro.study import DENSITIES, RULES, Judged, Study, spans
from examples.paro.tables import MARK, PARO, order_table, verdict
from kdsl import orders
from kdsl.grid import Grid
from kdsl.plans import AttentionPlan

SMALL = Grid(frames=9, height=8, width=12)
"""864 tokens of each of eight pieces, in blocks of 16."""


@pytest.fixture(scope="module")
def study() -> Study:
    """The slice, every block row looked at."""
    return Study(SMALL, (16, 16), every=1)


@pytest.fixture(scope="module")
def judged(study: Study) -> list[Judged]:
    """Every rule at every density."""
    return list(study.compare())


def test_no_frame_is_in_both_halves() -> None:
    """Pieces that masks are chosen on and pieces that they are judged on share no frame."""
    chosen, unseen = spans(9)
    seen = {f for a, b in chosen for f in range(a, b + 1)}
    assert len(chosen) == len(unseen) == 4
    assert not seen & {f for a, b in unseen for f in range(a, b + 1)}


def test_more_mass_than_paro_at_equal_density(study: Study, judged: list[Judged]) -> None:
    """On unseen frames: at or above PAROAttention's in the mean, at most 1 % below in any head."""
    assert {(j.rule, j.density) for j in judged} == {(r, d) for r in RULES for d in DENSITIES}
    for j in judged:
        assert j.kept.mean() <= j.density
        assert j.kept.mean() >= j.density - len(study.names) / j.kept.size
        assert j.kept.any(-1).all()
    for density, gain, worst in verdict(judged):
        assert gain >= 0, density
        assert worst >= WORST, density


def test_orders_by_head_beat_one_for_all(judged: list[Judged]) -> None:
    """Both per-head rules hold more than the best single order, at every density."""
    by = {(j.rule, j.density): j.held.mean() for j in judged}
    for density in DENSITIES:
        assert min(by["kdsl", density], by["PARO", density]) > by["one order", density] + 0.01


def test_errors_stay_in_their_budget_on_unseen_frames(study: Study) -> None:
    """Every head's measured output error, on frames that calibration did not see."""
    found = study.budget(0.05)
    assert found.measured.shape == (4, 8)
    assert found.inside, found.measured.max(0)
    assert found.measured.max() > 0.02  # not by keeping everything
    assert (found.kept.mean((1, 2)) < 0.9).all()


def test_the_table_and_the_plan(study: Study, tmp_path: Path) -> None:
    """Six nestings and cubes for every head, both choices marked; the plan holds ours."""
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(order_table(study))
    text = capture.get()
    assert all(name in text for name in ("FHW", "FWH", "HFW", "HWF", "WFH", "WHF", "(4x2x2)"))
    body = "\n".join(line for line in text.splitlines() if "chosen" not in line)
    assert body.count(MARK) == body.count(PARO) == 8
    plan = study.plan()
    plan.save(tmp_path / "plan")
    back = AttentionPlan.load(tmp_path / "plan", grid=SMALL, layers=1, heads=8)
    assert back.order(0) == orders.per_head(study.orders("kdsl", 0))
    assert back.density() == pytest.approx(DENSITIES[0], abs=1e-3)
    seen, _ = study.masses(study.orders("kdsl", 0))
    np.testing.assert_array_equal(back.kept(0, 0), study.kept("kdsl", seen, DENSITIES[0]))
    assert back.show(0, 7).count(MARK) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m examples.paro`` prints every verdict, and writes the plan and its pictures."""
    size = ["--grid", "9", "6", "8", "--block", "16", "16", "--every", "1", "--budget", "0.1"]
    code = main([*size, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert code == ("FAILS" in printed)
    assert printed.count("holds") + printed.count("FAILS") == len(DENSITIES) + 1
    assert len(list((tmp_path / "out").glob("*.svg"))) == 8
    AttentionPlan.load(tmp_path / "out" / "plan.safetensors", model="the clip's heads")


def test_the_command_names_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """More frames than the clip has are an error of one line, and exit code 1."""
    assert main(["--grid", "99", "6", "8"]) == 1
    assert "99 wanted" in capsys.readouterr().out
