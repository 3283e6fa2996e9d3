"""Time several implementations of one thing against each other."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping

Run = Callable[[], object]

ROUNDS = 7
ROUND_MS = 60.0
"""Each implementation runs about this long in every round."""
HEAD_START = 30_000_000
"""Clock cycles, 15 to 20 ms: longer than it takes to queue a round's launches."""


def interleaved(runs: Mapping[str, Run], seed: int = 0) -> dict[str, float]:
    """Median milliseconds of each, from rounds in shuffled order.

    A card's clock wanders with its heat: only what runs side by side is comparable.
    """
    import torch

    counts = {}
    for name, run in runs.items():
        for _ in range(3):
            run()
        once = _time(run, 3)
        counts[name] = max(3, min(200, int(ROUND_MS / max(once, 1e-3))))
    torch.cuda.synchronize()
    shuffle = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        order = list(runs)
        shuffle.shuffle(order)
        for name in order:
            times[name].append(_time(runs[name], counts[name]))
    return {name: statistics.median(t) for name, t in times.items()}


def _time(run: Run, count: int) -> float:
    """Median milliseconds of single launches.

    The GPU first sleeps while the host queues the launches: what is timed is the device's work,
    not how fast Python hands it out.
    """
    import torch

    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]
    torch.cuda._sleep(HEAD_START)
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def brief(
    runs: Mapping[str, Run], rounds: int = 5, least_us: float = 200.0, seed: int = 0
) -> dict[str, float]:
    """Median microseconds of each of many, one event pair a round in shuffled order.

    What is shorter than ``least_us`` is launched several times between the events.
    """
    import torch

    counts = {}
    for name, run in runs.items():
        run()
        counts[name] = max(1, min(32, round(least_us / 1e3 / max(_time(run, 1), 1e-3))))
    shuffle = random.Random(seed)
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        order = list(runs)
        shuffle.shuffle(order)
        events = {}
        torch.cuda._sleep(HEAD_START)
        for name in order:
            events[name] = pair = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
            pair[0].record()
            for _ in range(counts[name]):
                runs[name]()
            pair[1].record()
        torch.cuda.synchronize()
        for name, (start, end) in events.items():
            took[name].append(start.elapsed_time(end) * 1e3 / counts[name])
    return {name: statistics.median(us) for name, us in took.items()}
