"""Attention on quantized operands in NumPy: the arithmetic of the kernels, step by step.

What a product of codes gives is exact here and there; what is not is spelled out: the order of
steps, the running maximum that weights are coded against, and how they are rounded.  The sums that
kernels keep in float32 are float64 here.  `attention` on the unquantized inputs is the truth that
errors of a layout are measured against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import SpecError
from kdsl.layouts import AttentionLayout
from kdsl.layouts.attention import WEIGHTS
from kdsl.layouts.codes import BF16, E4M3, F16
from kdsl.reference.attention import Head
from kdsl.specs import Attention, as_array

Float = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
LOG2E = float(np.log2(np.e))
EXP2 = 2.0**-22
"""Relative error of a kernel's exp2."""
WARP = 16
"""Queries whose scores one warp holds."""
CODE = 2.0**-16
"""What a float32 code of at most 255 loses where a half is added to it."""


@dataclass(frozen=True)
class Quantized:
    """What quantized attention gives.

    ``doubt`` bounds, element by element, what it costs the output that weights which lie so near a
    border between two codes that float32 cannot tell are rounded the other way; ``sums_doubt`` what
    it costs sums of codes, relative.
    """

    out: Float
    lse: Float
    doubt: Float
    sums_doubt: Float


def attention_quantized(
    spec: Attention,
    operands: tuple[Any, ...],
    tables: Mapping[str, Array] | None = None,
    *,
    step: int | None = None,
    exponent_error: float = 0.0,
    lag: float = 0.0,
    coded_sums: bool = False,
) -> Quantized:
    """Output, log-sum-exp and doubt from the operands that ``spec.layout.operands`` names.

    Steps take ``step`` keys (the mask block's, unless given), full blocks first, then partial ones.
    ``exponent_error`` is the relative error of a kernel's exponents, for ``doubt``.  With ``lag``
    the maxima that weights are coded against stay, sixteen stored queries together, until a score
    exceeds one by more than that (log2); codes then keep as much room above.  With ``coded_sums``
    outputs are divided by the sum of codes, not of weights before their rounding.  A query
    whose scale is NaN gives NaN, and so does one that visits keys with such a scale where a step's
    keys share one; where they do not, one that sees such a key.  SpecError without a layout.
    """
    layout = spec.layout
    if layout is None:
        raise SpecError("the spec has no layout", hint="kdsl.reference.attention.attention")
    given = dict(zip(layout.operands, operands, strict=True))
    q, k = (_numbers(given, layout, name) for name in "qk")
    v = values(spec, given)
    batch, heads, queries, channels = q.shape
    out = np.zeros((batch, heads, queries, channels))
    doubt, lse = np.zeros_like(out), np.full(out.shape[:3], -np.inf)
    sums_doubt = np.zeros_like(lse)
    scales = np.ones((batch, spec.group_heads, 1, channels))
    if layout.v is not None:
        scale = as_array(given["v_scale"], np.float64)
        scales = np.broadcast_to(scale, scales.shape)
    if not queries or not k.shape[2]:
        return Quantized(out, lse, doubt, sums_doubt)
    rows = spec.rows(tables, batch)
    for b in range(batch):
        for h in range(heads):
            kv = h // spec.group
            head = Head(spec, h, b, tables)
            tensors = (q[b, h], k[b, kv], v[b, kv])
            walk = _Walk(spec, layout, head, tensors, exponent_error, lag, coded_sums)
            walk.step = step or spec.block[1]
            for row in range(rows.rows):
                tokens, found = walk.row(row, list(_steps(spec, rows, b, h, row, step)))
                out[b, h, tokens], lse[b, h, tokens], doubt[b, h, tokens] = found[:3]
                sums_doubt[b, h, tokens] = found[3]
            out[b, h] *= scales[b, kv]
            doubt[b, h] *= scales[b, kv]
    doubt += np.abs(out) * sums_doubt[..., None]
    return Quantized(out, lse, doubt, sums_doubt)


def values(spec: Attention, given: Mapping[str, Any]) -> Float:
    """V's codes, or v itself, as numbers ``[batch, kv_heads, keys, head_dim]``, in its order."""
    layout, v = spec.layout, given["v"]
    assert layout is not None
    if layout.v is None:
        held: Float = as_array(v, np.float64)
        return held
    codes = layout.restored(_bits(v), spec.key_grid.tokens)
    return layout.v.numbers(codes).astype(np.float64)


