"""Lines that a plan moves between ranks, counted without building any index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdsl.parallel.home import Home
from kdsl.parallel.plan import Plan
from kdsl.parallel.work import BlockWork, Longs


@dataclass(frozen=True, eq=False)
class Traffic:
    """Lines (``head_dim`` numbers of one token of one head) by sender and receiver, without those
    that stay.

    ``inputs``: q, k and v before attention, ``outputs``: results after it, int64
    ``[world, world]``.  ``passes``: k and v that each rank sends on in each step of its ring, int64
    ``[world, steps - 1]``.  Lines that stay go through the exchange's buffers like the others:
    ``inputs_kept`` and ``outputs_kept`` ``[world]``.  ``computed`` are a rank's results,
    ``own`` those for its tokens.
    """

    inputs: Longs
    outputs: Longs
    passes: Longs
    inputs_kept: Longs
    outputs_kept: Longs
    computed: Longs
    own: Longs

    @property
    def received(self) -> Longs:
        """Lines that come to each rank, all together."""
        came = self.inputs.sum(axis=0) + self.outputs.sum(axis=0)
        return np.asarray(came + self.passes.sum(axis=1), np.int64)

    def copied(self, line_bytes: float) -> tuple[float, float]:
        """Mean and largest bytes that come to a rank."""
        came = self.received * line_bytes
        return float(came.mean()), float(came.max())


def traffic(
    plan: Plan, home: Home, *, key_home: Home | None = None, work: BlockWork | None = None
) -> Traffic:
    """What a plan moves, for tokens stored as the model orders them.

    With another stored order the shards that a block comes from differ, the sums hardly do.
    Delivery ``"needed"`` asks for a ``work`` that knows its blocks.
    """
    key_home = key_home or home
    shape, world = plan.shape, plan.world
    rows = _by_owner(home, shape.block[0], shape.rows)
    keys = _by_owner(key_home, shape.block[1], shape.columns)
    inputs = np.zeros((world, world), np.int64)
    outputs = np.zeros((world, world), np.int64)
    kept, computed = np.zeros(world, np.int64), np.zeros(world, np.int64)
    for rank, panels in enumerate(plan.ranks):
        for panel in panels:
            lines = _summed(rows, panel.rows) * len(panel.heads)
            inputs[:, rank] += lines[:-1]
            kept[rank] += lines[-1]
            computed[rank] += lines.sum()
            # Results of replicated tokens go to every rank.
            outputs[rank] += lines[:-1] + lines[-1]
        came = 2 * _keys(plan, rank, keys, work)
        inputs[:, rank] += came[:-1]
        kept[rank] += came[-1]
    kept += inputs.diagonal()
    back = outputs.diagonal().copy()
    np.fill_diagonal(inputs, 0)
    np.fill_diagonal(outputs, 0)
    own = rows[-1, :-1] + rows[-1, -1]
    return Traffic(
        inputs,
        outputs,
        _passes(plan),
        kept,
        back,
        computed,
        shape.heads * own,
    )


def _keys(plan: Plan, rank: int, keys: Longs, work: BlockWork | None) -> Longs:
    """Key lines that come to a rank, by their owner."""
    if plan.delivery == "needed":
        times = np.zeros(len(keys) - 1, np.int64)
        for blocks in plan.keys_of(rank, work):
            times[blocks] += 1
        used = np.flatnonzero(times)
        return np.asarray(times[used] @ (keys[used + 1] - keys[used]), np.int64)
    if plan.delivery == "ring":
        return _summed(keys, plan.chunks[rank]) * len(plan.ring_heads(rank))
    return np.asarray(keys[-1] * len(plan.key_heads(rank)), np.int64)


def _passes(plan: Plan) -> Longs:
    if plan.delivery != "ring":
        return np.zeros((plan.world, 0), np.int64)
    shape, steps = plan.shape, plan.mesh.ring - 1
    size = np.zeros(plan.world, np.int64)
    for rank in range(plan.world):
        tokens = sum(end - first for first, end in map(shape.key_tokens, plan.chunks[rank]))
        size[rank] = 2 * tokens * len(plan.ring_heads(rank))
    sources = [[plan.mesh.source(p, s) for s in range(steps)] for p in range(plan.world)]
    return size[np.asarray(sources, np.int64).reshape(plan.world, steps)]


def _by_owner(home: Home, block: int, count: int) -> Longs:
    """Tokens of the first b blocks by owner, ``[count + 1, world + 1]``; the last column holds
    those on every rank."""
    edges = np.minimum(np.arange(count + 1) * block, home.tokens)
    spans = np.asarray([*home.shards, home.replicated], np.int64)
    inside = np.clip(edges[:, None], spans[:, 0], spans[:, 1]) - spans[:, 0]
    return np.asarray(inside, np.int64)


def _summed(prefix: Longs, runs: tuple[tuple[int, int], ...]) -> Longs:
    """Tokens in some runs by owner."""
    at = np.asarray(runs, np.int64).reshape(-1, 2)
    return np.asarray((prefix[at[:, 1]] - prefix[at[:, 0]]).sum(axis=0), np.int64)
