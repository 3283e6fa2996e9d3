"""A process that writes to a database, alone or with others; run as a script with its place.

``count FIRST N`` adds N measurements and prints each number once it is stored. ``die N`` adds two
measurements and dies before the N-th statement of the second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kdsl.autotune.store import Store
from kdsl.runtime.records import Candidate, Device, Measurement, Row, Run, Toolchain, Workload

SHARED = (
    Workload(op="attention", program="p", dtypes={}, dims={}),
    Device(name="h100", cc=90, sms=132),
    Toolchain(kdsl="0.1"),
)


def rows(writer: str, n: int) -> list[Row]:
    """The n-th measurement of a writer, with all that it refers to."""
    run = Run(started=writer)
    candidate = Candidate(space_hash="s", params={"n": n, "writer": writer})
    row = Measurement(
        workload_id=SHARED[0].id,
        device_id=SHARED[1].id,
        toolchain_id=SHARED[2].id,
        candidate_id=candidate.id,
        run_id=run.id,
        kind="measured",
        status="ok",
        created="",
        median_us=1.0 + n,
    )
    return [*SHARED, run, candidate, row]


def dying(run: Callable[..., int], before: int) -> Callable[..., int]:
    """Executes statements, and kills the process before one of them."""
    left = iter(range(before))

    def execute(text: str, values: Sequence[Any] = ()) -> int:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(text, values)

    return execute


def die(place: str) -> None:
    """For each statement a child that dies before it; says how each ended."""
    n = 0
    while True:
        child = os.fork()
        if not child:
            store = Store(place)
            store.add(*rows(f"died-{n}", 0))
            print(f"stored died-{n}", flush=True)
            store.link.run = dying(store.link.run, n)  # type: ignore[method-assign]
            store.add(*rows(f"died-{n}", 1))
            print(f"through died-{n}", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return
        n += 1


def count(place: str, writer: str, number: int) -> None:
    """Add so many, and say so after each."""
    with Store(place) as store:
        for n in range(number):
            store.add(*rows(writer, n))
            print(n, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "die":
        die(sys.argv[2])
    else:
        count(sys.argv[2], sys.argv[3], int(sys.argv[4]))
