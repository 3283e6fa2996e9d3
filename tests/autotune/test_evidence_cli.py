"""The commands over measured rows, from recording to report, on a made-up GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdsl.autotune.cli import main
from kdsl.autotune.cli.arguments import tune_parser
from kdsl.autotune.cli.plan import understood
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.recordings import files
from kdsl.autotune.search import Space, make_recorder
from kdsl.autotune.search.space import point
from kdsl.autotune.store import Store
from kdsl.errors import ConfigError, SpecError
from kdsl.runtime import calibration
from kdsl.runtime.records import Measurement, jsonl
from kdsl.workloads import get
from tests.autotune import synthetic
from tests.autotune.made_up import (
    H100,
    FakeHardware,
    FakePool,
    legal,
    small_job,
    small_spec,
    write_spec,
)

FACTORS: dict[str, dict[Any, float]] = {
    "block_m": {16: 4.0, 32: 1.6, 64: 1.0},
    "block_n": {16: 3.0, 32: 1.2, 64: 1.0},
    "num_warps": {4: 1.0, 8: 1.3},
    "num_stages": {1: 1.1, 2: 1.0, 3: 0.8, 4: 0.9},
}
CARD = FakeCard(base_us=100.0, factors=FACTORS, noise=0.004)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Calls ``main`` with a made-up H100, as if no rows were shipped: code, output, errors."""
    monkeypatch.setattr(files, "shipped_files", list)
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: object, pool: FakePool | None = None) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(w) for w in words], hardware=lambda: FakeHardware("h100", CARD, pool))
        return code, *capsys.readouterr()

    return run


def measured(path: Path) -> list[Measurement]:
    """Measurements of a database."""
    with Store(path) as store:
        return [row for row in store.rows() if isinstance(row, Measurement)]


def recorded(call: Call, tmp_path: Path) -> None:
    """Two workloads, recorded whole."""
    for block in (64, 32):
        code, out, _ = call("--gpu", "h100", "--record", "--spec", write_spec(tmp_path, block))
        assert code == 0
        assert " measured" in out.splitlines()[-1]


def test_a_recording_is_the_whole_space(call: Call, tmp_path: Path) -> None:
    """Every legal configuration is measured once, the default first; a second run has nothing to
    do, and one that was cut short by its budget is completed by the next."""
    spec = write_spec(tmp_path)
    pool = FakePool()
    assert call("--gpu", "h100", "--record", "--spec", spec, "--budget", "20", pool=pool)[0] == 0
    assert len(pool.asked) == 20
    default = small_job().tunable.default(H100)
    assert pool.asked[0] == default
    rest = FakePool()
    code, out, _ = call("--gpu", "h100", "--record", "--spec", spec, pool=rest)
    assert code == 0
    whole = legal(small_job(), H100)
    assert whole > 40
    assert len(rest.asked) == whole - 20
    assert out.splitlines()[-1] == f"h100: {whole - 20} measured (20 more known before)"
    assert not [p for p in rest.asked if p in pool.asked]
    found = {row.candidate_id for row in measured(tmp_path / "tuning.db")}
    assert len(found) == whole
    again = FakePool()
    assert call("--gpu", "h100", "--record", "--spec", spec, pool=again)[0] == 0
    assert again.asked == []


def test_a_recorders_order_is_random_and_repeatable() -> None:
    """The default comes first, then a shuffle that the seed decides: cut off, it is a sample."""
    space = Space({"x": tuple(range(60))}, lambda p: "odd" if p["x"] % 2 else None)

    def order(seed: int, limit: int | None = None) -> list[int]:
        search = make_recorder(space, default={"x": 10}, limit=limit, seed=seed)
        return [p["x"] for p in iter(search.ask, None)]

    assert sorted(order(0)) == list(range(0, 60, 2))
    assert order(0)[0] == order(1)[0] == 10
    assert order(0) == order(0) != order(1)
    assert order(0)[1:] != sorted(order(0)[1:])


def test_a_space_too_large_needs_a_limit() -> None:
    """Beyond what can be written out a sample of legal points is drawn, or an error says how."""
    space = Space({"x": tuple(range(300_000))}, lambda p: "odd" if p["x"] % 2 else None)
    with pytest.raises(ConfigError, match="300000"):
        make_recorder(space, default={"x": 0}, limit=None, seed=0)
    search = make_recorder(space, default={"x": 0}, limit=30, seed=0)
    found = list(iter(search.ask, None))
    assert len({point(p) for p in found}) == len(found) >= 30
    assert all(p["x"] % 2 == 0 for p in found)


def test_workloads_at_densities() -> None:
    """Each named workload at each density, under names that say so; the command line survives."""
    words = ["--gpu", "h100", "--workload", "clip", "--density", "0.1", "--density", "0.25"]
    plan = understood(tune_parser().parse_args([*words, "--record"]))
    assert [name for name, _ in plan.jobs] == ["clip@0.1", "clip@0.25"]
    assert plan.record
    again = understood(tune_parser().parse_args(list(plan.words)))
    assert again.words == plan.words
    thin, thick = (make().tunable.statistics()["density"] for _, make in plan.jobs)
    assert thin < thick
    planned = understood(tune_parser().parse_args(["--gpu", "h100", "--density", "0.1"]))
    assert "flux-dev-1024@0.1" not in [name for name, _ in planned.jobs]
    assert len(planned.jobs) == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workload", "flux-dev-1024", "--density", "0.1"], "of its own"),
        (["--workload", "clip", "--density", "0"], "above 0"),
        (["--workload", "clip", "--density", "1.5"], "at most 1"),
        (["--spec", "x.json", "--density", "0.5"], "cannot be read"),
    ],
)
def test_densities_that_cannot_be(call: Call, words: list[str], said: str) -> None:
    """Exit code 2 before anything is made, with what would work."""
    code, _, err = call("--gpu", "h100", *words)
    assert code == 2
    assert said in err


