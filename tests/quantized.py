"""How far a quantized kernel may be from its reference: derived, as in `tests.tolerance`.

The reference has the kernel's own arithmetic, so errors of the layout cancel.  What is left:

1. *Exponents.*  Scores are exact integers; their scales, softmax's and the difference to the
   maximum are six float32 roundings at most, each of a number no larger than score, level or shift.
2. *Codes of weights.*  A weight that 1 moves over a border between two codes has the other one:
   `doubt` adds up just those, each by the distance of the two codes.
3. *The sum of weights* is unrounded: 1, exp2, and additions.
4. *Rescaling* and *sums* as there (3 and 5); products of integers are exact, one rounding a tile
   adds them.  An instruction for e4m3 on Hopper adds 32 products and what there was before, each
   cut off 13 bits below the largest of them ("DeepSeek-V3", arXiv 2412.19437, section 3.3.2):
   `FP8`, on a GPU alone.  Its largest product is no larger than their sum, and the sums of all
   instructions add up to the magnitude; what there was before is cut once in each.
5. *The quotient, v's scale* and the output's rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.kernels.layouts.in_torch import operands as quantize
from kdsl.reference.attention_quantized import attention_quantized
from kdsl.specs import Attention, as_array
from tests.devices import DEVICE
from tests.tolerance import EXP2, SUBNORMAL, U32, U_SUM, UNIT, Expected

EXPONENT = 6 * U32
FP8 = 2.0**-13


def expected(
    spec: Attention,
    given: tuple[Any, ...],
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    block_n: int,
    lag: float = 0.0,
    coded_sums: bool = False,
) -> Expected:
    """Reference output and log-sum-exp of operands, and their bounds, for a tile of keys.

    ``lag`` and ``coded_sums`` are the kernel's: how far it lets maxima stay behind, and which sums
    it divides by.
    """
    layout = spec.layout
    assert layout is not None
    named = dict(zip(layout.operands, given, strict=True))
    how: dict[str, Any] = {"exponent_error": EXPONENT, "lag": lag, "coded_sums": coded_sums}
    found = attention_quantized(spec, given, tables, step=block_n, **how)
    positive = {**named, "v": _absolute(named["v"])}
    magnitude = attention_quantized(spec, tuple(positive.values()), tables, step=block_n).out
    q, k = (
        as_array(named[n], np.float64)
        * layout_n.spread(as_array(named[f"{n}_scale"]), *named[n].shape[-2:])
        for n, layout_n in (("q", layout.q), ("k", layout.k))
    )
    keys, tiles = k.shape[2], -(-k.shape[2] // block_n) + 1
    longest = np.linalg.norm(k, axis=3).max(2, initial=0.0).repeat(spec.group, axis=1)
    # The bound of a row's scores is taken over all rows: rows are stored, outputs are not.
    size = spec.softmax_scale * np.linalg.norm(q, axis=3).max(2, initial=0.0) * longest
    size = np.broadcast_to(size[:, :, None], found.lse.shape) + np.log(256)
    weight = np.expm1(2 * EXPONENT * size + EXP2)
    fade = tiles * (2 * U32 * size + EXP2 + U32)
    total = weight + fade + (keys / 8 + 8) * U_SUM
    summed = tiles * U32 if layout.weights in ("uint8", "int8", "uint4") else (keys / 8 + 8) * U_SUM
    if layout.weights == "e4m3" and DEVICE == "cuda":
        cut = FP8 * (min(keys, 32) + keys / 32 + 1)
        summed += cut
        total += cut * coded_sums
    relative = (total + fade + summed + 4 * U32)[..., None]
    unit, tiny = UNIT[spec.dtype], SUBNORMAL[spec.dtype]
    near = magnitude * relative + found.doubt * (1 + relative)
    out_error = near + unit * (np.abs(found.out) + near) + tiny
    lse_error = total + 4 * U32 * (np.where(np.isfinite(found.lse), np.abs(found.lse), 0) + size)
    return Expected(found.out, found.lse, out_error, lse_error + found.sums_doubt + EXP2)


def _absolute(v: Any) -> npt.NDArray[Any]:
    if "float8" in str(v.dtype):
        import torch

        return as_array(v.view(torch.uint8)) & 0x7F
    return np.abs(as_array(v))


def plain(spec: Attention) -> Attention:
    """The spec without its layout."""
    return replace(spec, layout=None)


def made(spec: Attention, q: Any, k: Any, v: Any) -> tuple[Any, ...]:
    """Operands of 16-bit tensors."""
    assert spec.layout is not None
    return quantize(spec.layout, q, k, v)
