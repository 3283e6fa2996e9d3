"""``torchrun ... -m benchmarks sequence_parallel --world N``: plans carried out and timed.

Plain Ulysses, plain ring, db-SP's placement and every family of ours, each checked against exact
attention of sampled rows, then timed in turns; a time is that of the slowest rank.  NCCL on GPUs,
Gloo where there is none: small sizes and the reference as kernel, which shows that it works.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import masks
from kdsl.errors import DistributedError, InputError
from kdsl.parallel import calibration, families, partition
from kdsl.parallel.chooser import ranked
from kdsl.parallel.cost import Costs
from kdsl.parallel.dbsp import dbsp
from kdsl.parallel.fitting import Call, fit_calls
from kdsl.parallel.home import Home
from kdsl.parallel.mesh import Mesh, meshes
from kdsl.parallel.metrics import rank_ratio
from kdsl.parallel.plan import Plan
from kdsl.parallel.split import chopped, split
from kdsl.parallel.topology import Topology
from kdsl.parallel.work import BlockWork
from kdsl.runtime.builder import device_target
from kdsl.specs import Attention, Partition
from kdsl.targets import get as target_named

ROUNDS, SAMPLED = 7, 16
LIMIT = {"bfloat16": 0.01, "float32": 1e-5}
"""Relative Frobenius error above which nothing is timed: bf16 operands give 0.0023, and a ring's
partial results are rounded to bf16 once more each."""


@dataclass(frozen=True)
class Case:
    """Video-shaped block masks over a sequence."""

    heads: int
    tokens: int
    head_dim: int
    block: int
    density: float
    dtype: str

    @property
    def spec(self) -> Attention:
        """What is computed."""
        block = (self.block, self.block)
        return Attention(
            tokens=self.tokens, heads=self.heads, head_dim=self.head_dim, dtype=self.dtype,
            mask=masks.blocks("plan", block=block), block=block,
        )  # fmt: skip

    def plan(self) -> npt.NDArray[np.bool_]:
        """Kept blocks ``[heads, n, n]``: a band around the diagonal and random ones; densities of
        heads follow a gamma distribution with a coefficient of variation of 0.55."""
        n = -(-self.tokens // self.block)
        rng = np.random.default_rng(0)
        shape = 1 / 0.55**2
        share = np.clip(rng.gamma(shape, self.density / shape, (self.heads, 1, 1)), 1 / n, 1)
        away = np.abs(np.arange(n)[:, None] - np.arange(n)) / n
        return (away[None] < share / 4) | (rng.random((self.heads, n, n)) < share / 2)


CASES = {
    "wan14b": Case(40, 75600, 128, 128, 0.3, "bfloat16"),
    "cogvideox": Case(48, 17776, 64, 128, 0.3, "bfloat16"),
    "small": Case(6, 1000, 64, 32, 0.3, "float32"),
}


def suite(world: int, names: list[str], fit: bool = False) -> Iterator[str]:
    """Lines for rank 0 to print; all ranks run it.  ``fit`` keeps costs that explain the times."""
    rank = joined(world)
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    groups: list[tuple[str, Costs, list[Call]]] = []
    for name in names or (["wan14b", "cogvideox"] if gpu else ["small"]):
        yield from lines(name, CASES[name], world, rank, groups)
    if fit and rank == 0:
        yield from kept_fit(groups)
    # Threads of a group that is still there when Python ends abort the process.
    dist.barrier()
    dist.destroy_process_group()


def joined(world: int) -> int:
    """This process's rank in the group that torchrun describes, made if it is not there yet."""
    import torch
    import torch.distributed as dist

    found = os.environ.get("WORLD_SIZE")
    if found is None:
        raise DistributedError(
            "this is one process, and no rank of several",
            hint=f"torchrun --nproc-per-node {world} -m benchmarks sequence_parallel "
            f"--world {world}",
        )
    if int(found) != world:
        raise InputError(f"--world {world} among {found} processes", hint=f"--world {found}")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=120))
    return dist.get_rank()


