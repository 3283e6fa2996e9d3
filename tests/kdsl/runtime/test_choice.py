"""Which configuration an operator gets: the ladder as `build` walks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kdsl
from kdsl import Grid, masks, orders, targets
from kdsl.autotune.store import Store
from kdsl.errors import ConfigError, ConfigNotFound
from kdsl.runtime import keying
from kdsl.runtime.records import Candidate, Measurement, Run
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import Permute, Spec

GRID = Grid(frames=4, height=6, width=8)
PERMUTE = Permute(tokens=GRID, heads=2, head_dim=64, order=orders.axes(GRID, "HWF"))
ATTENTION = kdsl.Attention(tokens=GRID, heads=2, head_dim=64, mask=masks.causal())
SPECS = pytest.mark.parametrize("spec", [PERMUTE, ATTENTION], ids=["permute", "attention"])
H100 = targets.get("h100")


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database that builds look at; empty."""
    path = tmp_path / "tuning.db"
    monkeypatch.setenv("KDSL_DB", str(path))
    return path


def other(spec: Spec) -> dict[str, Any]:
    """A legal configuration that is not the default."""
    tunable = tunable_for(spec)
    default = tunable.default(H100)
    for name, values in tunable.space(H100).items():
        for value in values:
            params = {**default, name: value}
            if params != default and tunable.legal(params, H100) is None:
                return params
    raise AssertionError("the space has one point")


def store(path: Path, spec: Spec, params: dict[str, Any]) -> None:
    """One measured row."""
    tunable = tunable_for(spec)
    key = keying.key_for(tunable, H100)
    run = Run(started="2026-01-01T00:00:00+00:00")
    space = keying.space_hash(tunable.space(H100))
    candidate = Candidate(space_hash=space, params=params)
    row = Measurement(
        workload_id=key.workload.id,
        device_id=key.device.id,
        toolchain_id=key.toolchain.id,
        candidate_id=candidate.id,
        run_id=run.id,
        kind="measured",
        status="ok",
        median_us=12.5,
        created="2026-01-01T00:00:00+00:00",
    )
    with Store(path) as opened:
        opened.add(*key, run, candidate, row)


@SPECS
def test_a_measured_row_is_taken(spec: Spec, database: Path) -> None:
    """Every operation takes the measured configuration of its key, says so, and gives its time."""
    params = other(spec)
    store(database, spec, params)
    op = kdsl.build(spec, gpu="h100")
    assert dict(op.config) == params
    assert op.cost()["measured_us"] == 12.5
    text = op.explain()
    assert "exact      taken: row" in text
    assert "measured   12.5 us" in text
    assert dict(kdsl.build(spec, gpu="h100", mode="off").config) != params
    assert dict(kdsl.build(spec, gpu="h100", mode="strict").config) == params


@SPECS
def test_strict_wants_a_row(spec: Spec) -> None:
    """Without one ``strict`` raises, and other modes take the rule and predict its time."""
    with pytest.raises(ConfigNotFound):
        kdsl.build(spec, gpu="h100", mode="strict")
    op = kdsl.build(spec, gpu="h100")
    assert dict(op.config) == tunable_for(spec).default(H100)
    assert "rule       taken: the built-in default" in op.explain()
    assert op.cost()["predicted_us"] > 0


@SPECS
def test_a_row_that_became_illegal_is_refused(spec: Spec, database: Path) -> None:
    """A stored configuration is checked again before use, and the refusal is in the ladder."""
    bad = {**other(spec), "nonsense": 1}
    store(database, spec, bad)
    op = kdsl.build(spec, gpu="h100")
    assert dict(op.config) == tunable_for(spec).default(H100)
    assert "refused" in op.explain()


@SPECS
def test_what_is_given_is_checked(spec: Spec) -> None:
    """Given settings complete the default; unknown and illegal ones are errors."""
    params = other(spec)
    changed = {n: v for n, v in params.items() if v != tunable_for(spec).default(H100)[n]}
    assert dict(kdsl.build(spec, gpu="h100", config=changed).config) == params
    with pytest.raises(ConfigError):
        kdsl.build(spec, gpu="h100", config={"nonsense": 1})
    with pytest.raises(ConfigError, match="mode"):
        kdsl.build(spec, gpu="h100", mode="sometimes")
