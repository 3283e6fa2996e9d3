"""Plans carried out by real processes on Gloo, against attention in one place in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from kdsl.blocks import from_maps
from kdsl.parallel import execute, families
from kdsl.parallel.channel import Channel
from kdsl.parallel.exchange import Exchanges
from kdsl.parallel.execute import Execution
from kdsl.parallel.home import Home
from kdsl.parallel.local import Kernel
from kdsl.parallel.mesh import Mesh, meshes
from kdsl.parallel.partition import even_cuts
from kdsl.parallel.pieces import Piece
from kdsl.parallel.plan import Plan
from kdsl.parallel.work import BlockWork
from tests.parallel.emulated import truth
from tests.parallel.ranks import dense, together
from tests.parallel.test_plans import FAMILIES
from tests.parallel.worlds import KINDS, made

HEADS = ((1, 1), (3, 1), (5, 5), (7, 7), (12, 3), (40, 10))
"""Query and key heads."""
LENGTHS = ((151, 151), (97, 97), (203, 131), (157, 29), (113, 113), (67, 67))
"""Primes: nothing divides them; with 29 keys in blocks of 16 most ranks of a ring have none."""
DIM = 8


def first_step_empty(heads: int, kv_heads: int, tokens: int, ring: int, seed: int) -> BlockWork:
    """Rows see nothing of the keys that a plain ring's rank begins with."""
    rows = -(-tokens // 16)
    kept = np.random.default_rng(seed).random((heads, rows, rows)) < 0.5
    for a, b in itertools.pairwise(even_cuts(rows, ring)):
        kept[:, a:b, a:b] = False
    return BlockWork.of(from_maps(kept, None, (16, 16), tokens, tokens), heads, kv_heads)


def cases(world: int) -> Iterator[tuple[str, BlockWork]]:
    """Every kind of mask with every number of heads."""
    for i, (heads, kv_heads) in enumerate(HEADS):
        for j, kind in enumerate(KINDS):
            queries, keys = LENGTHS[(i + j) % len(LENGTHS)]
            work = made(kind, heads, queries, keys, kv_heads=kv_heads, seed=7 * i + j)
            yield f"{kind}, {heads} heads", work
        work = first_step_empty(heads, kv_heads, 131, world, i)
        yield f"first step empty, {heads} heads", work


def tensors(work: BlockWork, seed: int = 0) -> tuple[np.ndarray, ...]:
    """q, k, v in float64, ``[heads, tokens, DIM]``."""
    rng, shape = np.random.default_rng(seed), work.shape
    sizes = (shape.heads, shape.queries), (shape.kv_heads, shape.keys), (shape.kv_heads, shape.keys)
    return tuple(rng.standard_normal((*size, DIM)) for size in sizes)


def tolerance(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> float:
    """What float64 can be off on both sides.

    A score is off by DIM roundings of its largest sum, its exponential by that and one more, a sum
    over n keys by n; numerator and denominator both, ours and the truth's.
    """
    score = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
    steps = (DIM + 1) * score + k.shape[1] + 8
    return float(4 * steps * np.finfo(np.float64).eps * np.abs(v).max())


def truths(work: BlockWork) -> list[np.ndarray]:
    """What two items come to."""
    return [truth(work, *tensors(work, seed)) for seed in (0, 1)]


def off(
    plan: Plan,
    work: BlockWork,
    channel: Channel,
    local: Callable[[Piece], Kernel] = dense,
    wanted: list[np.ndarray] | None = None,
) -> float:
    """How far this rank's output is from the truth, in tolerances; replicated text, batch of 2."""
    text = (0, min(7, work.shape.queries))
    home, key_home = (
        Home.even(work.shape.queries, plan.world, text),
        Home.even(work.shape.keys, plan.world),
    )
    everyone = Exchanges(plan, home, key_home=key_home, work=work)
    run = Execution(everyone, work, channel, local, with_lse=True)
    at, by = home.tokens_of(channel.rank), key_home.tokens_of(channel.rank)
    items = [tensors(work, seed) for seed in (0, 1)]
    given = (np.stack([item[i] for item in items]) for i in range(3))
    local_ones = [
        torch.from_numpy(x[:, :, own].copy()) for x, own in zip(given, (at, by, by), strict=True)
    ]
    out, lse = run(*local_ones)
    worst, wanted = 0.0, wanted or truths(work)
    for b, item in enumerate(items):
        error = np.abs(out[b].numpy() - wanted[b][:, at]).max(initial=0)
        worst = max(worst, float(error) / tolerance(*item))
    empty = ~np.repeat(work.rows > 0, work.shape.block[0], 1)[:, at]
    assert (torch.isneginf(lse[0]).numpy() == empty).all()
    return worst if np.isfinite(worst) else np.inf


def every_case(rank: int, every: int, first: int) -> None:
    """All families on one case in ``every``; each takes the meshes in turn."""
    channel = Channel(timeout_s=30)
    kinds = meshes(channel.world)
    for number, (name, work) in enumerate(cases(channel.world)):
        if number % every != first:
            continue
        wanted = truths(work)
        for turn, (family, make) in enumerate(FAMILIES.items()):
            mesh = kinds[-1 - (number + turn) % len(kinds)]
            if family == "plain" and name.startswith("first"):
                mesh = Mesh(1, channel.world)
            worst = off(make(work, mesh), work, channel, wanted=wanted)
            assert worst <= 1, (rank, name, family, mesh, worst)


@pytest.mark.parametrize(
    ("world", "every", "first"), [(1, 3, 0), (2, 3, 0), (3, 3, 1), (4, 3, 2), (8, 23, 3)]
)
def test_every_family_and_mask(world: int, every: int, first: int) -> None:
    """Every family on 1 to 8 ranks (each case on 2, 3 or 4): masks dense, random by head, banded,
    with one dense head, empty rows, empty columns, nothing, and nothing in the first step of the
    ring; 1 to 40 heads, grouped keys, prime lengths, ranks without keys, text on all ranks.  The
    outcome is attention in one place, and log-sum-exps are minus infinity just where nothing is
    seen."""
    assert together(world, every_case, every, first) == [""] * world


def unique(ring: int) -> BlockWork:
    """A mask that differs in every (chunk of rows, chunk of columns)."""
    size = 4
    kept = np.zeros((2, ring * size, ring * size), bool)
    for r in range(ring):
        for c in range(ring):
            number = 1 + r * ring + c
            bits = [(number >> i) & 1 for i in range(size)]
            for i in range(size):
                kept[:, r * size + i, c * size : (c + 1) * size] = np.roll(bits, i)
    tokens = ring * size * 16
    return BlockWork.of(from_maps(kept, None, (16, 16), tokens, tokens), 2)


def direction(rank: int) -> None:
    """Right as it is, and wrong with any of the faults, on some rank."""
    channel = Channel(timeout_s=30)
    work = unique(channel.world)
    plan = families.plain(work, Mesh(1, channel.world))
    gathered = families.plain(work, Mesh(channel.world))
    assert off(plan, work, channel) <= 1

    passing, all_to_all = Channel.passing, Channel.all_to_all

    def flipped(self: Channel, sent: object, to: int, got: object, source: int, state: object):
        return passing(self, sent, source, got, to, state)

    def dropped(self: Channel, received: torch.Tensor, *rest: object) -> None:
        all_to_all(self, received, *rest)
        splits, lost = rest[1], (self.rank + 1) % self.world
        first = sum(splits[:lost])
        received[first : first + splits[lost]] = 0

    def swapped(piece: Piece) -> Kernel:
        kernel = dense(piece)
        return lambda q, k, v: kernel(q, v, k)

    wrong = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "passing", flipped)
        wrong.append(off(plan, work, channel))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "all_to_all", dropped)
        wrong.append(off(gathered, work, channel))
    wrong.append(off(plan, work, channel, swapped))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "merge", lambda total, lse, out, *more: (total + out, lse))
        wrong.append(off(plan, work, channel))
    worst = torch.tensor(wrong)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    assert (worst > 1e6).all(), worst


