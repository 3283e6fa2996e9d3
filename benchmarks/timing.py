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
