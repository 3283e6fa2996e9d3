"""The command line: exit codes, words, going on, interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest

from kdsl import Grid, Permute, orders, targets, workloads
from kdsl.autotune.cli import main
from kdsl.autotune.cli.arguments import Usage, command_parser, tune_parser
from kdsl.autotune.cli.plan import PROGRAM, understood
from kdsl.autotune.compiling import Built
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.measuring.lock import hold
from kdsl.autotune.screen.report import alike
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.store import Store
from kdsl.runtime.records import Measurement, Run
from kdsl.workloads import get
from tests.autotune.made_up import FakeHardware, FakePool, write_spec

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]


def rows(tmp_path: Path) -> list[Measurement]:
    """Measurements of the test's database."""
    with Store(tmp_path / "tuning.db") as store:
        return [row for row in store.rows() if isinstance(row, Measurement)]


@pytest.mark.parametrize(
    ("direction", "kernels"),
    [
        (None, ["clip"]),
        ("forward", ["clip"]),
        ("backward", ["clip backward keys", "clip backward queries"]),
        ("both", ["clip", "clip backward keys", "clip backward queries"]),
    ],
)
def test_directions(direction: str | None, kernels: list[str]) -> None:
    """The kernels of the gradients are jobs of their own, forward is the default, and a run that is
    gone on with keeps its direction."""
    words = ["--gpu", "h100", "--workload", "clip"]
    words += ["--direction", direction] if direction else []
    plan = understood(tune_parser().parse_args(words))
    assert [name for name, _ in plan.jobs] == kernels
    made = [make() for _, make in plan.jobs]
    assert [job.name for job in made] == kernels
    assert len({job.tunable.op for job in made}) == len(made)
    again = tune_parser().parse_args(list(plan.words))
    assert again.direction == direction


def test_a_spec_without_a_backward(tmp_path: Path) -> None:
    """A spec whose only operation is forward has nothing to tune backward, and is told so."""
    path = tmp_path / "permute.json"
    spec = Permute(tokens=Grid(64), heads=1, head_dim=64, order=orders.identity(Grid(64)))
    path.write_text(json.dumps(spec.to_json()))
    words = ["--gpu", "h100", "--spec", str(path), "--direction", "backward"]
    with pytest.raises(Usage, match="nothing backward"):
        understood(tune_parser().parse_args(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "a1000"], "'a100'"),
        (["--gpu", "voodoo2"], "rtx4090"),
        (["--gpu", "a100", "--workload", "wan2.1"], "wan2.1-1.3b-480p"),
        (["--gpu", "a100", "--budget", "soon"], "40 (candidates"),
        (["--gpu", "a100", "--tables", "x.npz"], "--spec"),
        (["--gpu", "a100", "--spec", "nowhere.json"], "cannot be read"),
        (["--gpu", "a100", "--jobs", "0"], "1 or more"),
        (["--workload", "clip"], "--gpu is missing"),
        ([], "--gpu is missing"),
        (["--resume"], "nothing to go on with"),
        (["show", "--gpu", "a1000"], "'a100'"),
        (["show", "--workload", "clop"], "'clip'"),
    ],
)
def test_wrong_command_lines(call: Call, tmp_path: Path, words: list[str], said: str) -> None:
    """Exit code 2, the error says what would work, and nothing was done."""
    code, out, err = call(*words)
    assert code == 2
    assert said in err
    assert not out
    assert not (tmp_path / "tuning.db").exists() or not rows(tmp_path)


