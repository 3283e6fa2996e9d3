"""The benchmark of executed plans: two processes on Gloo, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sequence_parallel
from kdsl.errors import DistributedError, InputError

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes(tmp_path: Path) -> None:
    """Under torchrun rank 0 prints every plan once, checked and timed, and all end in order."""
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*run, "--nproc-per-node", "2", "-m", "benchmarks", "sequence_parallel", "--world", "2"],
        cwd=ROOT,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
             "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WRONG" not in done.stdout
    for name in (
        "ulysses plain",
        "ring 1 x 2 plain",
        "db-SP 1 x 2",
        "B needed",
        "D ring",
        "chosen",
    ):
        assert sum(name in line for line in done.stdout.splitlines()) == 1, done.stdout


def test_it_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, and among other numbers of processes, it says how to be started."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(DistributedError, match="torchrun --nproc-per-node 3"):
        sequence_parallel.joined(3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--world 3 among 2 processes"):
        sequence_parallel.joined(3)
