"""One run on several GPUs of a machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdsl.autotune.cli import main
from kdsl.autotune.fleet import Gathered, Share, cut
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Tally
from kdsl.autotune.store import Store
from kdsl.runtime.records import Candidate, Measurement, Place, Run
from tests.autotune.made_up import A100, Machine, small_job, write_spec
from tests.autotune.test_tuner import FACTORS

POINTS = 28
"""Legal configurations of the small job on an A100."""
CARD = FakeCard(base_us=100.0, factors=FACTORS, noise=0.002)


def fastest() -> dict[str, Any]:
    """The configuration that the made-up GPU is fastest with."""
    tunable = small_job().tunable
    space = tunable.space(A100)
    from kdsl.autotune.search import Space

    points = Space(space, lambda p: tunable.legal(p, A100)).points
    assert points is not None
    return dict(min(points, key=CARD.time_us))


def run(machine: Machine, place: Place, spec: Path, budget: str = "100", *more: str) -> int:
    """Tune the small job on the machine."""
    words = ["--gpu", "a100", "--spec", str(spec), "--budget", budget, "--storage", str(place)]
    return main([*words, *more], hardware=lambda: machine)


def outcomes(place: Place) -> tuple[Counter[str], dict[str, Candidate], list[Run]]:
    """How often each candidate was measured; candidates; runs."""
    with Store(place) as store:
        found = list(store.rows())
    counts = Counter(r.candidate_id for r in found if isinstance(r, Measurement))
    candidates = {r.id: r for r in found if isinstance(r, Candidate)}
    return counts, candidates, [r for r in found if isinstance(r, Run)]


def best(place: Place) -> str:
    """The best's parameters."""
    with Store(place) as store:
        (found,) = store.bests().values()
    return found.params


def test_shares_of_many_workloads() -> None:
    """A share for each workload, with the time of those that come after one another dealt out."""
    jobs = [(str(n), small_job) for n in range(6)]
    shares = cut(jobs, 2, Budget(40, 60.0), seed=5)
    assert [s.name for s in shares] == list("012345")
    assert [s.number for s in shares] == list(range(6))
    assert {s.budget for s in shares} == {Budget(40, 20.0)}
    assert {s.budget for s in cut(jobs, 2, Budget(40), seed=5)} == {Budget(40)}
    assert len({s.seed for s in shares}) == 6
    assert cut([], 4, Budget(40), seed=0) == []


def test_shares_of_few_workloads() -> None:
    """More GPUs than workloads: several at one, none idle, each with the whole time."""
    jobs = [(str(n), small_job) for n in range(3)]
    shares = cut(jobs, 8, Budget(None, 60.0), seed=0)
    assert Counter(s.name for s in shares) == {"0": 3, "1": 3, "2": 2}
    assert {s.budget.seconds for s in shares} == {60.0}


def test_what_is_gathered() -> None:
    """Tallies of one workload become one: the fullest view, all that is new, nothing twice."""
    shares = cut([("a", small_job), ("b", small_job)], 3, Budget(40), seed=0)
    gathered = Gathered(shares)
    tried = [Outcome({"n": n}, "ok", median_us=1.0 + n) for n in range(5)]

    def tally(name: str, number: int, fresh: int) -> Tally:
        made = Tally(name, "measured", 0, None, tried[:number])
        made.fresh.update({"ok": fresh})
        made.illegal = 7
        return made

    gathered.put(shares[0], tally("a", 3, 2))
    gathered.put(shares[1], tally("a", 5, 3))
    gathered.put(shares[2], tally("b", 1, 1))
    a, b = gathered.tallies
    assert (a.name, a.new, a.known, len(a.outcomes)) == ("a", 5, 0, 5)
    assert (b.name, b.new) == ("b", 1)
    assert gathered.counts == {"ok": 6, "illegal": 14}