@pytest.mark.parametrize("words", [["--storage", "mysql://x/y", "--gpu", "a100"], ["--gpu"]])
def test_what_the_parser_refuses(call: Call, words: list[str]) -> None:
    """The parser's own refusals exit with 2, too."""
    with pytest.raises(SystemExit) as stopped:
        call(*words)
    assert stopped.value.code == 2


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has every workload, GPU, option, command and exit code, and an example of each."""
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for name in (*workloads.names(), *(t.name for t in targets.known())):
        assert name in said
    for word in ("--budget", "--resume", "--require-device", "show", "export", "130", "examples"):
        assert word in said
    assert max(map(len, said.splitlines())) < 130
    assert "export" in command_parser().format_help()


def test_a_required_gpu_that_is_absent(call: Call, tmp_path: Path) -> None:
    """Exit code 3 before anything is done: no database appears and nothing is compiled."""
    hardware = FakeHardware()
    code, out, err = call(
        "--gpu", "a100", "--workload", "clip", "--require-device", hardware=hardware
    )
    assert code == 3
    assert err == "no a100 here, and --require-device was given\n"
    assert not out
    assert not (tmp_path / "tuning.db").exists()
    assert hardware.made.asked == []


def test_an_absent_gpu_is_predicted(call: Call, tmp_path: Path) -> None:
    """Exit code 0; tables, and as the last line how many were predicted and none measured."""
    code, out, err = call("--gpu", "a100", "--spec", write_spec(tmp_path), "--budget", "6")
    assert code == 0
    assert not err
    assert out.splitlines()[-1] == "no a100 here: 6 predicted, 0 measured"
    assert re.search(r"│ small +│ a100 │ predicted │", out)
    assert "┃ registers ┃" in out
    assert re.search(r"│ (default|\d \(default\)) +│", out)
    assert [row.kind for row in rows(tmp_path)] == ["predicted"] * 6


def test_a_second_run_says_what_was_known(call: Call, tmp_path: Path) -> None:
    """The same command again predicts nothing new, and says so; a larger budget goes on."""
    spec = write_spec(tmp_path)
    call("--gpu", "a100", "--spec", spec, "--budget", "6")
    _, out, _ = call("--gpu", "a100", "--spec", spec, "--budget", "6")
    assert out.splitlines()[-1] == "no a100 here: 0 predicted, 0 measured (6 more known before)"
    _, out, _ = call("--gpu", "a100", "--spec", spec, "--budget", "8")
    assert out.splitlines()[-1] == "no a100 here: 2 predicted, 0 measured (6 more known before)"
    assert len(rows(tmp_path)) == 8


def test_a_present_gpu_is_measured(call: Call, tmp_path: Path) -> None:
    """With the GPU here rows are measured, of all statuses, and the lock is free afterwards."""
    card = FakeCard(base_us=100.0, faults=(({"num_warps": 8}, "wrong"),))
    hardware = FakeHardware("h100", card)
    words = ("--gpu", "h100", "--spec", write_spec(tmp_path), "--budget", "30", "--require-device")
    code, out, _ = call(*words, hardware=hardware)
    assert code == 0
    found = [row.status for row in rows(tmp_path)]
    wrong = found.count("wrong")
    assert 0 < wrong < 30
    assert out.splitlines()[-1] == f"h100: {30 - wrong} measured, {wrong} failed"
    assert {row.kind for row in rows(tmp_path)} == {"measured"}
    assert {row.status for row in rows(tmp_path)} == {"ok", "wrong"}
    with hold("fake-card"):
        pass


def test_a_gpu_in_use_is_refused(call: Call, tmp_path: Path) -> None:
    """Another process's lock is a fault with its pid, exit code 1, and nothing is measured."""
    with hold("fake-card", tmp_path / "cache"):
        code, _, err = call(
            "--gpu", "h100", "--spec", write_spec(tmp_path), hardware=FakeHardware("h100")
        )
    assert code == 1
    assert str(os.getpid()) in err
    assert rows(tmp_path) == []


def test_an_ill_gpu_ends_the_run(call: Call, tmp_path: Path) -> None:
    """A GPU that fails with what it could do is exit code 1 with the reason; rows before it stay,
    and the run counts as cut off."""
    faults = (({"num_warps": 8}, "illegal_access"),)
    card = FakeCard(base_us=100.0, faults=faults, scar=tmp_path / "scar")
    words = ("--gpu", "h100", "--spec", write_spec(tmp_path), "--budget", "40")
    code, _, err = call(*words, hardware=FakeHardware("h100", card))
    assert code == 1
    assert "is ill" in err
    assert {row.status for row in rows(tmp_path)} == {"ok"}
    assert call("--resume", hardware=FakeHardware())[0] == 0


class Interrupted(FakePool):
    """A compiler during whose fourth result somebody presses Ctrl-C."""

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """Interrupts the process, then goes on."""
        if len(self.asked) - len(self.done) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return super().result(key, until)


