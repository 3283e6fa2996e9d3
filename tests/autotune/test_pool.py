"""The pool of compiling processes: limits, crashes, order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import targets
from kdsl.autotune.children import Child
from kdsl.autotune.compiling import Built, CompilePool
from kdsl.autotune.compiling.limits import Limit
from kdsl.autotune.compiling.pool import identity
from kdsl.errors import UnsupportedError
from kdsl.runtime.aot import compile_for
from kdsl.work import AheadOfTime
from tests.autotune.made_up import small_job

WORKERS = """
import os, signal, time
from kdsl.autotune.compiling import Built

def compiler(link):
    link.send("")
    while True:
        what, target = link.recv()
        if what.entry == "hang":
            time.sleep(3600)
        if what.entry == "slow":
            time.sleep(0.6)
        if what.entry == "die":
            os.kill(os.getpid(), signal.SIGABRT)
        link.send(Built("ok", registers=len(what.entry), binary_hash=str(os.getpid())))

def without_triton(link):
    link.send("No module named 'triton'")

def stillborn(link):
    raise RuntimeError("no room")
"""
A100 = targets.get("a100")


def what(entry: str) -> AheadOfTime:
    """A job of this name."""
    return AheadOfTime("", entry, {}, {}, (), {})


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CompilePool]]:
    """Pools over the functions of `WORKERS`, all closed at the end."""
    (tmp_path / "compilers_of_test.py").write_text(WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    pools = []

    def make(jobs: int = 1, name: str = "compiler", limit: Limit | None = None) -> CompilePool:
        pool = CompilePool(jobs, limit=limit, start=lambda: Child(f"compilers_of_test:{name}"))
        pools.append(pool)
        return pool

    yield make
    for one in pools:
        one.close()


def test_results_come_by_key(pool: Callable[..., CompilePool]) -> None:
    """Each job's result is fetched by its own key, in any order, from two processes."""
    two = pool(2)
    for length in range(1, 7):
        two.submit(length, what("x" * length), A100)
    found = {length: two.result(length) for length in (4, 1, 6, 2, 3, 5)}
    assert {k: b.registers for k, b in found.items() if b} == {n: n for n in range(1, 7)}
    assert 1 <= len({b.binary_hash for b in found.values() if b}) <= 2


def test_a_hanging_compiler_is_killed(pool: Callable[..., CompilePool]) -> None:
    """Beyond the limit a job ends as ``compile_timeout``; the next one finds a fresh process."""
    one = pool(1, limit=Limit(low=0.2, high=0.2))
    one.submit("a", what("hang"), A100)
    one.submit("b", what("quick"), A100)
    first, second = one.result("a"), one.result("b")
    assert first is not None
    assert second is not None
    assert first.status == "compile_timeout"
    assert "killed after" in first.reason
    assert second.status == "ok"


def test_the_default_may_take_longer(pool: Callable[..., CompilePool]) -> None:
    """A patient job gets three times the limit."""
    one = pool(1, limit=Limit(low=0.3, high=0.3))
    one.submit("impatient", what("slow"), A100)
    one.submit("patient", what("slow"), A100, patient=True)
    first, second = one.result("impatient"), one.result("patient")
    assert first is not None
    assert second is not None
    assert (first.status, second.status) == ("compile_timeout", "ok")


def test_a_crashing_compiler_is_one_candidates_fault(pool: Callable[..., CompilePool]) -> None:
    """An abort inside the compiler is a ``compile_error`` with its signal, and nothing else."""
    one = pool(1)
    for key in ("die", "fine"):
        one.submit(key, what(key), A100)
    died, fine = one.result("die"), one.result("fine")
    assert died is not None
    assert fine is not None
    assert died.status == "compile_error"
    assert "SIGABRT" in died.reason
    assert fine.status == "ok"


def test_waiting_is_bounded(pool: Callable[..., CompilePool]) -> None:
    """At the deadline there is no result, and dropping forgets the job and kills its process."""
    one = pool(1)
    one.submit("a", what("hang"), A100)
    one.submit("b", what("quick"), A100)
    started = time.monotonic()
    assert one.result("a", time.monotonic() + 1.5) is None
    assert time.monotonic() - started < 10
    one.drop(refill=True)
    one.submit("c", what("quick"), A100)
    found = one.result("c")
    assert found is not None
    assert found.status == "ok"


def test_no_triton_is_said(pool: Callable[..., CompilePool]) -> None:
    """Without Triton, or with a process that cannot start, the error says what is missing."""
    missing = pool(1, "without_triton")
    missing.submit("a", what("x"), A100)
    with pytest.raises(UnsupportedError, match="No module named 'triton'"):
        missing.result("a")
    stillborn = pool(1, "stillborn")
    stillborn.submit("a", what("x"), A100)
    with pytest.raises(UnsupportedError, match="no room"):
        stillborn.result("a")


@given(st.lists(st.floats(0, 500), max_size=40))
def test_the_limit_is_bounded_and_follows_the_slow_ones(seen: list[float]) -> None:
    """Always within its bounds; twice what nine of ten stay below, once there is something to go
    by."""
    limit = Limit()
    for seconds in seen:
        limit.add(seconds)
    assert 10 <= limit.seconds <= 60
    if len(seen) < 5:
        assert limit.seconds == 60
    else:
        below = sum(s <= limit.seconds / 2 for s in seen)
        assert limit.seconds in (10, 60) or below >= 0.9 * len(seen)


def test_a_real_kernel_comes_back_with_its_resources(tmp_path: Path) -> None:
    """The figures from the process are those of compiling here; an impossible tile is a
    ``compile_error`` with the compiler's words, not an exception."""
    job = small_job(32)
    params = job.tunable.default(A100)
    right = job.tunable.ahead_of_time(params, A100)
    bad = AheadOfTime(
        right.source, right.entry, right.signature, {**right.constants, "BLOCK_M": 48},
        right.divisible, right.options,
    )  # fmt: skip
    with CompilePool(1, environment={"TRITON_CACHE_DIR": str(tmp_path)}) as pool:
        pool.submit("right", right, A100)
        pool.submit("bad", bad, A100)
        built, refused = pool.result("right"), pool.result("bad")
    assert built is not None
    assert refused is not None
    here: Any = compile_for(job.tunable, params, A100)
    assert built == Built(
        "ok",
        registers=here.registers,
        spill_bytes=here.spill_bytes,
        shared_bytes=here.shared_bytes,
        stack_bytes=here.stack_bytes,
        warps=here.warps,
        binary_hash=here.binary_hash,
        seconds=built.seconds,
    )
    assert refused.status == "compile_error"
    assert "attention_forward" in refused.reason


def test_equal_kernels_are_compiled_once(pool: Callable[..., CompilePool]) -> None:
    """What was compiled under one key is given under another at once, also after a drop; another
    source or target is another kernel."""
    one = pool(1)
    one.submit("a", what("slow"), A100)
    first = one.result("a")
    one.drop()
    started = time.monotonic()
    one.submit("b", what("slow"), A100)
    assert one.result("b") == first
    assert time.monotonic() - started < 0.5
    assert identity(what("slow"), A100) != identity(what("quick"), A100)
    assert identity(what("slow"), A100) != identity(what("slow"), targets.get("h100"))
