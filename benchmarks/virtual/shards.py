"""Shards: what a rank computes in one step, built by kdsl, checked on sampled rows, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.virtual.cases import Model
from kdsl.parallel.exchange import Exchanges
from kdsl.parallel.home import Home
from kdsl.parallel.kernel_model import Counts
from kdsl.parallel.local import Operators
from kdsl.parallel.pieces import Masks, Piece, calls_of
from kdsl.parallel.plan import Plan
from kdsl.parallel.work import BlockWork

Run = Callable[[], object]
Timer = Callable[[Mapping[str, Run]], dict[str, float]]
"""Runs by name to median microseconds."""
SAMPLED = 4
LIMIT = {"bfloat16": 0.01, "float32": 1e-5}
"""Relative Frobenius error above which nothing is timed; of bf16 operands it is 0.0023."""


@dataclass(frozen=True, eq=False)
class Calls:
    """Kernel calls one after the other, and what each does."""

    calls: tuple[Run, ...]
    counts: tuple[Counts, ...]

    def __call__(self) -> None:
        """Run them."""
        for call in self.calls:
            call()


@dataclass(frozen=True, eq=False)
class Shard:
    """The calls of one rank in one step of a plan: what they do, and how they are run."""

    plan: str
    rank: int
    step: int
    error: float
    run: Calls

    @property
    def counts(self) -> tuple[Counts, ...]:
        """What its calls do."""
        return self.run.counts

    @property
    def name(self) -> str:
        """Where it belongs."""
        return f"{self.plan} rank {self.rank} step {self.step}"


def stopwatch(runs: Mapping[str, Run]) -> dict[str, float]:
    """Median microseconds of three calls each on the host's clock: for the reference on CPUs."""
    out = {}
    for name, run in runs.items():
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            run()
            took.append((time.perf_counter() - begin) * 1e6)
        out[name] = median(took)
    return out


def timer(device: Any) -> Timer:
    """CUDA events on a GPU, the host's clock elsewhere."""
    return timing.brief if device.type == "cuda" else stopwatch


class Bench:
    """A model's tensors on a device, and kernels of shares of its attention."""

    def __init__(self, model: Model, device: Any) -> None:
        import torch

        self.model, self.device = model, device
        shape = (model.heads, model.tokens, model.head_dim)
        torch.manual_seed(1)
        self.q, self.k, self.v = (
            torch.randn(shape, dtype=getattr(torch, model.dtype), device=device) for _ in "qkv"
        )
        options = {} if device.type == "cuda" else {"backend": "reference"}
        self.operators = Operators(model.spec, **options)

    def shards(
        self,
        name: str,
        plan: Plan,
        work: BlockWork,
        cut: Masks,
        wanted: Mapping[int, Sequence[int]],
    ) -> list[Shard]:
        """Shards of a plan: steps by rank.  Wrong ones raise ValueError."""
        whole = Exchanges(plan, Home.even(self.model.tokens, plan.world), work=work)
        parts = [whole.delivered(p) for p in range(plan.world)]
        out = []
        for rank, steps in wanted.items():
            calls = calls_of(plan, rank, parts, cut)
            for step in steps:
                pieces = [found.piece for found in calls.steps[step] if found is not None]
                if not pieces:
                    continue
                made = [self.call(piece) for piece in pieces]
                error = max(error for _, error in made)
                if not error < LIMIT[self.model.dtype]:
                    raise ValueError(f"{name}, rank {rank}, step {step}: error {error:.6f}")
                run = Calls(
                    tuple(c for run, _ in made for c in run.calls), tuple(map(counts_of, pieces))
                )
                out.append(Shard(name, rank, step, error, run))
        return out

    def call(self, piece: Piece) -> tuple[Calls, float]:
        """A piece's call on tensors of its own, and its error on sampled rows."""
        import torch

        kernel = self.operators(piece)
        heads = torch.as_tensor(piece.heads, device=self.device)
        at = torch.as_tensor(piece.query_positions, device=self.device)
        q = self.q[heads[:, None], at][None]
        place = torch.as_tensor(piece.key_positions, device=self.device)
        own = torch.as_tensor(piece.kv_heads, device=self.device)[:, None]
        k, v = (x[own, place][None] for x in (self.k, self.v))
        error = _error(piece, q[0], k[0], v[0], kernel(q, k, v)[0][0])
        return Calls((lambda: kernel(q, k, v),), (counts_of(piece),)), error


def counts_of(piece: Piece) -> Counts:
    """What a piece is to a kernel model."""
    rows = piece.kept.sum(axis=2)
    tiles = len(piece.heads) * len(piece.rows)
    return Counts(1, int(rows.sum()), tiles, int(rows.max(initial=0)))


def _error(piece: Piece, q: Any, k: Any, v: Any, out: Any) -> float:
    """Relative Frobenius error of sampled rows of the first and the last head, against float64."""
    import torch

    wrong, size = 0.0, 0.0
    rows = np.unique(np.linspace(0, piece.queries - 1, SAMPLED).astype(np.int64))
    column = np.arange(piece.keys) // piece.block[1]
    for head in {0, len(piece.heads) - 1}:
        at = torch.as_tensor(rows, device=q.device)
        sees = torch.as_tensor(piece.kept[head, rows // piece.block[0]][:, column], device=q.device)
        kv = head // piece.group
        score = (q[head, at].double() @ k[kv].double().T) * q.shape[-1] ** -0.5
        weight = torch.softmax(score.masked_fill(~sees, float("-inf")), -1).nan_to_num(0.0)
        truth = weight @ v[kv].double()
        wrong += float((out[head, at].double() - truth).square().sum())
        size += float(truth.square().sum())
    return (wrong / size) ** 0.5 if size else wrong**0.5