class _Walk:
    """One head's rows of blocks."""

    def __init__(
        self,
        spec: Attention,
        layout: AttentionLayout,
        head: Head,
        tensors: tuple[Float, Float, Float],
        exponent_error: float,
        lag: float,
        coded_sums: bool,
    ) -> None:
        self.spec, self.head, self.error, self.lag = spec, head, exponent_error, lag
        self.q, self.k, self.v = tensors
        self.query_tokens = np.argsort(head.query_position)
        self.key_tokens = np.argsort(head.key_position)
        self.layout, self.coded_sums, self.step = layout, coded_sums, spec.block[1]
        self.code = layout.weights or spec.dtype
        self.unit = 2.0**lag / WEIGHTS[layout.weights] if layout.weights else 1.0

    def row(self, row: int, steps: list[Array]) -> tuple[Array, tuple[Float, Float, Float, Float]]:
        """Original query tokens of a row of blocks, and their output, log-sum-exp, doubts."""
        first = row * self.spec.block[0]
        q = self.q[first : first + self.spec.block[0]]
        tokens = self.query_tokens[first : first + len(q)]
        top = np.full(len(q), -np.inf)
        total, unsure_total = np.zeros(len(q)), np.zeros(len(q))
        out = np.zeros((len(q), self.v.shape[1]))
        doubt = np.zeros_like(out)
        sees = self.head.mask(tokens)[:, self.key_tokens] if steps else None
        factor = self.spec.softmax_scale * LOG2E
        with np.errstate(invalid="ignore"):
            for keys in steps:
                assert sees is not None
                x = factor * (q @ self.k[keys].T)
                x = np.where(sees[:, keys] | self._spoilt(x, q), x, -np.inf)
                new = self._maxima(x.max(1), top)
                level = np.where(np.isneginf(new), 0.0, new)
                weight, fade = np.exp2(x - level[:, None]), np.exp2(top - level)
                codes = rounded(weight, self.code, self.unit)
                v = self.v[keys]
                out = out * fade[:, None] + codes @ v
                if self.error:
                    unsure = self._unsure(weight, x, level)
                    doubt = doubt * fade[:, None] + unsure @ np.abs(v)
                    unsure_total = unsure_total * fade + unsure.sum(1)
                total = total * fade + (codes if self.coded_sums else weight).sum(1)
                top = new
            none = total == 0
            share = 1.0 / np.where(none, 1.0, total)[:, None]
            out = np.where(none[:, None], 0.0, out * share)
            lse = np.where(none, -np.inf, (top + np.log2(np.where(none, 1.0, total))) / LOG2E)
        return tokens, (out, lse, doubt * share, unsure_total * share[:, 0] * self.coded_sums)

    def _spoilt(self, x: Float, q: Float) -> npt.NDArray[np.bool_]:
        """Scores that are no numbers though the mask drops them: of queries with a scale that is
        none, and of keys if a step's share theirs, which is a factor of the row then."""
        group = self.layout.k.group
        shared = isinstance(group, tuple) and (group[0] is None or group[0] % self.step == 0)
        rows: npt.NDArray[np.bool_] = np.isnan(q.sum(1))[:, None]
        spoilt: npt.NDArray[np.bool_] = np.isnan(x) & (rows | shared)
        return spoilt

    def _maxima(self, found: Float, top: Float) -> Float:
        """Maxima after a step."""
        new = np.maximum(top, found)
        if not self.lag:
            return new
        moves = np.logical_or.reduceat(found > top + self.lag, np.arange(0, len(top), WARP))
        return np.where(np.repeat(moves, WARP)[: len(top)], new, top)

    def _unsure(self, weight: Float, x: Float, level: Float) -> Float:
        """How far apart codes are that a weight may have."""
        size = np.where(np.isneginf(x), 0.0, np.abs(x)) + np.abs(level)[:, None]
        size -= np.log2(self.unit)
        off = (np.expm1(np.log(2) * self.error * size) + EXP2) * weight
        if self.code in WEIGHTS and self.code != "e4m3":
            off += CODE * self.unit
        low, high = (rounded(weight + by, self.code, self.unit) for by in (-off, off))
        return high - low


def rounded(weight: Float, code: str, unit: float) -> Float:
    """Weights as their codes have them; integers round half up."""
    if code == "e4m3":
        return E4M3.nearest(weight / unit) * unit
    if code in WEIGHTS:
        return np.minimum(np.floor(weight / unit + 0.5), WEIGHTS[code]) * unit
    return {"bfloat16": BF16, "float16": F16}[code].nearest(weight)


def _steps(
    spec: Attention, rows: Blocks, batch: int, head: int, row: int, step: int | None
) -> Iterator[Array]:
    """Stored keys of each step of a row, in the order in which kernels take them."""
    at = tuple(min(i, n - 1) for i, n in zip((batch, head, row), rows.start.shape, strict=True))
    start, full, partial = rows.start[at], rows.full[at], rows.partial[at]
    columns = rows.index[start : start + full + partial]
    size, keys = spec.block[1], spec.key_grid.tokens
    step = step or size
    for column in columns:
        for first in range(column * size, min((column + 1) * size, keys), step):
            yield np.arange(first, min(first + step, keys))


def _numbers(given: Mapping[str, Any], layout: AttentionLayout, name: str) -> Float:
    """Q or k as its codes and scales have it."""
    codes = as_array(given[name], np.float64)
    held = layout.q if name == "q" else layout.k
    scale = held.spread(as_array(given[f"{name}_scale"]), *codes.shape[-2:])
    return codes * scale.astype(np.float64)


def _bits(x: Any) -> Array:
    """Codes as an array; float8 as its bits."""
    if hasattr(x, "detach") and "float8" in str(x.dtype):
        import torch

        x = x.view(torch.uint8)
    return as_array(x)
