"""The tuner on a real GPU: measured, checked, compiled once, found by a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdsl import Attention, masks
from kdsl.autotune.cli import main
from kdsl.autotune.measuring import Bench, Opening
from kdsl.autotune.measuring.cuda import CudaCard
from kdsl.autotune.measuring.present import Present, devices
from kdsl.autotune.measuring.race import interval, median
from kdsl.autotune.session.evaluate import floor_us
from kdsl.autotune.store import Store
from kdsl.runtime import keying
from kdsl.runtime.records import Device, Key, Measurement, lookup
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import canonical

pytestmark = [pytest.mark.gpu, pytest.mark.alone]


@pytest.fixture(scope="module")
def here() -> Present:
    """The first GPU, if the table knows it."""
    found = [d for d in devices() if not d.target.live]
    if not found:
        pytest.skip("this GPU is not in kdsl.targets")
    return found[0]


def spec(block: int = 128, tokens: int = 4096) -> Attention:
    """Causal attention; with blocks of 32 so few configurations that they are listed."""
    return Attention(tokens=tokens, heads=8, head_dim=64, mask=masks.causal(), block=(block, block))


def test_a_candidate_is_right_and_timed(here: Present) -> None:
    """The default is right for both kinds of inputs, its times have a narrow interval above the
    floor, and the finals agree with them within 10 %."""
    tunable = tunable_for(spec(), {})
    default = tunable.default(here.target)
    other = next(
        p
        for loads in ("pointer", "descriptor")
        for stages in (1, 2, 3)
        if (p := {**default, "loads": loads, "num_stages": stages}) != default
        and tunable.legal(p, here.target) is None
    )
    with Bench(CudaCard(here.index)) as bench:
        bench.open(Opening(canonical(tunable.spec.to_json()), {}, 1, 0))
        assert bench.facts.torch
        timings = [bench.measure(default), bench.measure(other)]
        for timing in timings:
            assert timing.status == "ok", timing.reason
            assert timing.error is not None
            assert 0 < timing.error < 0.01
            low, high = interval(timing.samples)
            assert high - low < 0.1 * median(timing.samples)
            floor = floor_us(tunable.work(default, here.target), here.target)
            assert median(timing.samples) > floor > 0
        finals = bench.finals([default, other], 20)
        assert bench.replaced == 0
    for timing, samples in zip(timings, finals, strict=True):
        assert len(samples) == 20
        assert median(samples) == pytest.approx(median(timing.samples), rel=0.1)


def test_a_candidate_that_cannot_be_launched_costs_no_process(here: Present) -> None:
    """More shared memory than the GPU has is the candidate's own fault; the next one runs in the
    same process."""
    tunable = tunable_for(Attention(tokens=1024, heads=1, head_dim=256), {})
    too_much = {
        "block_m": 128, "block_n": 128, "num_warps": 8, "num_stages": 4, "loads": "pointer"
    }  # fmt: skip
    assert tunable.legal(too_much, here.target)
    with Bench(CudaCard(here.index)) as bench:
        bench.open(Opening(canonical(tunable.spec.to_json()), {}, 1, 0))
        assert bench.measure(too_much).status in ("smem", "compile_error")
        assert bench.measure(tunable.default(here.target)).status == "ok"
        assert bench.replaced == 0


def test_the_whole_command(here: Present, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configuration of a small space is measured, compiled once (the measuring process finds
    the pool's kernels in Triton's cache), and a look-up for this GPU takes the fastest."""
    cache = tmp_path / "triton"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "small.json"
    path.write_text(json.dumps(spec(32, 1024).to_json()))
    words: list[Any] = ["--gpu", here.target.name, "--spec", path, "--budget", "100"]
    database = tmp_path / "tuning.db"
    assert main([*map(str, words), "--require-device", "--storage", str(database)]) == 0
    with Store(database) as store:
        rows = [row for row in store.rows() if isinstance(row, Measurement)]
        tunable = tunable_for(spec(32, 1024), {})
        key = keying.key_for(tunable, here.target)
        facts = next(row for row in store.rows() if isinstance(row, Device))
        found = lookup(
            Key(key.workload, facts, key.toolchain),
            legal=lambda p: tunable.legal(p, here.target),
            sources=[store.source],
        )
    assert {row.kind for row in rows} == {"measured"}
    assert {row.status for row in rows} == {"ok"}
    assert any(row.is_default for row in rows)
    assert found.rung == "exact"
    fastest = min(row.ci_lo_us or 0.0 for row in rows)
    assert found.expected_us is not None
    assert found.expected_us < 1.1 * fastest
    kernels = len({row.candidate_id for row in rows})
    assert len(list(cache.rglob("*.cubin"))) <= kernels
