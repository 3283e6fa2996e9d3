"""What a right result may be: plain torch in float64, with a bound on what the kernel's own
arithmetic adds to it.

By the usual rounding analysis, `EPS` for each float32 operation: three of a sum that meets two
scales, one of the bias, those of the activation, one of the residual; then the output's rounding.
Sums of integers are exact.  Sums of e4m3 products are float32's, or on compute capability 8.9 to
9.x those of registers with 13 bits after the point (`COARSE`; DeepSeek-V3, arXiv 2412.19437,
section 3.5.2, and SageAttention2, arXiv 2411.10958, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdsl.kernels.matmul.facts import Packed, view
from kdsl.kernels.rounding import UNIT
from kdsl.specs import Matmul

if TYPE_CHECKING:
    from torch import Tensor

EPS = UNIT["float32"]
COARSE = 2.0**-13
"""Of e4m3 sums: what a step of 32 products cuts off, relative to the largest of its terms."""
STEP = 32
STEEPEST = 1.13
"""Of GELU and SiLU."""
LEAST = {"bfloat16": 2.0**-126, "float16": 2.0**-25, "float32": 2.0**-126}
"""Absolute, where numbers are below the least normal one."""


def coarse(capability: tuple[int, int]) -> bool:
    """Whether e4m3 sums have fewer bits than float32."""
    return (8, 9) <= capability < (10, 0) or capability[0] == 12


def share(
    spec: Matmul,
    operands: Mapping[str, Tensor],
    out: Tensor,
    rows: slice,
    capability: tuple[int, int],
    exact: bool = False,
) -> tuple[float, str]:
    """The largest error of some rows of a result over what it may be (up to 1 is right), and why.

    ``exact`` says that the sums of these codes lose nothing, however coarse the registers are.
    Without it signs of products are taken to be independent, as the runner's are: what steps cut
    off then adds up as a random walk does, and only the part towards zero in line.
    """
    held = view(spec)
    x, weight = held.x, held.weight
    codes = numbers(operands[f"x_{x.codes}"][rows], held.integer)
    by_row = operands[f"x_{x.scales}"].double()[rows].reshape(-1, 1)
    if isinstance(weight, Packed):
        other, by_column = unpacked(weight, operands), by_row.new_ones((1, 1))
    else:
        other = numbers(operands[f"weight_{weight.codes}"], held.integer)
        by_column = operands[f"weight_{weight.scales}"].double().reshape(1, -1)
    total = codes @ other.T
    error = total.abs() * EPS
    if isinstance(weight, Packed):
        # Steps of 64 at least: their sums meet a scale and are added up, an operation each.
        error = error + (spec.inner / 64 + 2) * EPS * (codes.abs() @ other.abs().T)
    # Books of e4m3 have more digits than small integers, and sums of them than 13 bits.
    if not held.integer and not (exact and not held.group):
        error = error + _sum_error(spec, codes, other, total, capability)
    if x.zeros:
        zero = operands[f"x_{x.zeros}"].double()[rows].reshape(-1, 1)
        total = total - zero * other.sum(-1)
        error = total.abs() * EPS
    factor = (by_row * by_column).abs()
    y = total * by_row * by_column
    error = error * factor + 3 * EPS * y.abs() + 2.0**-120
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
    off = (found - y).abs().masked_fill(y.isnan() | (found == y), 0.0)
    return float((off / error.masked_fill(~error.isfinite(), 1.0)).max()), "a number is off"


def numbers(codes: Tensor, integer: bool) -> Tensor:
    """What 8-bit codes stand for, float64."""
    import torch

    if integer:
        return codes.view(torch.int8).double()
    return codes.view(torch.float8_e4m3fn).double()


def unpacked(weight: Packed, operands: Mapping[str, Tensor]) -> Tensor:
    """What weights of four or three bits stand for, float64 ``[columns, inner]``."""
    import torch

    def fields(name: str, each: int) -> Tensor:
        held = operands[f"weight_{name}"].to(torch.int64)
        shift = torch.arange(each, device=held.device) * (8 // each)
        return (held[..., None] >> shift & ((1 << 8 // each) - 1)).flatten(1)

    pattern = fields(weight.codes, 2 if weight.bits == 4 else 4)
    if weight.signs:
        pattern = pattern | fields(weight.signs, 8) << 2
    kind = torch.int8 if weight.integer else torch.float8_e4m3fn
    book = torch.tensor(weight.entries, dtype=torch.uint8, device=pattern.device).view(kind)
    scales = operands[f"weight_{weight.scales}"].double()
    return book.double()[pattern] * scales.repeat_interleave(weight.group, 1)


def _sum_error(
    spec: Matmul, x: Tensor, weight: Tensor, total: Tensor, capability: tuple[int, int]
) -> Tensor:
    if not coarse(capability):
        # Units may cut off what they add: twice what rounding loses.
        return spec.inner * 2 * EPS * (x.abs() @ weight.abs().T)
    steps = -(-spec.inner // STEP)
    # The largest partial sum of a random walk of these steps.
    largest = total.abs() + 6 * (x.square() @ weight.square().T).sqrt()
    return COARSE * (steps / 2 + 4 * math.sqrt((STEP + 1) * steps)) * largest


def activated(activation: str | None, y: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """An activation of numbers that may be off by ``error``, and by what it may then be."""
    if activation is None:
        return y, error
    error = STEEPEST * error
    if activation == "gelu_erf":
        import torch

        # The function is off by two units in the last place of 1, its argument by one rounding.
        return y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), error + 8 * EPS * y.abs()
    z = y
    if activation == "gelu_tanh":
        z = 2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    v = y / (1 + (-z).exp())
    return v, error + v.abs() * EPS * (16 + 4 * z.abs().clamp(max=200)) + 2.0**-120
