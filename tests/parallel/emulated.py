"""A plan carried out in one process: every rank's lines really go through the two exchanges."""

from __future__ import annotations

import numpy as np

from kdsl.parallel.exchange import Exchange, Exchanges, RankExchange
from kdsl.parallel.home import Home
from kdsl.parallel.plan import Plan
from kdsl.parallel.work import BlockWork


def all_to_all(parts: list[Exchange], lines: list[np.ndarray]) -> list[np.ndarray]:
    """What each rank has after an all-to-all-v; splits of senders and receivers must agree."""
    world, sent = len(parts), []
    for part, held in zip(parts, lines, strict=True):
        sent.append(np.split(held[part.send_index], np.cumsum(part.send_splits)[:-1]))
    out = []
    for p, part in enumerate(parts):
        came = [sent[s][p] for s in range(world)]
        assert tuple(map(len, came)) == part.recv_splits
        out.append(np.concatenate(came)[part.recv_index])
    return out


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Attention ``[tokens, head_dim]`` over the kept pairs; rows that see nothing give 0."""
    score = np.where(kept, q @ k.T, -np.inf)
    top = score.max(axis=1, initial=-np.inf, keepdims=True)
    weight = np.exp(score - np.where(np.isfinite(top), top, 0))
    return (weight @ v) / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)


def seen(work: BlockWork, head: int) -> np.ndarray:
    """Kept pairs of stored positions of one head, ``[queries, keys]``."""
    shape = work.shape
    bits = np.unpackbits(work.bits_of(head), axis=-1, count=shape.columns, bitorder="little")
    spread = np.repeat(np.repeat(bits.astype(bool), shape.block[0], 0), shape.block[1], 1)
    return spread[: shape.queries, : shape.keys]


def truth(
    work: BlockWork,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    query_order: np.ndarray | None = None,
    key_order: np.ndarray | None = None,
) -> np.ndarray:
    """Attention of ``[heads, tokens, head_dim]`` in one place; masks speak of stored positions."""
    out = np.zeros_like(q)
    for head in range(len(q)):
        kv = head // work.shape.group
        at = np.arange(q.shape[1]) if query_order is None else query_order[head % len(query_order)]
        by = np.arange(k.shape[1]) if key_order is None else key_order[kv % len(key_order)]
        out[head, at] = attend(q[head, at], k[kv, by], v[kv, by], seen(work, head))
    return out


def carried_out(
    plan: Plan,
    work: BlockWork,
    home: Home,
    key_home: Home,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    query_order: np.ndarray | None = None,
    key_order: np.ndarray | None = None,
) -> np.ndarray:
    """The same, by the plan: exchange, panels (ring chunks merged by log-sum-exp), exchange."""
    everyone = Exchanges(
        plan,
        home,
        key_home=key_home,
        work=work,
        query_order=query_order,
        key_order=key_order,
    )
    parts = [everyone.of(p) for p in range(plan.world)]
    local = []
    for p in range(plan.world):
        held = [q[:, home.tokens_of(p)], *(x[:, key_home.tokens_of(p)] for x in (k, v))]
        local.append(np.concatenate([x.reshape(-1, q.shape[-1]) for x in held]))
    arrived = all_to_all([part.inputs for part in parts], local)
    results = [_panels(plan, work, p, parts, arrived) for p in range(plan.world)]
    back = all_to_all([part.outputs for part in parts], results)
    out = np.zeros_like(q)
    for p in range(plan.world):
        out[:, home.tokens_of(p)] = back[p].reshape(len(q), -1, q.shape[-1])
    return out


def _panels(
    plan: Plan, work: BlockWork, rank: int, parts: list[RankExchange], arrived: list[np.ndarray]
) -> np.ndarray:
    """Results of a rank's panels, as lines."""
    shape, at = plan.shape, 0
    steps = plan.mesh.ring if plan.delivery == "ring" else 1
    sources = [plan.mesh.source(rank, s) if steps > 1 else rank for s in range(steps)]
    out = []
    for panel in plan.ranks[rank]:
        rows = np.concatenate([np.arange(*shape.query_tokens(run)) for run in panel.rows])
        for head in panel.heads:
            q = arrived[rank][at : at + len(rows)]
            at += len(rows)
            total, weight = np.zeros_like(q), np.zeros((len(q), 1))
            for source in sources:
                k, v, blocks = _keys(plan, parts[source], arrived[source], source, head)
                columns = (blocks[:, None] * shape.block[1] + np.arange(shape.block[1])).reshape(-1)
                columns = columns[columns < shape.keys]
                some = seen(work, head)[rows][:, columns]
                # Scores here are small enough for plain exponentials.
                share = np.where(some, np.exp(q @ k.T), 0)
                total += share @ v
                weight += share.sum(axis=1, keepdims=True)
            out.append(total / np.maximum(weight, 1e-300))
    return np.concatenate(out) if out else np.zeros((0, arrived[rank].shape[-1]))


def _keys(
    plan: Plan, part: RankExchange, lines: np.ndarray, rank: int, head: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K, V and key blocks of a head's key head among a rank's lines."""
    heads = plan.ring_heads(rank) if plan.delivery == "ring" else plan.key_heads(rank)
    i = heads.index(head // plan.shape.group)
    first = part.q_lines + sum(part.key_lines[:i])
    stretch = slice(first, first + part.key_lines[i])
    behind = slice(first + part.k_lines, first + part.k_lines + part.key_lines[i])
    return lines[stretch], lines[behind], part.key_blocks[i]
