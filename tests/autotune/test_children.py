"""Child processes: they talk, die with a reason, and never outlive the tuner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdsl.autotune.children import Child, ChildDied, ChildHung

WORKERS = """
import os, signal, subprocess, sys, time

def echo(link, *arguments):
    link.send(arguments)
    while True:
        link.send(link.recv())

def say_and_die(link):
    print("noise on standard output")
    print("the last words", file=sys.stderr)
    sys.exit(3)

def segfault(link):
    os.kill(os.getpid(), signal.SIGSEGV)

def sleep(link):
    link.send(os.getpid())
    time.sleep(3600)

def parent_of_sleeper(link):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    link.send(child.pid)
    time.sleep(3600)

def look(link):
    link.send((os.environ.get("TRITON_INTERPRET"), os.environ.get("MORE"), os.getsid(0)))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    """Starts a function of `WORKERS`; ends them all."""
    (tmp_path / "workers_of_test.py").write_text(WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    children = []

    def make(name: str, *arguments: object, **options: object) -> Child:
        child = Child(f"workers_of_test:{name}", *arguments, **options)  # type: ignore[arg-type]
        children.append(child)
        return child

    yield make
    for child in children:
        child.kill()


@contextmanager
def soon(seconds: float = 20.0) -> Iterator[Callable[[Callable[[], bool]], None]]:
    def until(done: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.02)

    yield until


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_messages_travel(start: Callable[..., Child]) -> None:
    """Arguments reach the function, and plain values go both ways."""
    child = start("echo", 1, "two")
    assert child.receive(30) == (1, "two")
    child.send({"x": [1, (2, 3)]})
    assert child.receive(30) == {"x": [1, (2, 3)]}


def test_silence_is_noticed(start: Callable[..., Child]) -> None:
    """No answer in time is ChildHung, and the child is still there to be killed."""
    child = start("sleep")
    pid = child.receive(30)
    with pytest.raises(ChildHung):
        child.receive(0.1)
    child.kill()
    assert gone(pid)
    child.kill()


def test_last_words_are_kept(
    start: Callable[..., Child], capfd: pytest.CaptureFixture[str]
) -> None:
    """A child that ends says with what code and its last line, and nothing on our terminal."""
    child = start("say_and_die")
    with pytest.raises(ChildDied, match=r"code 3: the last words"):
        child.receive(30)
    assert capfd.readouterr() == ("", "")


def test_a_signal_is_named(start: Callable[..., Child]) -> None:
    """A crash is told by its signal, whether one listens or speaks to the dead."""
    child = start("segfault")
    with pytest.raises(ChildDied, match="SIGSEGV"):
        child.receive(30)
    with pytest.raises(ChildDied, match="SIGSEGV"):
        child.send("x")


def test_killing_reaches_grandchildren(start: Callable[..., Child]) -> None:
    """What a child started goes with it: no compiler is left behind."""
    child = start("parent_of_sleeper")
    pid = child.receive(30)
    assert not gone(pid)
    child.kill()
    with soon() as until:
        until(lambda: gone(pid))


def test_environment_and_session(
    start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child compiles for real, gets what it is given, and has a session of its own: the
    terminal's Ctrl-C does not reach it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    child = start("look", environment={"MORE": "yes"})
    interpret, more, session = child.receive(30)
    assert (interpret, more) == (None, "yes")
    assert session == child.pid != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can promise it")
def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    """Killed with SIGKILL, a tuner leaves no sleeping child behind."""
    (tmp_path / "workers_of_test.py").write_text(WORKERS)
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path[:0] = {[str(tmp_path), *sys.path]!r}
        from kdsl.autotune.children import Child
        child = Child("workers_of_test:sleep")
        print(child.receive(30), flush=True)
        time.sleep(3600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    with soon() as until:
        until(lambda: gone(pid))
