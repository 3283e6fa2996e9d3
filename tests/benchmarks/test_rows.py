"""Rows of results: schema, and whether they belong to a commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.cases import ATTENTION
from benchmarks.table import newest, show
from kdsl.errors import StoreError


def a_row(**changes: object) -> dict[str, object]:
    """A complete row."""
    return {
        "suite": "attention", "case": "c", "impl": "kdsl", "dtype": "bfloat16", "ms": 1.0,
        "work": 1e9, "unit": "flop", "error": 0.002, "density": 0.1, "run": "r", "gpu": "g",
        "commit": "HEAD", "sources": "s", "versions": {}, "date": "2026-01-01", **changes,
    }  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one covered source, a mounted room and a file that is not covered."""
    (tmp_path / "kdsl").mkdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kdsl" / "a.py").write_text("x = 1\n")
    (tmp_path / "kernels" / "k.cu").write_text("// k\n")
    (tmp_path / "kdsl" / "kernels").symlink_to("../kernels")
    (tmp_path / "notes.txt").write_text("n\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        identity = ["-c", "user.name=n", "-c", "user.email=e@localhost"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    return tmp_path


def test_hash_of_a_folder_is_the_hash_of_its_commit(repository: Path) -> None:
    """A row made from a plain copy of the sources can be held against the commit later."""
    assert rows.sources_hash(repository) == rows.commit_hash("HEAD", repository)
    assert "+" not in rows.current_commit(repository)


def test_hash_sees_covered_changes_only(repository: Path) -> None:
    """A changed kernel is another hash; a changed note is not."""
    before = rows.sources_hash(repository)
    (repository / "notes.txt").write_text("other\n")
    assert rows.sources_hash(repository) == before
    (repository / "kernels" / "k.cu").write_text("// other\n")
    assert rows.sources_hash(repository) != before
    assert rows.current_commit(repository).endswith("+changes")


def test_rows_of_other_sources_are_named(repository: Path, tmp_path: Path) -> None:
    """`python -m benchmarks check` finds rows that their commit did not produce."""
    results = tmp_path / "results"
    good = rows.commit_hash("HEAD", repository)
    rows.append([a_row(sources=good), a_row(case="d")], results, "g", "attention")
    assert rows.unproven(results, repository) == ["g d kdsl: not the sources of HEAD"]


def test_incomplete_row_is_refused(tmp_path: Path) -> None:
    """A row without one of the fields does not get into the file."""
    row = a_row()
    del row["error"]
    with pytest.raises(StoreError, match="lacks 'error'"):
        rows.append([row], tmp_path, "g", "attention")


def test_broken_line_is_named(tmp_path: Path) -> None:
    """A file with a broken line gives its place."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(a_row()) + "\n{\n")
    with pytest.raises(StoreError, match="line 2"):
        rows.load(tmp_path)


def test_table_takes_the_last_run_with_ours() -> None:
    """Ratios are only formed inside one run."""
    found = newest([
        a_row(run="1", ms=2.0), a_row(run="1", impl="peer", ms=4.0),
        a_row(run="2", ms=1.0), a_row(run="3", impl="peer", ms=9.0),
    ])  # fmt: skip
    assert {name: row["ms"] for name, row in found["g", "c"].items()} == {"kdsl": 1.0}


def test_table_has_useful_rates_where_rows_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows with and without a useful rate, in one table and each kind by itself."""
    with_it, without = a_row(useful=5e8), a_row(case="d", impl="kdsl")
    show([with_it, without])
    found = capsys.readouterr().out
    assert "useful rate" in found
    assert "0.5" in found
    show([without])
    assert "useful rate" not in capsys.readouterr().out


def test_cases_have_the_density_they_name() -> None:
    """A case's mask keeps about the share of blocks its id says, heads from half to 1.5 times."""
    for case in ATTENTION.values():
        plan = case.plan()
        assert plan.shape == (case.shape[1], case.shape[2] // 128, case.shape[2] // 128)
        if case.density < 1:
            # The diagonal is always kept and adds one block a row.
            wanted = case.density + (1 - case.density) / plan.shape[-1]
            assert plan.mean() == pytest.approx(wanted, rel=0.02)
            assert plan[-1].mean() > 2 * plan[0].mean()


def test_gradients_count_two_and_a_half_forwards() -> None:
    """Backward cases stand beside forward ones of the same shape and density."""
    for case in (c for c in ATTENTION.values() if c.backward):
        forward = ATTENTION[case.id.replace("bwd", "fwd")]
        assert (case.shape, case.density) == (forward.shape, forward.density)
        assert case.work == 2.5 * forward.work
