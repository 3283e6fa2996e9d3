"""The quality command: its measures, and that it reads weights it is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.__main__ import main
from kdsl.layouts.codes import Int, Lut


def test_decibels() -> None:
    """An error of a tenth is 20 dB."""
    x = np.ones((2, 3), np.float32)
    assert quality.decibels(x, x * np.float32(0.9)) == pytest.approx(20, abs=1e-4)


def test_min_max_is_uniform_over_the_range() -> None:
    """A row that lies on its own grid of eight steps comes back, whatever its offset."""
    x = (np.arange(8, dtype=np.float32) - 2)[None] * np.float32(0.3)
    assert quality.plain(Int(3), x, "range") > 100


def test_search_beats_plain() -> None:
    """The clip search helps a Gaussian at two bits."""
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    code = Lut((-1.5, -0.5, 0.5, 1.5), "two")
    assert quality.searched(code, x) > quality.plain(code, x) + 1


def test_weights_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix of a file is measured; a file without one is an error, exit code 2."""
    monkeypatch.setattr(quality, "codes_of", lambda bits: {"zero": lambda x: float(bits)})
    weights = tmp_path / "w.npz"
    np.savez(weights, first=np.ones((2, 4)), vector=np.ones(3))
    given = ["quality", "--results", str(tmp_path), "--weights", str(weights), "--commit", "c"]
    assert main(given) == 0
    lines = json.loads((tmp_path / "quality.json").read_text())["lines"]
    assert [(r["data"], r["bits"], r["db"]) for r in lines] == [("first", 3, 3), ("first", 4, 4)]
    np.savez(weights, vector=np.ones(3))
    assert main(given) == 2


def test_the_page_says_what_was_measured() -> None:
    """Tables of trained weights in docs/performance.md are the lines of the newest run."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "performance.md").read_text().split("### On trained weights")[1]
    text = (root / "benchmarks" / "results" / "quality-trained.json").read_text()
    lines = json.loads(text)["lines"]
    tables = [t.splitlines() for t in page.split("\n\n") if t.startswith("|")]
    assert len(tables) == 3
    cells = [[[c.strip() for c in line.strip("|").split("|")] for line in t] for t in tables]
    head, _, *body = cells[0]
    for name, *values in body:
        data, bits = name.rsplit(", ", 1)
        rows = [r for r in lines if r["kind"] == "snr" and r["data"] == data]
        found = {r["code"]: f"{r['db']:.2f}" for r in rows if r["bits"] == int(bits)}
        assert values == [found[c] for c in head[1:]]
    head, _, *body = cells[1]
    for name, *values in body:
        rows = [r for r in lines if r["kind"] == "rotation" and r["data"] == name]
        found = {r["recipe"]: f"{r['output_error']:.3f}" for r in rows}
        assert values == [found[c] for c in head[1:]]
    models = [r for r in lines if r["kind"] == "model"]
    keys = ("loss", "median_output_error", "worst_output_error")
    assert cells[2][2:] == [[r["scheme"], *(f"{r[k]:.4f}" for k in keys)] for r in models]
    assert f"{models[0]['float_loss']:.4f}" in page
