"""The benchmark of executed plans: two processes on Gloo, and what it refuses."""

from __future__ import annotations

import json
import socket
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
        "B equal pieces",
        "D ring",
        "chosen",
    ):
        assert sum(name in line for line in done.stdout.splitlines()) == 1, done.stdout


def test_two_nodes(tmp_path: Path) -> None:
    """Two torchrun "nodes" on one machine come together, say that they are nodes, and keep the
    costs that explain their times where they are asked to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes", "2"]
    run += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    what = ["-m", "benchmarks", "sequence_parallel", "--world", "2", "--fit"]
    said = [(tmp_path / f"out{node}", tmp_path / f"err{node}") for node in (0, 1)]
    nodes = []
    for node, (out, err) in enumerate(said):
        with out.open("w") as stdout, err.open("w") as stderr:
            nodes.append(subprocess.Popen(
                [*run, "--node-rank", str(node), *what], cwd=ROOT, stdout=stdout, stderr=stderr,
                env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                     "PYTHONWARNINGS": "ignore", "KDSL_DB": str(tmp_path / "tuning.db")},
            ))  # fmt: skip
    codes = [node.wait(240) for node in nodes]
    first, second = (out.read_text() for out, _ in said)
    assert codes == [0, 0], said[0][1].read_text()
    assert "2 ranks on nodes of 1, gloo" in first
    assert "WRONG" not in first
    assert second == ""
    assert "mean error" in first
    held_costs = json.loads((tmp_path / "partition_costs.json").read_text())
    assert {entry["kind"] for entry in held_costs["entries"]} == {"HandlingEntry"}


def test_it_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, and among other numbers of processes, it says how to be started."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(DistributedError, match="torchrun --nproc-per-node 3"):
        sequence_parallel.joined(3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--world 3 among 2 processes"):
        sequence_parallel.joined(3)
