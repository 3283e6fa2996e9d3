"""Costs of a model on the GPU at hand: kernels of made-up shards, gathers, merges."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.virtual.cases import Model
from benchmarks.virtual.shards import LIMIT, Bench, Calls, Timer
from kdsl.parallel.calibration import Entry, HandlingEntry, KernelEntry
from kdsl.parallel.cost import MB, Costs, Handling
from kdsl.parallel.kernel_model import Counts, Fitted, fit_kernel
from kdsl.parallel.pieces import Piece
from kdsl.parallel.topology import Topology, nonnegative
from kdsl.runtime.lines import gather
from kdsl.runtime.merge import merge
from kdsl.targets import Target

SHARES = ((1.0, 1.0), (0.5, 1.0), (0.25, 0.5), (0.1, 1.0), (0.1, 0.25), (0.05, 0.05), (0.03, 1.0))
"""Shares of the heads and of the rows that made-up shards have."""
DENSITIES = (0.05, 0.2, 0.6)
COPIED = (0.01, 0.1, 0.5)
"""Shares of the lines of one rank of two that gathers and merges are timed at."""


def fitted(model: Model, bench: Bench, target: Target, timer: Timer) -> tuple[Costs, list[Entry]]:
    """Costs with measured kernels, gathers and merges (links and the host's part stay assumed), and
    the entries that say so."""
    plain = Costs.of(model.spec, target, Topology(1, 1))
    kernel = fit_kernel(list(_kernels(model, bench, timer)))
    handling, count = _handling(model, bench, plain.handling, timer)
    spec = model.spec
    entries: list[Entry] = [
        KernelEntry(
            target.cc, spec.dtype, spec.head_dim, spec.block, 1, kernel.model, kernel.error,
            len(SHARES) * len(DENSITIES),
        ),
        HandlingEntry(target.name, spec.dtype, spec.head_dim, 1, handling, plain.slowdown,
                      plain.hidden, count),
    ]  # fmt: skip
    made = Costs(kernel.model, plain.topology, plain.line_bytes, handling, plain.slowdown, 0.0)
    return made, entries


def _kernels(model: Model, bench: Bench, timer: Timer) -> list[tuple[Counts, float]]:
    """Random shards of many sizes, and their times."""
    runs: dict[str, Calls] = {}
    for number, (heads, rows) in enumerate(SHARES):
        for density in DENSITIES:
            rng = np.random.default_rng(number)
            count, tall = max(1, round(heads * model.heads)), max(1, round(rows * model.lines))
            wide = model.lines
            kept = rng.random((count, tall, wide)) < density * rng.uniform(0.5, 1.5, (count, 1, 1))
            own = tuple(range(count))
            tokens = min(tall * model.block, model.tokens)
            piece = Piece(
                own, own, np.arange(tall), np.tile(np.arange(wide), (count, 1)), tokens,
                model.tokens, (model.block, model.block), kept, np.zeros_like(kept),
            )  # fmt: skip
            name = f"{count} x {tall} at {density}"
            if not kept.any():
                continue
            runs[name], error = bench.call(piece)
            if not error < LIMIT[model.dtype]:
                raise ValueError(f"{name}: error {error:.6f}")
    took = timer(runs)
    return [(run.counts[0], took[name]) for name, run in runs.items()]


def _handling(model: Model, bench: Bench, plain: Handling, timer: Timer) -> tuple[Handling, int]:
    """Microseconds a megabyte of gathers and of merges; what begins each goes into exchanges."""
    import torch

    lines = model.heads * model.tokens // 2
    shuffled = np.random.default_rng(0)
    flat = bench.q.reshape(-1, 1, model.head_dim)
    runs: dict[str, Any] = {}
    sizes: dict[str, float] = {}
    for share in COPIED:
        count = max(1, int(share * lines))
        # Runs of a shard's tokens in another order of heads, as exchanges have them.
        starts = shuffled.permutation(max(1, len(flat) // 64))[: max(1, count // 64)] * 64
        index = torch.from_numpy((starts[:, None] + np.arange(64)).reshape(-1) % len(flat)).to(
            bench.device
        )
        each = model.head_dim * flat.element_size() * len(index)
        runs[f"copy {share}"] = lambda index=index: gather([flat], index)
        sizes[f"copy {share}"] = 2.0 * each
        total = flat[: len(index)].reshape(1, 1, -1, model.head_dim).clone()
        lse = torch.zeros(total.shape[:-1], device=bench.device)
        runs[f"merge {share}"] = lambda a=total, b=lse: merge(a, b, a, b, a.dtype)
        sizes[f"merge {share}"] = 3.0 * each
    took = timer(runs)
    found = {}
    for kind in ("copy", "merge"):
        names = [name for name in runs if name.startswith(kind)]
        columns = np.asarray([[1.0, sizes[name] / MB] for name in names])
        found[kind] = nonnegative(columns, np.asarray([took[name] for name in names]))
    began = float(found["copy"][0])
    return (
        Handling(
            plain.call_us, max(plain.exchange_us, 2 * began), float(found["copy"][1]),
            float(found["merge"][1]),
        ),
        len(runs),
    )  # fmt: skip


__all__ = ["Fitted", "fitted"]
