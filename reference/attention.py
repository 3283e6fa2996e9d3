"""Dense masked attention in float64: what every attention kernel is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.intervals.classify import head_order
from kdsl.reference.selection import chosen
from kdsl.specs import Attention, as_array

ROWS = 1 << 22
"""Scores held at once; queries are taken in slices so that they stay below."""

Float = npt.NDArray[np.float64]


def attention(
    spec: Attention,
    q: Any,
    k: Any,
    v: Any,
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    rows: npt.NDArray[Any] | None = None,
) -> tuple[Float, Float]:
    """Output ``[batch, heads, queries, head_dim]`` and log-sum-exp ``[batch, heads, queries]``.

    ``q`` is ``[batch, heads, queries, head_dim]``, ``k`` and ``v`` ``[batch, kv_heads, keys,
    head_dim]``, arrays or torch tensors.  ``rows`` picks some original query tokens; the results
    then hold those only, in that order.

    With ``spec.stored`` the inputs are in stored order; results are in the original one.

    A query whose visible scores are all minus infinity, or that sees nothing, gives 0 and minus
    infinity.  A key that no query of its mask block sees is never read; a NaN or infinity in ``v``
    of any other key of a visited block reaches every query of that block that sees anything, as in
    a product with weights of zero.
    """
    q, k, v = (as_array(x, np.float64) for x in (q, k, v))
    picked = np.arange(q.shape[2]) if rows is None else np.asarray(rows)
    out = np.zeros((q.shape[0], q.shape[1], len(picked), q.shape[3]))
    lse = np.full(out.shape[:3], -np.inf)
    finite = bool(np.isfinite(v).all())
    settled, held = by_item(spec, q, k, tables)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            head = Head(settled, h, b, held[b])
            queries, keys, values = head.original(
                q[b, h], k[b, h // spec.group], v[b, h // spec.group]
            )
            step = max(ROWS // max(len(keys), 1), 1)
            for at in range(0, len(picked), step):
                part = slice(at, at + step)
                sees = head.mask(picked[part])
                score = np.where(
                    sees, spec.softmax_scale * (queries[picked[part]] @ keys.T), -np.inf
                )
                out[b, h, part], lse[b, h, part] = softmax_product(
                    score, values, None if finite else head.visited(picked[part])
                )
    return out, lse


def by_item(
    spec: Attention, q: Float, k: Float, tables: Mapping[str, npt.NDArray[Any]] | None
) -> tuple[Attention, list[Mapping[str, npt.NDArray[Any]] | None]]:
    """The spec with what its mask chooses as a map of blocks, and the tables of each batch item."""
    if spec.mask.choice is None:
        return spec, [tables] * q.shape[0]
    name, found = spec.mask.choice.name, chosen(spec, q, k, tables).astype(np.uint8)
    return spec.settled(), [{**(tables or {}), name: kept} for kept in found]


class Head:
    """The mask of one head over original tokens."""

    def __init__(
        self, spec: Attention, head: int, batch: int, tables: Mapping[str, npt.NDArray[Any]] | None
    ) -> None:
        self.spec, self.head, self.batch, self.tables = spec, head, batch, tables
        self.keys = np.arange(spec.key_grid.tokens)
        self.query_position = head_order(spec.query_order, head).inverse_index(tables)
        self.key_position = head_order(spec.kv_order, head).inverse_index(tables)

    def original(self, q: Float, k: Float, v: Float) -> tuple[Float, Float, Float]:
        """Inputs of the head in the original order of tokens."""
        if not self.spec.stored:
            return q, k, v
        return q[self.query_position], k[self.key_position], v[self.key_position]

    @property
    def places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where original query and key tokens stand in the inputs."""
        if self.spec.stored:
            return self.query_position, self.key_position
        return np.arange(self.spec.query_grid.tokens), self.keys

    def mask(self, queries: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which keys some queries see, ``[queries, keys]``."""
        return self.spec.element_mask.dense(
            queries,
            self.keys,
            head=self.head,
            batch=self.batch,
            tables=self.tables,
            stored=(self.query_position[queries], self.key_position),
        )

    def visited(self, queries: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Keys whose mask block is visited for some queries, ``[queries, keys]``."""
        block_q, block_k = self.spec.block
        order = np.argsort(self.query_position)
        columns = -(-len(self.keys) // block_k)
        out = np.zeros((len(queries), len(self.keys)), np.bool_)
        for row in np.unique(self.query_position[queries] // block_q):
            members = order[row * block_q : (row + 1) * block_q]
            seen = np.zeros(columns, np.bool_)
            seen[self.key_position[self.mask(members).any(0)] // block_k] = True
            mine = self.query_position[queries] // block_q == row
            out[mine] = seen[self.key_position // block_k]
        return out


def softmax_product(
    score: Float, values: Float, visited: npt.NDArray[np.bool_] | None = None
) -> tuple[Float, Float]:
    """``softmax(score) @ values`` and the natural log-sum-exp, rows without weight 0 and -inf.

    ``visited`` marks the keys that a row's product runs over where the values are not all finite.
    """
    with np.errstate(all="ignore"):
        top = score.max(1, initial=-np.inf)
        top = np.where(np.isneginf(top), 0.0, top)
        weight = np.exp(score - top[:, None])
        total = weight.sum(1)
        if visited is None:
            product = weight @ values
        else:
            product = np.stack([w[s] @ values[s] for w, s in zip(weight, visited, strict=True)])
        none = total == 0
        out = np.where(none[:, None], 0.0, product / total[:, None])
        lse = np.where(none, -np.inf, top + np.log(total))
    return out, lse
