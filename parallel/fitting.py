"""Costs from whole calls that were timed: few figures, which stay put without cause to move.

Single shards and messages tell kernels and links apart (`fit_kernel`, `fit_link`).  Whole calls say
what these leave out: packing, merging, the host's part, how far passes overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdsl.errors import InputError
from kdsl.parallel.cost import Costs, simulate
from kdsl.parallel.plan import Plan
from kdsl.parallel.topology import Floats
from kdsl.parallel.work import BlockWork

STIFFNESS = 1e-3
"""What a factor of e in one figure costs, in squared relative errors: 3 % of one sample."""
ROUNDS = 40
FIGURES = ("kernel", "copy_us", "merge_us", "call_us", "rate", "late")
"""What is fitted: all of a kernel's rates by one factor; a megabyte packed; one merged; the host's
part; the rate of the links inside a node; the share of a ring's pass that no kernel hides."""


@dataclass(frozen=True, eq=False)
class Call:
    """A plan that was carried out, and the microseconds it took the slowest rank."""

    plan: Plan
    work: BlockWork
    us: float


@dataclass(frozen=True)
class FittedCalls:
    """Costs that explain calls, and the mean relative error that is left."""

    costs: tuple[Costs, ...]
    error: float


def fit_calls(groups: Sequence[tuple[Costs, Sequence[Call]]]) -> FittedCalls:
    """Costs for calls of several attentions on one machine: each its kernel and packing, the rest
    in common.

    By relative least squares from the costs given.  InputError where nothing was timed.
    """
    if not groups or not all(calls for _, calls in groups):
        raise InputError("costs without timed calls", hint="(costs, calls) with a call or more")
    if any(call.us <= 0 for _, calls in groups for call in calls):
        raise InputError("a measured time is not above 0")
    moved = [[costs.traffic(c.plan, c.work) for c in calls] for costs, calls in groups]
    taken = np.log([call.us for _, calls in groups for call in calls])
    own, shared = FIGURES[:2], FIGURES[2:]
    size = len(own) * len(groups) + len(shared)

    def made(logs: Floats) -> list[Costs]:
        factors = np.exp(logs).tolist()
        common = dict(zip(shared, factors[len(own) * len(groups) :], strict=True))
        out = []
        for i, (costs, _) in enumerate(groups):
            mine = dict(zip(own, factors[len(own) * i :], strict=False))
            out.append(_scaled(costs, {**mine, **common}))
        return out

    def off(logs: Floats) -> Floats:
        found = [
            simulate(call.plan, call.work, costs, moved=lines).us
            for costs, (_, calls), held in zip(made(logs), groups, moved, strict=True)
            for call, lines in zip(calls, held, strict=True)
        ]
        return np.concatenate([np.log(found) - taken, np.sqrt(STIFFNESS) * logs])

    best = _least(off, size)
    error = np.abs(np.expm1(off(best)[: len(taken)])).mean()
    return FittedCalls(tuple(made(best)), float(error))


def _scaled(costs: Costs, by: dict[str, float]) -> Costs:
    """Costs with figures at multiples of what they were; nothing hidden beyond a whole pass."""
    kernel, hand, near = costs.kernel, costs.handling, costs.topology.inside
    late = min((1 - costs.hidden) * by["late"], 1.0)
    return replace(
        costs,
        kernel=replace(
            kernel,
            block_us=kernel.block_us * by["kernel"],
            row_us=kernel.row_us * by["kernel"],
            tile_us=kernel.tile_us * by["kernel"],
        ),
        handling=replace(
            hand,
            copy_us=hand.copy_us * by["copy_us"],
            merge_us=hand.merge_us * by["merge_us"],
            call_us=hand.call_us * by["call_us"],
        ),
        topology=replace(
            costs.topology, inside=replace(near, bytes_per_us=near.bytes_per_us * by["rate"])
        ),
        hidden=1 - late,
    )


def _least(off: Callable[[Floats], Floats], size: int) -> Floats:
    """Where the sum of squares is least, from 0: Levenberg and Marquardt's steps."""
    at, damping = np.zeros(size), 1e-2
    here = off(at)
    for _ in range(ROUNDS):
        step = 1e-3
        slopes = np.stack([(off(at + step * unit) - here) / step for unit in np.eye(size)], axis=1)
        normal, down = slopes.T @ slopes, slopes.T @ here
        for _ in range(8):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -down)
            there = off(at + move)
            if there @ there < here @ here:
                break
            damping *= 8
        else:
            return at
        gained = here @ here - there @ there
        at, here, damping = at + move, there, max(damping / 8, 1e-9)
        if gained < 1e-12:
            break
    return at


__all__ = ["Call", "FittedCalls", "fit_calls"]
