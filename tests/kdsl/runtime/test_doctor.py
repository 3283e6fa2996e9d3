"""``python -m kdsl``: what it finds, in which words, with which exit code."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdsl import targets
from kdsl.__main__ import main
from kdsl.errors import CompileError, StoreError, UnsupportedError
from kdsl.runtime import doctor
from kdsl.specs import DTYPES, HEAD_DIMS, Attention, Matmul, Permute, Quantize
from kdsl.work import Check

H100 = targets.get("h100")
SPECS = [
    (
        "attention",
        "forward",
        "attention",
        Attention(tokens=doctor.GRID, heads=2, head_dim=64, dtype="float16"),
    ),
    (
        "permute",
        "forward",
        "permute",
        Permute(
            tokens=doctor.GRID,
            heads=2,
            head_dim=64,
            dtype="float16",
            order=doctor.axes(doctor.GRID, "WH"),
        ),
    ),
]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two subjects, a database that does not exist, wide output."""
    monkeypatch.setattr(doctor, "subjects", lambda: iter(SPECS))
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "none.db"))
    monkeypatch.setenv("COLUMNS", "250")


def findings(target: targets.Target | None) -> list[doctor.Finding]:
    return list(doctor.examine(target, lambda text: None))


def test_every_operation_is_a_subject() -> None:
    """Attention, its gradients, its quantized products and both kinds of permute, each for every
    dtype and head_dim, the pre-pass too; quantize to each code and products of it, for every dtype
    and two widths; and of 16 bits with stored weights for both of 16 bits."""
    found = {
        (name, s.dtype, s.columns if isinstance(s, (Quantize, Matmul)) else s.head_dim)
        for name, _, _, s in doctor.subjects()
    }
    names = ("attention", "attention, dK and dV", "attention, dQ", "permute", "permute to int8")
    names += ("pre-pass",)
    coded = [f"attention, int8 QK, {pv} PV" for pv in ("16-bit", "e4m3", "int8")]
    codes = [f"rotate, quantize to {code}" for code in ("int8", "fp8", "int4")]
    by = ("", " by 4 bits", " by 3 bits")
    codes += [f"product of {code}{bits}" for code in ("int8", "fp8") for bits in by]
    wanted = {(n, t, d) for n in names for t in DTYPES for d in HEAD_DIMS}
    wanted |= {(n, t, d) for n in coded for t in DTYPES[:2] for d in HEAD_DIMS}
    wanted |= {(n, t, d) for n in codes for t in DTYPES for d in doctor.WIDTHS}
    alone = [f"product of 16 bits{bits}" for bits in by[1:]]
    wanted |= {(n, t, d) for n in alone for t in DTYPES[:2] for d in doctor.WIDTHS}
    assert found == wanted


@pytest.mark.usefixtures("few")
def test_an_absent_gpu_is_compiled_for() -> None:
    """The words are "compiled only" with registers; the reference is said once an operation."""
    found = findings(H100)
    references = [f for f in found if "NumPy reference" in f.note]
    assert [(f.operation, f.status) for f in references] == [
        ("attention", "measured"),
        ("permute", "measured"),
        ("quantize", "measured"),
        ("matmul", "measured"),
        ("prepass", "measured"),
    ]
    assert len(found) == 7
    assert {f.status for f in found[5:]} == {"compiled only"}
    assert all("registers" in f.note for f in found[5:])


