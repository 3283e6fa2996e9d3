"""Blocks chosen by pooled queries and keys: the truth, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.specs import as_array

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
    held = np.where(allowed, as_array(score, np.float64), -np.inf)
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
    held = np.where(allowed, as_array(score, np.float64), -np.inf)
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