def plans(work: BlockWork, world: int, costs: Costs) -> dict[str, Plan]:
    """What is compared, by name."""
    flat, around = Mesh(world), Mesh(1, world)
    out = {"ulysses plain": families.plain(work, flat)}
    for mesh in meshes(world)[1:]:
        out[f"ring {mesh.ulysses} x {mesh.ring} plain"] = families.plain(work, mesh)
        out[f"db-SP {mesh.ulysses} x {mesh.ring}"] = dbsp(work, mesh)
    out |= {
        "A whole heads": families.ulysses(work, world),
        "A equal counts": families.ulysses(
            work, world, owner=partition.lpt_swap(work.heads, world, -(-work.shape.heads // world))
        ),
        "B split heads": split(work, world),
        "B equal pieces": chopped(work, world),
        "B needed keys": split(work, world, byte_weight=1.0, delivery="needed"),
        "C rows": families.rows(work, around),
        "C needed keys": families.rows(work, around, delivery="needed"),
        "D ring": families.ring(work, around),
        "chosen": ranked(work, costs, chunks=(1,))[0].plan,
    }
    return out


def kept_fit(groups: list[tuple[str, Costs, list[Call]]]) -> Iterator[str]:
    """Fit what calls take beside kernels, and keep it beside the tuning database."""
    target = device_target() or target_named("h100")
    found = fit_calls([(costs, calls) for _, costs, calls in groups])
    entries: list[calibration.Entry] = []
    for (name, _, calls), costs in zip(groups, found.costs, strict=True):
        case, topology = CASES[name], costs.topology
        if topology.node == topology.world:
            near = calibration.LinkEntry(target.name, "nvlink", topology.inside, len(calls))
            entries.append(near)
        what = (costs.handling, costs.slowdown, costs.hidden, len(calls))
        entries.append(calibration.HandlingEntry(target.name, case.dtype, case.head_dim, 1, *what))
        yield f"{name}: {costs.handling}, {topology.inside}, hidden {costs.hidden:.2f}"
    calibration.save(entries)
    yield f"mean error {found.error:.1%}; kept in {calibration.place()}"


def lines(
    name: str,
    case: Case,
    world: int,
    rank: int,
    groups: list[tuple[str, Costs, list[Call]]],
) -> Iterator[str]:
    """A table of one case; what was timed goes to ``groups`` too."""
    import torch
    import torch.distributed as dist

    from kdsl.parallel.module import SparseSequenceParallel

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    kept, home = case.plan(), Home.even(case.tokens, world)
    mine = home.tokens_of(rank)
    generator = torch.Generator().manual_seed(1)
    full = [
        torch.randn(1, case.heads, case.tokens, case.head_dim, generator=generator).to(
            getattr(torch, case.dtype)
        )
        for _ in "qkv"
    ]
    q, k, v = (x[:, :, mine].contiguous().to(device) for x in full)
    rows = np.linspace(0, len(mine) - 1, min(SAMPLED, len(mine))).astype(np.int64)
    truth = exact(case, full, mine[rows], kept, device)
    del full
    spec, tables = case.spec, {"plan": kept.astype(np.uint8)}
    work = BlockWork.of(spec.rows(tables), case.heads)
    node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    node = node if world % node == 0 else world
    target = device_target() or target_named("h100")
    plain = Costs.of(spec, target, Topology(world, node))
    part = Partition(attention=spec, world=world, node=node)
    costs = calibration.fitted(plain, part, target)
    options = {} if gpu else {"backend": "reference"}
    runs: dict[str, Callable[[], Any]] = {}
    about: dict[str, tuple[float, float, float]] = {}
    module: SparseSequenceParallel | None = None
    compared = plans(work, world, costs)
    for label, plan in compared.items():
        began = time.perf_counter()
        if module is None:
            module = SparseSequenceParallel(
                spec, plan=plan, tables=tables, device=device, timeout_s=60, **options
            )
        else:
            module.replan(tables, plan)
        run = partial(module.execution, q, k, v)
        made = (time.perf_counter() - began) * 1e3
        error = _largest(_error(run()[0][0][:, rows], truth), device)
        if not error < LIMIT[case.dtype]:
            yield f"{name:10} {label:20} WRONG: error {error:.6f}, not timed"
            continue
        runs[label] = run
        about[label] = (error, rank_ratio(plan.loads(work)), made)
    taken: dict[str, list[float]] = {label: [] for label in runs}
    # What comes first in a round is not always the same; every rank shuffles alike.
    shuffle, order = random.Random(0), list(runs)
    for _ in range(ROUNDS):
        shuffle.shuffle(order)
        for label in order:
            call = runs[label]
            if gpu:
                torch.cuda.synchronize()
            dist.barrier()
            began = time.perf_counter()
            call()
            if gpu:
                torch.cuda.synchronize()
            taken[label].append((time.perf_counter() - began) * 1e3)
    backend = dist.get_backend()
    yield (
        f"{name}: {case.heads} heads, {case.tokens} tokens, density {work.blocks.density:.3f}, "
        f"{world} ranks on nodes of {node}, {backend}"
        if work.blocks is not None
        else name
    )
    calls: list[Call] = []
    for label in runs:
        slowest = [_largest(ms, device) for ms in taken[label]]
        error, ratio, made = about[label]
        calls.append(Call(compared[label], work, statistics.median(slowest) * 1e3))
        yield (
            f"{name:10} {label:20} {statistics.median(slowest):10.3f} ms  rank ratio {ratio:.3f}  "
            f"error {error:.2e}  made in {made:.0f} ms"
        )
    groups.append((name, costs, calls))


def exact(case: Case, full: list[Any], rows: npt.NDArray[np.int64], kept: Any, device: Any) -> Any:
    """Float64 attention of some rows, ``[heads, rows, head_dim]``, head by head."""
    import torch

    out = []
    column = torch.arange(case.tokens) // case.block
    for head in range(case.heads):
        q, k, v = (x[0, head].to(device, torch.float64) for x in full)
        sees = torch.from_numpy(kept[head, rows // case.block])[:, column].to(device)
        score = (q[torch.from_numpy(rows).to(device)] @ k.T) * case.head_dim**-0.5
        out.append(torch.softmax(score.masked_fill(~sees, float("-inf")), -1) @ v)
    return torch.stack(out)


def _error(out: Any, truth: Any) -> float:
    off = (out.to(truth.dtype) - truth).norm() / truth.norm()
    return float(off)


def _largest(value: float, device: Any) -> float:
    """The largest of all ranks' values."""
    import torch
    import torch.distributed as dist

    held = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return float(held)