def test_a_space_is_shared_by_the_gpus(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All GPUs work at the one workload there is: every configuration is measured, few but the
    default twice before the finals, the best is the fastest, each GPU has its row in the run."""
    machine = Machine(count=2, fake=CARD, slow_s=0.02, node="x")
    assert run(machine, place, write_spec(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.count("small  ") <= 2, "one line for the workload in the table, whoever did it"
    counts, candidates, runs = outcomes(place)
    assert len(counts) == POINTS
    once = sum(n == 1 for n in counts.values())
    assert once >= POINTS - 8, "finalists and the default of each GPU aside"
    assert best(place) == dumps_of(candidates, fastest())
    (whole,) = (r for r in runs if not r.part_of and not r.closes)
    parts = [r for r in runs if r.part_of and not r.closes]
    assert {r.part_of for r in parts} == {whole.id}
    assert len({r.card for r in parts}) == 2
    assert sum(r.complete for r in runs) == 3
    assert run(machine, place, write_spec(tmp_path)) == 0
    assert "0 measured" in capsys.readouterr().out.splitlines()[-1]


def dumps_of(candidates: dict[str, Candidate], params: dict[str, Any]) -> str:
    """Parameters as the database writes them."""
    from kdsl.runtime.records.form import dumps

    assert params in [dict(c.params) for c in candidates.values()]
    return dumps(params)


def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """One GPU's process dies between two candidates: its share is begun again, goes on from what is
    stored, and nothing is lost."""
    place = tmp_path / "t.db"
    machine = Machine(count=2, fake=CARD, slow_s=0.02, node="x", dies=tmp_path / "dead")
    assert run(machine, place, write_spec(tmp_path)) == 0
    assert (tmp_path / "dead").exists()
    counts, candidates, _ = outcomes(place)
    assert len(counts) == POINTS
    assert best(place) == dumps_of(candidates, fastest())


def test_an_ill_gpu_is_left_out(tmp_path: Path) -> None:
    """The others do its work."""
    place = tmp_path / "t.db"
    machine = Machine(count=3, fake=CARD, node="x", ill=(1,))
    assert run(machine, place, write_spec(tmp_path), "12") == 0
    counts, _, runs = outcomes(place)
    assert len(counts) >= 12
    assert len({r.card for r in runs if r.part_of and not r.closes}) == 2


def test_no_gpu_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where every GPU is ill the run ends with the reason, and is there to be resumed."""
    place = tmp_path / "t.db"
    machine = Machine(count=2, node="x", ill=(0, 1))
    assert run(machine, place, write_spec(tmp_path), "20") == 1
    assert "no CUDA-capable device" in capsys.readouterr().err
    _, _, runs = outcomes(place)
    assert [r.complete for r in runs] == [False, False]


def test_time_is_dealt_out(tmp_path: Path) -> None:
    """A run with a time ends about when it says, whatever the number of GPUs and workloads."""
    place = tmp_path / "t.db"
    machine = Machine(count=2, fake=CARD, slow_s=0.1, node="x")
    started = time.monotonic()
    assert run(machine, place, write_spec(tmp_path), "12s", "--workload", "clip") == 0
    assert time.monotonic() - started < 60
    counts, _, _ = outcomes(place)
    assert counts


SCRIPT = """
import sys
from pathlib import Path
from kdsl.autotune.cli import main
from tests.autotune.made_up import Machine
machine = Machine(count=2, slow_s=0.2, node="x")
sys.exit(main(sys.argv[1:], hardware=lambda: machine))
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("new_place", "number"),
    [("sqlite", signal.SIGINT), ("postgresql", signal.SIGKILL)],
    indirect=["new_place"],
)
def test_interrupted(place: Place, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped or killed in the middle, the run leaves its rows and no process behind; the same
    command goes on with the rest."""
    root = Path(__file__).parents[2]
    words = ["--gpu", "a100", "--spec", str(write_spec(tmp_path)), "--budget", "100",
             "--storage", str(place)]  # fmt: skip
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words], cwd=root, text=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        with Store(place) as store:
            end = time.monotonic() + 60
            while time.monotonic() < end and len(list(store.values("measurement"))) < 6:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
        started = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        children = [int(word) for word in started.stdout.split()]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "python -m autotune --resume" in err
    assert len(children) >= 2
    end = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in children if alive(pid)]
    before, _, _ = outcomes(place)
    assert len(before) >= 4
    assert run(Machine(count=2, fake=CARD, node="x"), place, write_spec(tmp_path)) == 0
    after, _, _ = outcomes(place)
    assert len(after) == POINTS
    assert all(after[candidate] >= n for candidate, n in before.items())


def test_two_drivers_share_a_study(tmp_path: Path) -> None:
    """Two commands at once, each with a GPU of its own, one database and one study, do the work of
    one between them."""
    place, root, spec = tmp_path / "t.db", Path(__file__).parents[2], write_spec(tmp_path)
    words = ["--gpu", "a100", "--spec", str(spec), "--budget", "100", "--storage", str(place),
             "--study", str(tmp_path / "study.log")]  # fmt: skip
    script = SCRIPT.replace("count=2", "count=1").replace('"x"', "str(__import__('os').getpid())")
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    drivers = [
        subprocess.Popen([sys.executable, "-c", script, *words, "--seed", str(n)], cwd=root,
                         env=environment, stdout=subprocess.PIPE)
        for n in range(2)
    ]  # fmt: skip
    for process in drivers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    counts, _, runs = outcomes(place)
    assert len(counts) == POINTS
    assert sum(n == 1 for n in counts.values()) >= POINTS - 8
    assert sum(r.complete for r in runs) == 2


def test_a_share_travels() -> None:
    """A share of a workload of one's own is plain data that another process can read."""
    import pickle

    job = small_job()
    from kdsl.autotune.session.job import make

    share = Share(0, "small", partial(make, "small", job.tunable.spec, {}), Budget(4), 0)
    again = pickle.loads(pickle.dumps(share))
    assert again.make().tunable.spec == job.tunable.spec
