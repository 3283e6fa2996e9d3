"""What the tuner makes of faults: of the machine, a candidate, the default, the installation."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import pytest

from kdsl.autotune.compiling import Built
from kdsl.autotune.store import Store
from kdsl.errors import StoreError
from kdsl.runtime.records import Measurement
from tests.autotune.made_up import FakeHardware, FakePool, write_spec

Call = Callable[..., tuple[int, str, str]]


def rows(tmp_path: Path) -> list[Measurement]:
    """Measurements of the test's database."""
    with Store(tmp_path / "tuning.db") as store:
        return [row for row in store.rows() if isinstance(row, Measurement)]


class NoRoom(FakePool):
    """A compiler that finds the disk full after so many candidates."""

    left = 2

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """One more, or the end."""
        if not self.left:
            raise StoreError("the compiler has no room to work", hint="free disk and memory")
        self.left -= 1
        return super().result(key, until)


def test_a_full_disk_ends_the_run_and_writes_no_row(call: Call, tmp_path: Path) -> None:
    """Exit code 1 with the reason and the way on; what was found before is kept, and only that."""
    spec = write_spec(tmp_path)
    hardware = FakeHardware(pool=NoRoom())
    code, out, err = call("--gpu", "a100", "--spec", spec, "--budget", "6", hardware=hardware)
    assert code == 1
    assert "no a100 here: 2 predicted, 0 measured" in out
    assert "every result so far is stored. To go on: python -m autotune --resume" in err
    assert "the compiler has no room to work\n  try free disk and memory" in err
    assert [row.status for row in rows(tmp_path)] == ["ok", "ok"]
    code, out, _ = call("--gpu", "a100", "--spec", spec, "--budget", "6")
    assert code == 0
    assert out.splitlines()[-1] == "no a100 here: 4 predicted, 0 measured (2 more known before)"


def test_a_database_that_cannot_be_opened_is_all_that_is_said(call: Call, tmp_path: Path) -> None:
    """Nothing was begun: no tables, no way to go on, and what is in the file stays."""
    (tmp_path / "tuning.db").write_bytes(b"no database" * 999)
    code, out, err = call("--gpu", "a100", "--spec", write_spec(tmp_path), "--budget", "2")
    assert code == 1
    assert not out
    assert err.startswith("the tuning database")
    assert "try move the file away" in err
    assert "--resume" not in err
    assert (tmp_path / "tuning.db").read_bytes() == b"no database" * 999


def test_failures_are_counted_apart(call: Call, tmp_path: Path) -> None:
    """What did not compile was not predicted; a default without a time is exit code 1."""
    refused = Built("compile_error", "out of registers")
    some = FakePool(broken=lambda params: refused if params["num_warps"] == 8 else None)
    spec = write_spec(tmp_path)
    code, out, _ = call(
        "--gpu", "a100", "--spec", spec, "--budget", "12", hardware=FakeHardware(pool=some)
    )
    found = [row.status for row in rows(tmp_path)]
    assert 0 < found.count("compile_error") < 12, "the case shows nothing"
    said = f"{found.count('ok')} predicted, 0 measured, {found.count('compile_error')} failed"
    assert out.splitlines()[-1] == f"no a100 here: {said}"
    default = next(row for row in rows(tmp_path) if row.is_default)
    assert code == (0 if default.status == "ok" else 1)


def test_a_default_without_a_time_is_a_fault(call: Call, tmp_path: Path) -> None:
    """Exit code 1, and a line that names the workload and the compiler's reason."""
    broken = FakePool(broken=lambda params: Built("compile_error", "out of registers"))
    words = ("--gpu", "a100", "--spec", write_spec(tmp_path), "--budget", "2")
    code, out, err = call(*words, hardware=FakeHardware(pool=broken))
    assert code == 1
    assert "the built-in default has no time: compile_error: out of registers" in err
    assert out.splitlines()[-1] == "no a100 here: 0 predicted, 0 measured, 2 failed"


def test_without_optuna(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning says what to install; ``show`` needs no optuna."""
    monkeypatch.setattr("kdsl.autotune.cli.find_spec", lambda name: None)
    code, _, err = call("--gpu", "a100", "--workload", "clip")
    assert code == 1
    assert 'pip install "kdsl-kernels[tune]"' in err
    assert call("show")[0] == 0
