"""What a right result may be: plain torch in float64, with a bound on the kernels' own arithmetic.

Products of float16 and of bfloat16 are exact in float32.  Matrix units may cut off what they add,
which is at most twice what rounding loses, an operation a column of K; a group's sums then meet
their scale and are added up.  Entries of a codebook are rounded to 16 bits.  The stream template
reads bfloat16 x as float16, a power of two apart: below the least normal number of float16 that
loses at most 2**-25 of 2**14, the least that the largest number becomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdsl.kernels.matmul.truth import EPS, LEAST, activated
from kdsl.kernels.matmul.weight_only.facts import view
from kdsl.kernels.rounding import UNIT
from kdsl.specs import Matmul

if TYPE_CHECKING:
    from torch import Tensor

LOST = 2.0**-39
"""Of a row's largest number, that bfloat16 loses as float16."""


def share(
    spec: Matmul, operands: Mapping[str, Tensor], out: Tensor, rows: slice
) -> tuple[float, str]:
    """The largest error of some rows over what it may be (up to 1 is right), and why."""
    x = operands["x"][rows].double()
    weight, size, off = numbers(spec, operands)
    y = x @ weight.T
    error = (spec.inner * 2 + 8) * EPS * (x.abs() @ size.T) + x.abs() @ off.T
    if spec.dtype == "bfloat16":
        finite = x.abs().masked_fill(~x.isfinite(), 0.0)
        error = error + LOST * finite.amax(-1, keepdim=True) * size.sum(-1)
    error = error + 3 * EPS * y.abs() + 2.0**-120
    if spec.bias:
        y = y + operands["bias"].double()
        error = error + EPS * y.abs()
    y, error = activated(spec.activation, y, error)
    if spec.residual:
        y = y + operands["residual"].double()[rows]
        error = error + EPS * y.abs()
    error = error + UNIT[spec.dtype] * y.abs() + LEAST[spec.dtype]
    found = out[rows].double()
    if bool((found.isnan() != y.isnan()).any()):
        return math.inf, "NaN where it should not be, or not where it should"
    wrong = (found - y).abs().masked_fill(y.isnan() | (found == y), 0.0)
    return float((wrong / error.masked_fill(~error.isfinite(), 1.0)).max()), "a number is off"


def numbers(spec: Matmul, operands: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What weights stand for, the size of what is added up for them, and by how much their entries
    may be rounded: float64 ``[columns, inner]`` each."""
    import torch

    held = view(spec)

    def fields(name: str, each: int) -> Tensor:
        got = operands[f"weight_{name}"].to(torch.int64)
        shift = torch.arange(each, device=got.device) * (8 // each)
        return (got[..., None] >> shift & ((1 << 8 // each) - 1)).flatten(1)

    pattern = fields(held.codes, 2 if held.bits == 4 else 4)
    if held.signs:
        pattern = pattern | fields(held.signs, 8) << 2
    book = torch.tensor(held.entries, dtype=torch.float64, device=pattern.device)
    kinds = (torch.float16, getattr(torch, spec.dtype))
    rounded = torch.stack([(book.to(kind).double() - book).abs() for kind in kinds]).amax(0)
    scale = operands[f"weight_{held.scales}"].double().repeat_interleave(held.group, 1)
    value = book[pattern]
    size = (pattern + held.offset).double() if held.kind == "uniform" else value.abs()
    if held.zeros:
        zero = operands[f"weight_{held.zeros}"].double().repeat_interleave(held.group, 1)
        value, size = value - zero, size + zero
    return value * scale, size * scale.abs(), rounded[pattern] * scale.abs()
