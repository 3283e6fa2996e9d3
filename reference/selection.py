"""Blocks chosen by pooled queries and keys: the truth, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.intervals.classify import head_order
from kdsl.specs import Attention, as_array

Float = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def pool(x: Any, block: int) -> Float:
    """Mean of each block of tokens, ``[..., tokens, d]`` to ``[..., blocks, d]``.

    The last block may be ragged; its mean is over the tokens it has.
    """
    held = as_array(x, np.float64)
    at = np.arange(0, held.shape[-2], block)
    counts = np.minimum(held.shape[-2] - at, block)
    out: Float = np.add.reduceat(held, at, axis=-2) / counts[:, None]
    return out


def scores(q: Any, k: Any, block: tuple[int, int], scale: float) -> Float:
    """Scaled products of pooled ``q [batch, heads, queries, d]`` and ``k [batch, kv_heads, ...]``.

    ``[batch, heads, rows, columns]``; neighbouring query heads share a key head.
    """
    queries, keys = pool(q, block[0]), pool(k, block[1])
    keys = np.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    out: Float = scale * (queries @ keys.swapaxes(-1, -2))
    return out


def topk(score: Any, count: int, always: Any = False, allowed: Any = True) -> Bools:
    """The ``count`` best allowed columns of each row, the lower one where scores are equal.

    ``always`` marks columns that are kept beside them.
    """
    held = _open(score, allowed)
    order = np.argsort(-held, axis=-1, kind="stable")
    kept = np.zeros(held.shape, np.bool_)
    np.put_along_axis(kept, order[..., :count], True, axis=-1)
    kept &= held > -np.inf
    out: Bools = kept | np.asarray(always, np.bool_)
    return out


def topp(score: Any, mass: float, always: Any = False, allowed: Any = True) -> Bools:
    """The fewest best allowed columns of each row whose softmax weights reach ``mass``.

    Taken from the best on, the lower column first where scores are equal, and at least one where
    any is allowed; ``always`` marks columns that are kept beside them.
    """
    held = _open(score, allowed)
    order = np.argsort(-held, axis=-1, kind="stable")
    best = np.take_along_axis(held, order, axis=-1)
    some = best[..., :1] > -np.inf
    weight = np.exp(best - np.where(some, best[..., :1], 0.0))
    before = np.cumsum(weight, axis=-1) - weight
    kept = np.zeros(held.shape, np.bool_)
    reached = before < mass * weight.sum(axis=-1, keepdims=True)
    np.put_along_axis(kept, order, reached & (best > -np.inf), axis=-1)
    out: Bools = kept | np.asarray(always, np.bool_)
    return out


def _open(score: Any, allowed: Any) -> Float:
    """Scores, minus infinity where a column is not allowed or its score is no number.

    Infinity counts as float32's largest number, so that weights are numbers.
    """
    held = as_array(score, np.float64)
    held = np.where(np.asarray(allowed, np.bool_) & ~np.isnan(held), held, -np.inf)
    out: Float = np.minimum(held, float(np.finfo(np.float32).max))
    return out


def chosen(spec: Attention, q: Any, k: Any, tables: Any = None) -> Bools:
    """What a spec's mask chooses in a call: ``[batch, heads, rows, columns]``.

    Pooled in stored order; open to the choice are the blocks in which it matters for some pair.
    """
    choice = spec.mask.choice
    assert choice is not None
    q, k = as_array(q, np.float64), as_array(k, np.float64)
    shape = (q.shape[0], *choice.shape(spec.heads, q.shape[2], k.shape[2]))
    if not np.prod(shape):
        return np.zeros(shape, np.bool_)
    k = np.repeat(k, spec.group, axis=1)
    if not spec.stored:
        q = _stored(q, spec.query_order, tables)
        k = _stored(k, spec.kv_order, tables)
    score = scores(q, k, choice.block, spec.softmax_scale)
    allowed = spec.candidates.rows(tables, q.shape[0]).kept()
    if choice.rule == "topk":
        return topk(score, int(choice.amount), allowed=allowed)
    return topp(score, float(choice.amount), allowed=allowed)


def _stored(x: Float, order: Any, tables: Any) -> Float:
    """Tokens ``[batch, heads, tokens, d]`` of every head in its stored order."""
    at = [head_order(order, h).index(tables or {}) for h in range(x.shape[1])]
    return np.stack([x[:, h, i] for h, i in enumerate(at)], axis=1)