def test_densities_of_closed_masks() -> None:
    """A workload whose mask is no plan has one density, and says so."""
    with pytest.raises(SpecError, match="of its own"):
        get("hunyuanvideo-720p").sample(0.5)
    dense = next(iter(get("clip").sample(1.0).values()))
    thin = next(iter(get("clip").sample(0.05).values()))
    assert thin.mean() < 0.1 < 0.6 < dense.mean()


def test_from_recording_to_report(call: Call, tmp_path: Path) -> None:
    """Record, replay, evaluate, calibrate and report through the command line alone: each command
    says what it found, and what was fitted is used from then on."""
    recorded(call, tmp_path)
    code, out, _ = call("replay", "--seeds", "2", "--require", "0.9")
    assert code == 0
    assert "4 of 4 (recording, seed) pairs, 100.0%" in out
    code, out, _ = call("evaluate")
    assert code == 0
    assert "Spearman within a key: median" in out
    code, out, _ = call("calibrate")
    assert code == 0
    (made,) = calibration.parse((tmp_path / "calibration.json").read_text(), "")
    assert (made.op, made.unit, made.cc, made.devices) == ("attention", "float16", 90, ("h100",))
    assert made.rows == sum(len(w) for w in _candidates(tmp_path))
    code, out, _ = call("report", "--output", "r.html")
    assert code == 0
    text = (tmp_path / "r.html").read_text()
    assert "Predicted against measured" in text
    assert "typical error" in text
    assert call("ablate")[0] == 0
    code, out, _ = call("replay", "--held-out", "--seeds", "1")
    assert code == 0


def _candidates(tmp_path: Path) -> list[set[str]]:
    """Sound candidates by workload."""
    rows = [row for row in measured(tmp_path / "tuning.db") if row.status == "ok"]
    return [
        {row.candidate_id for row in rows if row.workload_id == workload}
        for workload in {row.workload_id for row in rows}
    ]


def test_replay_can_be_required(call: Call, tmp_path: Path) -> None:
    """Below the share that is asked for the exit code is 1: a budget of one measurement."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(jsonl.write(synthetic.rows([("clip", None)]))))
    words = ("replay", path, "--seeds", "2", "--budget", "1", "--within", "0.01")
    assert call(*words, "--require", "0.9")[0] == 1
    assert call(*words)[0] == 0


def test_calibrations_of_others_are_kept(call: Call, tmp_path: Path) -> None:
    """A new fit replaces its own entry and leaves those of other cards; one recording alone is not
    enough to write any."""
    recorded(call, tmp_path)
    assert call("calibrate")[0] == 0
    path = tmp_path / "calibration.json"
    held = json.loads(path.read_text())
    held["entries"].append({**held["entries"][0], "cc": 80})
    path.write_text(json.dumps(held))
    assert call("calibrate")[0] == 0
    assert [e.cc for e in calibration.parse(path.read_text(), "")] == [80, 90]
    lone = tmp_path / "lone.jsonl"
    lone.write_text("".join(jsonl.write(synthetic.rows([("clip", None)]))))
    code, out, _ = call("calibrate", lone, "--output", "lone.json")
    assert code == 0
    assert "nothing could be left out" in out
    assert calibration.parse((tmp_path / "lone.json").read_text(), "") == ()


def test_distil_writes_where_it_is_told(call: Call, tmp_path: Path) -> None:
    """The rule of given rows goes to a given file, and is Python that says its worst loss."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(jsonl.write(synthetic.rows([("clip", None)]))))
    code, out, _ = call("distil", path, "--output", "rule.py")
    assert code == 0
    assert "1 rules in rule.py" in out
    compile((tmp_path / "rule.py").read_text(), "rule.py", "exec")


@pytest.mark.parametrize("command", ["replay", "calibrate", "evaluate", "ablate", "report"])
def test_nothing_to_work_on(call: Call, tmp_path: Path, command: str) -> None:
    """Without recordings the error says how to make some; a file that is not there is an error."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("".join(jsonl.write([])))
    code, _, err = call(command, empty)
    assert code == 1
    assert "--record" in err
    code, _, err = call(command, tmp_path / "none.jsonl")
    assert code == 2
    assert "none.jsonl" in err


def test_unknown_names(call: Call, tmp_path: Path) -> None:
    """A GPU that nobody knows, and a workload without rows, are wrong command lines."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(jsonl.write(synthetic.rows([("clip", None)]))))
    assert call("evaluate", path, "--gpu", "a1000")[0] == 2
    code, _, err = call("report", path, "--workload", "flux")
    assert code == 2
    assert "clip" in err


def test_specs_differ() -> None:
    """The two recorded specs are two workloads, or the tests above would hold out nothing."""
    assert small_spec(64).to_json() != small_spec(32).to_json()