@pytest.mark.usefixtures("few")
def test_without_a_gpu_or_a_name_the_reference_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    """Five lines and a word on --gpu; exit code 0."""
    if doctor.device_target() is not None:
        pytest.skip("there is a GPU here")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.count("NumPy reference:") == 5
    assert "--gpu NAME compiles every kernel" in said
    assert "compiled only" not in said


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (CompileError("Triton refuses it\nat length"), "Triton refuses it"),
        (
            UnsupportedError("needs triton", hint='pip install "kdsl-kernels[triton]"'),
            'needs triton: pip install "kdsl-kernels[triton]"',
        ),
    ],
)
@pytest.mark.usefixtures("few")
def test_what_does_not_compile_is_not_supported(
    error: Exception,
    note: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The reason stands in the line, extras in brackets and all; the others are tried too."""

    def fails(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(doctor, "compile_for", fails)
    found = [f for f in findings(H100) if f.operation == "permute" and "NumPy" not in f.note]
    assert [(f.status, f.note) for f in found] == [("not supported", note)]
    assert main(["doctor", "--gpu", "h100"]) == 0
    assert capsys.readouterr().out.count(note) == 2


@pytest.mark.usefixtures("few")
def test_a_machine_without_room_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is no property of a kernel: exit code 1, with what to do."""

    def fails(*given: Any) -> Any:
        raise StoreError("no room", hint="free some space")

    monkeypatch.setattr(doctor, "compile_for", fails)
    assert main(["doctor", "--gpu", "h100"]) == 1
    assert "free some space" in capsys.readouterr().err


class FakeRunner:
    """A kernel whose check says what it is told to."""

    families = ("one", "two")

    def __init__(self, checks: list[Check | Exception]) -> None:
        self.checks = checks
        self.poisoned = 0

    def prepare(self, family: str, seed: int) -> None:
        """Nothing to fill."""

    def poison(self) -> None:
        """Count it."""
        self.poisoned += 1

    def run(self, params: Any) -> None:
        """A configuration came."""
        assert params

    def check(self) -> Check:
        """The next answer."""
        found = self.checks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.parametrize(
    ("checks", "status", "note", "code"),
    [
        ([Check(1e-4, 1e-3), Check(2e-4, 1e-3)], "measured", "error 2.0e-04 of 1.0e-03", 0),
        ([Check(1e-4, 1e-3), Check(2e-3, 1e-3)], "fails", "two inputs, error 2.0e-03", 1),
        ([Check(math.inf, 1e-3, "output holds NaN")], "fails", "output holds NaN", 1),
        ([Check(math.nan, 1e-3)], "fails", "error nan", 1),
        ([RuntimeError("CUDA error: illegal address")], "fails", "illegal address", 1),
        ([CompileError("NVRTC refuses it")], "not supported", "NVRTC refuses it", 0),
    ],
)
@pytest.mark.usefixtures("few")
def test_a_present_gpu_is_checked_against_a_bound(
    checks: list[Check | Exception],
    status: str,
    note: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Beyond the bound, NaN, or a crash is "fails" and exit code 1; else "measured"."""

    class Tunable:
        """Makes one."""

        def make_runner(self, device: Any, load: Any) -> FakeRunner:
            """The fake."""
            return FakeRunner(list(checks))

    monkeypatch.setattr(doctor, "device_target", lambda: H100)
    monkeypatch.setattr(doctor, "tunable_for", lambda spec, op="": Tunable())
    found = [f for f in findings(None) if f.direction == "forward"]
    assert [f.status for f in found] == [status] * 2
    assert all(note in f.note for f in found)
    assert main(["doctor"]) == code
    assert ("ran here and failed" in capsys.readouterr().err) == bool(code)


def test_rows_of_a_broken_database_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that cannot be read does not stop the doctor."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database at all" * 99)
    monkeypatch.setenv("KDSL_DB", str(broken))
    assert not doctor.measured_rows(H100)


def test_an_unknown_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and the nearest name."""
    assert main(["doctor", "--gpu", "h1000"]) == 1
    assert "'h100'" in capsys.readouterr().err


def test_cache_from_the_shell(tmp_path: Path) -> None:
    """``python -m kdsl cache`` counts generated files, and ``clear`` removes them."""
    folder = tmp_path / "gen"
    folder.mkdir(mode=0o700)
    (folder / "a.py").write_text("x" * 2048)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdsl", *words],
            env={**os.environ, "KDSL_CACHE_DIR": str(tmp_path)},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("cache").stdout == f"{folder}: 1 files, 2 KiB\n"
    assert run("cache", "clear").stdout == f"{folder}: 1 files, 2 KiB, removed\n"
    assert not list(folder.iterdir())
    assert run("nothing").returncode == 2
    assert "doctor" in run("--help").stdout


BARE = """
import sys
sys.modules.update(dict.fromkeys(("torch", "triton", "cupy", "optuna")))
from kdsl.runtime import doctor
subjects = list(doctor.subjects())
doctor.subjects = lambda: iter((subjects[0], subjects[-1]))
from kdsl.__main__ import main
code = main(["doctor", "--gpu", "a100"])
from kdsl.autotune.cli import main
sys.exit(10 * main(["--gpu", "a100"]) + code)
"""


def test_with_numpy_alone_it_says_what_to_install(tmp_path: Path) -> None:
    """Doctor and tuner name the extras where their packages are missing, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        env={**os.environ, "COLUMNS": "250", "KDSL_DB": str(tmp_path / "none.db")},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 10, done.stderr
    for extra in ("triton", "cuda"):
        assert f'pip install "kdsl-kernels[{extra}]"' in done.stdout
    assert 'pip install "kdsl-kernels[tune]"' in done.stderr
    assert "Traceback" not in done.stderr