def test_ctrl_c_keeps_everything_and_resume_goes_on(call: Call, tmp_path: Path) -> None:
    """130, how to go on, every row stored; ``--resume`` has the command's GPU, spec and budget and
    only makes what is missing; then nothing is left to resume."""
    spec = write_spec(tmp_path)
    words = ("--gpu", "a100", "--spec", spec, "--budget", "9", "--seed", "5")
    code, out, err = call(*words, hardware=FakeHardware(pool=Interrupted()))
    assert code == 130
    assert "python -m autotune --resume" in err
    assert out.splitlines()[-1] == "no a100 here: 3 predicted, 0 measured"
    assert len(rows(tmp_path)) == 3
    before = signal.getsignal(signal.SIGINT)
    code, out, err = call("--resume")
    assert code == 0
    assert out.splitlines()[-1] == "no a100 here: 6 predicted, 0 measured (3 more known before)"
    assert signal.getsignal(signal.SIGINT) is before
    with Store(tmp_path / "tuning.db") as store:
        runs = [row for row in store.rows() if isinstance(row, Run)]
    assert sorted((bool(r.closes), r.complete) for r in runs) == [
        (False, False),
        (False, False),
        (True, False),
        (True, True),
    ]
    assert {r.seed for r in runs if not r.closes} == {5}


def test_resume_takes_the_last_unfinished_run(call: Call, tmp_path: Path) -> None:
    """A complete run is not resumed; with ``--gpu`` only a run of that GPU is; new options win."""
    spec = write_spec(tmp_path)
    for gpu in ("a100", "l40s"):
        words = ("--gpu", gpu, "--spec", spec, "--budget", "9")
        assert call(*words, hardware=FakeHardware(pool=Interrupted()))[0] == 130
    assert call("--gpu", "h100", "--spec", spec, "--budget", "4")[0] == 0
    _, out, _ = call("--resume", "--gpu", "A100", "--budget", "5")
    assert out.splitlines()[-1] == "no a100 here: 2 predicted, 0 measured (3 more known before)"
    _, out, _ = call("--resume")
    assert out.splitlines()[-1].startswith("no l40s here: 6 predicted")


def test_what_is_left_is_said(call: Call, tmp_path: Path) -> None:
    """A run that its time cuts off says which workloads want more, and how to go on."""
    pool = FakePool(seconds=0.3)
    words = ("--gpu", "a100", "--spec", write_spec(tmp_path), "--budget", "20,1s")
    code, out, _ = call(*words, hardware=FakeHardware(pool=pool))
    assert code == 0
    left = next(line for line in out.splitlines() if line.startswith("left: "))
    assert "small (" in left
    assert "--resume" in left


def test_the_catalogue_is_taken_smallest_first() -> None:
    """Without a workload the plan is the whole catalogue in its order, with default budgets."""
    plan = understood(tune_parser().parse_args(["--gpu", "A-100", "--workload", "clip"]))
    assert [name for name, _ in plan.jobs] == ["clip"]
    plan = understood(tune_parser().parse_args(["--gpu", "a100"]))
    assert [name for name, _ in plan.jobs] == list(workloads.names())
    assert (plan.budget, plan.seed) == (None, 0)
    work = [get(name).spec for name in workloads.names()]
    sizes = [s.heads * s.query_grid.tokens * s.head_dim for s in work]
    assert sizes[0] == min(sizes)


def test_the_command_is_kept_without_places_of_this_machine(tmp_path: Path) -> None:
    """The command in a run's row parses back to the same plan, without the database's path."""
    spec = write_spec(tmp_path)
    words = ["--gpu", "h100", "--budget", "2m", "--workload", "clip", "--spec", str(spec)]
    plan = understood(tune_parser().parse_args([*words, "--storage", "/secret.db"]))
    assert "secret" not in plan.command
    again = understood(tune_parser().parse_args(plan.command.split()[len(PROGRAM) :]))
    assert again.words == plan.words
    assert again.budget == plan.budget == Budget(None, 120.0)
    assert [name for name, _ in again.jobs] == ["small", "clip"]


