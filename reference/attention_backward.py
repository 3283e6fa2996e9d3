"""Gradients of dense masked attention in float64: what every backward kernel is held against.

With ``s = scale q k^T`` over visible pairs, ``p = softmax(s)``, ``out = p v`` and ``lse`` the
log-sum-exp of ``s`` (FlashAttention-2, arXiv 2307.08691, section 3.1.2):

    dv = p^T dout        dp = dout v^T        delta = rowsum(dout * out) - dlse
    ds = p (dp - delta)  dq = scale ds k      dk = scale ds^T q
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.reference.attention import ROWS, Float, Head, by_item, softmax_product
from kdsl.specs import Attention, as_array


def attention_backward(
    spec: Attention,
    q: Any,
    k: Any,
    v: Any,
    dout: Any,
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    dlse: Any | None = None,
) -> tuple[Float, Float, Float]:
    """Gradients of ``q``, ``k`` and ``v`` in their shapes, from that of the output.

    ``dout`` is ``[batch, heads, queries, head_dim]``, ``dlse`` (of the natural log-sum-exp, if it
    was used) ``[batch, heads, queries]``; arrays or torch tensors.  The gradients of a key head are
    the sum over the query heads that share it.  With ``spec.stored`` inputs and their gradients are
    in stored order, ``dout`` and ``dlse`` in the original one.

    A query that sees nothing has gradient 0 and gives none.  All products run over the pairs of
    visited mask blocks, hidden pairs with weight zero: a NaN or infinity in an input or in ``dout``
    reaches what shares a visited block with it, and nothing else.
    """
    q, k, v, dout = (as_array(x, np.float64) for x in (q, k, v, dout))
    slope = np.zeros(q.shape[:3]) if dlse is None else as_array(dlse, np.float64)
    dq, dk, dv = (np.zeros_like(x) for x in (q, k, v))
    finite = all(np.isfinite(x).all() for x in (q, k, v, dout, slope))
    settled, held = by_item(spec, q, k, tables)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            head, g = Head(settled, h, b, held[b]), h // spec.group
            queries, keys, values = head.original(q[b, h], k[b, g], v[b, g])
            q_at, k_at = head.places
            step = max(ROWS // max(k.shape[2], 1), 1)
            for at in range(0, q.shape[2], step):
                rows = np.arange(at, min(at + step, q.shape[2]))
                sees = head.mask(rows)
                visited = None if finite else head.visited(rows)
                arrays = (queries[rows], keys, values, dout[b, h, rows], slope[b, h, rows])
                made = _slice(spec.softmax_scale, *arrays, sees, visited)
                dq[b, h, q_at[rows]] = made[0]
                dk[b, g, k_at] += made[1]
                dv[b, g, k_at] += made[2]
    return dq, dk, dv


def _slice(
    scale: float,
    q: Float,
    k: Float,
    v: Float,
    dout: Float,
    slope: Float,
    sees: npt.NDArray[np.bool_],
    visited: npt.NDArray[np.bool_] | None,
) -> tuple[Float, Float, Float]:
    """Gradients from some queries of one head: ``[rows, d]``, ``[keys, d]``, ``[keys, d]``."""
    with np.errstate(all="ignore"):
        score = np.where(sees, scale * (q @ k.T), -np.inf)
        out, lse = softmax_product(score, v, visited)
        # A row without weight has lse minus infinity; its weights are 0.
        p = np.exp(score - np.where(np.isneginf(lse), np.inf, lse)[:, None])
        delta = (dout * out).sum(1) - slope
        ds = p * (dout @ v.T - delta[:, None])
        if visited is None:
            dq, dk, dv = ds @ k, ds.T @ q, p.T @ dout
        else:
            dq = _over(ds, k, visited)
            dk = _over(ds.T, q, visited.T)
            dv = _over(p.T, dout, visited.T)
        dq[np.isneginf(lse)] = 0.0
        return scale * dq, scale * dk, dv


def _over(weight: Float, values: Float, visited: npt.NDArray[np.bool_]) -> Float:
    """``weight @ values``, each row over the visited pairs alone: 0 times NaN is NaN there."""
    rows = [w[s] @ values[s] for w, s in zip(weight, visited, strict=True)]
    return np.stack(rows) if rows else np.zeros((0, values.shape[1]))