@pytest.mark.parametrize("ring", [3, 5])
def test_mutations_are_seen(ring: int) -> None:
    """With a mask of its own in every (row chunk, column chunk) a ring is right, and it shows when
    chunks travel the other way, when one sender's lines are lost, when K and V change places and
    when parts are added without their weights (faults 1 and 5 of db-SP's code)."""
    assert together(ring, direction) == [""] * ring


def nothing_is_read(rank: int) -> None:
    """A second call reads no value of a tensor on the host."""
    channel = Channel(timeout_s=30)
    work = made("random", 6, 151, kv_heads=3)
    home = Home.even(151, channel.world)
    given = [torch.from_numpy(x[None][:, :, home.tokens_of(rank)].copy()) for x in tensors(work)]
    for make in FAMILIES.values():
        plan = make(work, Mesh(1, channel.world))
        run = Execution(Exchanges(plan, home, work=work), work, channel, dense, with_lse=True)
        run(*given)

        def read(*_: object, **__: object) -> None:
            raise AssertionError("a call read a value on the host")

        with pytest.MonkeyPatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "nonzero"):
                patch.setattr(torch.Tensor, name, read)
            patch.setattr(torch, "from_numpy", read)
            patch.setattr(torch, "tensor", read)
            with pytest.raises(AssertionError):
                given[0].sum().item()
            run(*given)


def test_a_call_reads_no_value() -> None:
    """No synchronisation in a call: everything that depends on the plan was made before."""
    assert together(2, nothing_is_read) == ["", ""]