def test_open_tables_need_values(call: Call, tmp_path: Path) -> None:
    """A spec with an open table is refused without its values and tuned with them."""
    workload = get("clip")
    spec, tables = tmp_path / "clip.json", tmp_path / "clip.npz"
    spec.write_text(json.dumps(workload.spec.to_json()))
    code, _, err = call("--gpu", "a100", "--spec", spec, "--budget", "2")
    assert code == 2
    assert "--tables FILE.npz" in err
    assert "'plan'" in err
    np.savez(tables, **workload.sample())  # type: ignore[arg-type]
    assert call("--gpu", "a100", "--spec", spec, "--tables", tables, "--budget", "2")[0] == 0
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"op": "attention"}', '{"op": "rm -rf"}', "\xff"]
)
def test_files_that_are_no_spec(call: Call, tmp_path: Path, text: str) -> None:
    """A broken spec file is a wrong command line with the file's name."""
    spec = tmp_path / "broken.json"
    spec.write_bytes(text.encode("latin-1"))
    code, _, err = call("--gpu", "a100", "--spec", spec)
    assert code == 2
    assert "spec" in err or "op" in err


def test_show_and_export(call: Call, tmp_path: Path) -> None:
    """``show`` has default and choice of each workload by GPU, ``export`` writes the same rows."""
    assert "makes some" in call("show")[1]
    spec = write_spec(tmp_path)
    for gpu in ("a100", "l40s"):
        call("--gpu", gpu, "--spec", spec, "--budget", "6")
    call("--gpu", "a100", "--workload", "clip", "--budget", "2")
    _, out, _ = call("show")
    assert "attention 2 x 256 x 256 x 64" in out
    assert "l40s" in out
    code, out, _ = call("show", "--gpu", "a100", "--workload", "clip")
    assert code == 0
    assert "l40s" not in out
    assert "registers" in out
    path = tmp_path / "a100.jsonl"
    assert call("export", path, "--gpu", "a100")[0] == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [line for line in lines if line.get("table") == "measurement"]
    assert len(found) == 8


def environment(tmp_path: Path) -> dict[str, str]:
    """A process's environment with a database and cache of the test's own."""
    own = {"KDSL_CACHE_DIR": str(tmp_path / "cache"), "KDSL_DB": str(tmp_path / "tuning.db")}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.mark.parametrize("module", ["autotune", "kdsl.autotune"])
def test_a_real_run_without_a_gpu(tmp_path: Path, module: str) -> None:
    """From the command line, through the real compiler: two rows, clean output, exit code 0."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--gpu", "a100", "--budget", "2", "--jobs", "1",
         "--spec", str(write_spec(tmp_path, 32))],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "no a100 here: 2 predicted, 0 measured"
    found = rows(tmp_path)
    assert [row.status for row in found] == ["ok", "ok"]
    assert all(row.registers and row.shared_bytes and row.binary_hash for row in found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_sound_database(tmp_path: Path, number: signal.Signals) -> None:
    """Interrupted while compilers run: exit code 130, how to go on, a database that passes its own
    check with every reported row in it, and no process or temporary folder left."""
    (tmp_path / "tmp").mkdir()
    words = ["-m", "autotune", "--gpu", "a100", "--spec", str(write_spec(tmp_path, 64))]
    with subprocess.Popen(
        [sys.executable, *words, "--jobs", "2"], cwd=ROOT, text=True,
        env={**environment(tmp_path), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        end = time.monotonic() + 120
        while time.monotonic() < end and _count(tmp_path / "tuning.db") < 1:
            assert process.poll() is None
            time.sleep(0.1)
        children = _children(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    with sqlite3.connect(tmp_path / "tuning.db") as link:
        assert link.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    link.close()
    count = len(rows(tmp_path))
    assert count >= 1
    assert out.splitlines()[-1] == f"no a100 here: {count} predicted, 0 measured"
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list((tmp_path / "tmp").glob("kdsl-tune-*")) == []


def _count(path: Path) -> int:
    """Measurements in a database that is being written."""
    if not path.exists():
        return 0
    link = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(link.execute("SELECT COUNT(*) FROM measurement").fetchone()[0])
    except sqlite3.Error:
        return 0
    finally:
        link.close()


def _children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def test_what_all_share_is_said_once() -> None:
    """Settings that differ stay in a row, the others are said below; one row alone says all."""
    one, two = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "c": 3}
    assert alike([one, two]) == {"a": 1, "c": 3}
    assert alike([one, one]) == one
    assert alike([one]) == {}
