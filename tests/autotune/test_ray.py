"""A Ray cluster of two nodes with made-up GPUs, in processes of its own; one node is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdsl.autotune.cli import main
from kdsl.autotune.store import Store
from kdsl.runtime.records import Measurement, Place, Row, Run
from tests.autotune.made_up import FakeHardware, Machine, write_spec
from tests.autotune.test_fleet import CARD, POINTS, best, outcomes
from tests.postgres import Server

ROOT = Path(__file__).parents[2]


def small_cluster() -> None:
    """The script: a cluster, a run on it, and a node that is killed after ten measurements.

    Prints the ids of the measurements that were acknowledged before, and the exit code.
    """
    import threading
    import time

    from ray.cluster_utils import Cluster

    url, spec = sys.argv[1:]
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    acknowledged: list[str] = []

    def kill() -> None:
        with Store(url) as store:
            while len(acknowledged) < 10:
                time.sleep(0.05)
                acknowledged[:] = [row["id"] for row in store.values("measurement")]
        cluster.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    words = ["--gpu", "a100", "--spec", spec, "--budget", "100", "--storage", url]
    machine = Machine(count=1, fake=CARD, slow_s=0.1)
    code = main([*words, "--ray", cluster.address], hardware=lambda: machine)
    killer.join()
    cluster.shutdown()
    print(json.dumps({"code": code, "acknowledged": acknowledged}))


def test_a_node_is_killed(server: Server, tmp_path: Path) -> None:
    """Every candidate is recorded at least once, no acknowledged row is lost, none is there twice,
    and the best is that of a run on one GPU that nothing happened to."""
    if find_spec("ray") is None:
        reason = "Ray is not installed: pip install 'kdsl-kernels[ray]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    url, spec = server.new(), write_spec(tmp_path)
    code = "from tests.autotune.test_ray import small_cluster; small_cluster()"
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, url, str(spec)], cwd=ROOT, text=True,
        capture_output=True, check=False, timeout=400,
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0",
             "RAY_DEDUP_LOGS": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0, done.stderr[-3000:]
    assert server.password not in done.stdout + done.stderr
    with Store(url) as store:
        found: list[Row] = list(store.rows())
    measured = [row for row in found if isinstance(row, Measurement)]
    assert len({row.candidate_id for row in measured}) == POINTS
    assert set(said["acknowledged"]) <= {row.id for row in measured}
    assert len(said["acknowledged"]) >= 10
    assert len({row.id for row in found}) == len(found)
    runs = [row for row in found if isinstance(row, Run) and not row.closes]
    (whole,) = (row for row in runs if not row.part_of)
    parts = [row for row in runs if row.part_of == whole.id]
    assert len(parts) >= 3, "two shares, and one of them a second time"
    control = tmp_path / "t.db"
    words = ["--gpu", "a100", "--spec", str(spec), "--budget", "100", "--storage", str(control)]
    alone = Machine(count=1, fake=CARD)
    assert main(words, hardware=lambda: alone) == 0
    assert best(url) == best(control)
    assert outcomes(url)[1].keys() == outcomes(control)[1].keys()


@pytest.mark.parametrize(
    ("place", "more", "said"),
    [
        ("t.db", [], "--ray needs a --storage that all machines"),
        ("postgresql://x/y", ["--study", "here.log"], "--ray needs a --study that all machines"),
    ],
)
def test_a_cluster_needs_a_shared_store(
    place: Place, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file on one machine is refused before anything is done, with what would work."""
    words = ["--gpu", "a100", "--workload", "clip", "--ray", "auto", "--storage", str(place)]
    assert main([*words, *more], hardware=FakeHardware) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "postgresql://user@host/name" in err


def test_without_ray(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where Ray is not installed the error says how to get it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["--gpu", "a100", "--workload", "clip", "--ray", "auto", "--storage", server.new()]
    assert main(words, hardware=FakeHardware) == 1
    assert "pip install 'kdsl-kernels[ray]'" in capsys.readouterr().err
