"""Ranks that die, disagree, or are not there: errors that name them, in time, and never a hang."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdsl.errors import DistributedError, InputError, KdslError
from kdsl.parallel import families
from kdsl.parallel.channel import Channel
from kdsl.parallel.exchange import Exchanges
from kdsl.parallel.execute import Execution
from kdsl.parallel.home import Home
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.plan import Plan
from kdsl.parallel.work import BlockWork
from tests.parallel.ranks import dense, together
from tests.parallel.worlds import made

LIMIT = 3.0
"""Seconds that a call may wait for others."""
TOKENS = 150


def run_of(channel: Channel, plan: Plan, work: BlockWork) -> Execution:
    """A plan on equal shards."""
    home = Home.even(work.shape.queries, channel.world)
    return Execution(Exchanges(plan, home, work=work), work, channel, dense)


def called(run: Execution, batch: int = 1, tokens: int | None = None) -> None:
    """One call on zeros; ``tokens`` other than the rank's own number."""
    here = len(run.home.tokens_of(run.channel.rank)) if tokens is None else tokens
    run(*(torch.zeros(batch, 4, here, 8) for _ in "qkv"))


def ring(work: BlockWork, world: int) -> Plan:
    """Keys go around."""
    return families.plain(work, Mesh(1, world))


def dies(channel: Channel, make: Callable[[BlockWork, int], Plan]) -> None:
    """Rank 1 ends without a word between two calls."""
    work = made("random", 4, TOKENS)
    run = run_of(channel, make(work, channel.world), work)
    called(run)
    if channel.rank == 1:
        os._exit(0)
    called(run)


def hangs(channel: Channel) -> None:
    """Rank 2 does something else for a long time."""
    work = made("random", 4, TOKENS)
    run = run_of(channel, families.ulysses(work, channel.world), work)
    called(run)
    if channel.rank == 2:
        time.sleep(2.2 * LIMIT)
        return
    called(run)


def other_length(channel: Channel) -> None:
    """Rank 1 was given a longer sequence."""
    work = made("dense", 4, TOKENS + 3 * (channel.rank == 1))
    run_of(channel, families.ulysses(work, channel.world), work)


def other_plan(channel: Channel) -> None:
    """Rank 2 planned on other counts."""
    work = made("random", 4, TOKENS)
    owner = np.array([0, 1, 2, 0]) if channel.rank < 2 else np.array([0, 1, 2, 2])
    run_of(channel, families.ulysses(work, channel.world, owner=owner), work)


def other_mask(channel: Channel) -> None:
    """Rank 0 has another mask under the same plan."""
    work = made("random", 4, TOKENS, seed=int(channel.rank == 0))
    plan = families.rows(BlockWork.dense(work.shape), Mesh(1, channel.world), delivery="needed")
    run_of(channel, plan, work)


def other_batch(channel: Channel) -> None:
    """Rank 2 comes with two items."""
    work = made("random", 4, TOKENS)
    run = run_of(channel, families.ulysses(work, channel.world), work)
    called(run, batch=1 + (channel.rank == 2))


def known_batch(channel: Channel) -> None:
    """The same when calls of one item are known to all: rank 2 asks, the others send."""
    work = made("random", 4, TOKENS)
    run = run_of(channel, families.ulysses(work, channel.world), work)
    called(run)
    called(run, batch=1 + (channel.rank == 2))


def own_error(channel: Channel) -> None:
    """Rank 1 brings a tensor that is not its shard, raises by itself, and ends."""
    work = made("random", 4, TOKENS)
    run = run_of(channel, ring(work, channel.world), work)
    called(run)
    if channel.rank == 1:
        with pytest.raises(InputError, match=r"q of rank 1 has shape \(1, 4, 17, 8\)"):
            called(run, tokens=17)
        return
    called(run)


ULYSSES: Callable[[BlockWork, int], Plan] = families.ulysses
FAULTS = {
    "dies": (dies, (ULYSSES,), (0, 2), r"no answer from rank 1\b"),
    "dies in a ring": (dies, (ring,), (0, 2), r"no answer from rank 1\b"),
    "hangs": (hangs, (), (0, 1), r"no answer from rank 2\b"),
    "other length": (other_length, (), (0, 1, 2), r"rank 1 has tokens 153 .*, rank 0 has 150"),
    "other plan": (other_plan, (), (0, 1, 2), r"rank 2 has plan hash \w+, rank 0 has \w+"),
    "other mask": (other_mask, (), (0, 1, 2), r"rank 1 has mask or order \w+, rank 0 has \w+"),
    "other batch": (
        other_batch,
        (),
        (0, 1, 2),
        r"rank 2 has batch, .* \(2, 8, .*rank 0 has \(1, 8",
    ),
    "known batch": (
        known_batch,
        (),
        (0, 1, 2),
        r"rank 2 has batch, .* \(2, 8, .*rank 0 has \(1, 8",
    ),
    "own error": (own_error, (), (0, 2), r"no answer from rank 1\b"),
}

DISAGREE = ("other length", "other plan", "other mask", "other batch", "known batch")
"""In one group of processes; the last leaves a call that nobody ends."""


def faulty(rank: int, names: tuple[str, ...]) -> None:
    """Faults show as they should on this rank, within the limit; what rank 1 says itself too."""
    for name in names:
        task, given, witnesses, said = FAULTS[name]
        channel = Channel(timeout_s=LIMIT)
        begin = time.monotonic()
        with pytest.raises(KdslError) if rank in witnesses else nullcontext() as caught:
            task(channel, *given)
        took = time.monotonic() - begin
        if caught is not None:
            assert isinstance(caught.value, DistributedError), name
            assert re.search(said, str(caught.value)), str(caught.value)
            assert took < 2 * LIMIT, (name, took)
            # What failed once does not go on as if nothing had been.
            with pytest.raises(DistributedError, match="an earlier call failed"):
                channel.begin(list, dict)


@pytest.mark.parametrize(
    "names",
    [("dies",), ("dies in a ring",), ("hangs",), ("own error",), DISAGREE],
    ids=lambda names: names[0],
)
def test_faults_are_named(names: tuple[str, ...]) -> None:
    """Of three ranks one dies, hangs, or holds something else: the others say which one and what,
    within the time limit."""
    lost = ("ended without a word",) if names[0].startswith("dies") else ()
    for rank, said in enumerate(together(3, faulty, names)):
        assert said == "" or (rank == 1 and said in lost), said


def test_no_process_group() -> None:
    """Without a process group there is an error that says how to get one."""
    with pytest.raises(DistributedError, match="there is no process group"):
        Channel()


def wrong_world(rank: int) -> None:
    """Refused before anything is sent."""
    channel = Channel(timeout_s=LIMIT)
    work = made("dense", 4, TOKENS)
    with pytest.raises(InputError, match="a plan for 3 ranks in a group of 1"):
        Execution(Exchanges(families.ulysses(work, 3), Home.even(TOKENS, 3)), work, channel, dense)
    plan = families.ulysses(work, 1)
    broken = replace(plan, ranks=((),))
    with pytest.raises(InputError, match="computed 0 times"):
        Execution(Exchanges(broken, Home.even(TOKENS, 1)), work, channel, dense)
    counts = BlockWork.dense(work.shape)
    with pytest.raises(InputError, match="only how many"):
        Execution(Exchanges(plan, Home.even(TOKENS, 1)), counts, channel, dense)


def test_what_cannot_be_carried_out() -> None:
    """A plan for other ranks, one that leaves rows out, and work without its blocks."""
    assert together(1, wrong_world) == [""]
