"""What a right result may be: plain torch in float64, with a bound on what float32 adds to it.

Every number comes with the largest error that the kernel's arithmetic may have made of it, by the
usual rounding analysis: `EPS` for each float32 operation, a product's terms by the precision of
its operands, sums by their depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.kernels.quantize.facts import Coding, coding, stages_of
from kdsl.layouts.hadamard import hadamard
from kdsl.layouts.transforms import Channels, Hadamard, Mean, Recipe, Rotate, Signs, Smooth, Step
from kdsl.specs import Quantize

if TYPE_CHECKING:
    from torch import Tensor

EPS = 2.0**-24
SUM = 160 * EPS
"""Of sums over a row: a thread adds up to 128 numbers, then threads and warps meet in pairs."""
APPROXIMATE = 8 * EPS
"""Of the GPU's roots, exponentials and quotients: two units in the last place, and around them."""
OPERANDS = {"bfloat16": 2.0**-17, "float16": 2.0**-22, "float32": 2.0**-21}
"""Two parts of an operand and the product of the lower ones left out; of TF32 three products."""
LEAST_PART = 2.0**-25
"""Half of float16's smallest number."""
LOOSE = 2.0**-100
"""Scales below which it is only asked that nothing is large: some units take such numbers for 0."""


@dataclass(frozen=True)
class Numbers:
    """Values and bounds of their errors, float64 in one shape."""

    value: Tensor
    error: Tensor


def transformed(
    spec: Quantize, x: Tensor, scale: Tensor | None, shift: Tensor | None, recipe: Recipe
) -> Numbers:
    """What is quantized: ``x [rows, columns]`` with scale and shift ``[columns]``."""
    v = x.double()
    e = v.new_zeros(v.shape)
    if spec.norm is not None:
        v, e = _normalized(spec, v)
    if scale is not None and shift is not None:
        by, more = 1 + scale.double(), shift.double()
        e = e * by.abs() + 3 * EPS * ((v * by).abs() + more.abs())
        v = v * by + more
    if spec.activation is not None:
        z = v
        if spec.activation == "gelu_tanh":
            z = 2 * (2 / np.pi) ** 0.5 * (v + 0.044715 * v**3)
        v = v / (1 + (-z).exp())
        # Neither function is steeper than 1.13; the exponential's argument is rounded, too.
        e = 1.13 * e + v.abs() * EPS * (16 + 4 * z.abs().clamp(max=200)) + 2.0**-120
    exact = [stage.exact for stage in stages_of(spec)]
    for step in recipe.steps:
        if isinstance(step, (Hadamard, Rotate)):
            v, e = _rotated(spec, v, e, step, exact.pop(0))
        else:
            v, e = _column_step(v, e, step)
    return Numbers(v, e)


def _normalized(spec: Quantize, x: Tensor) -> tuple[Tensor, Tensor]:
    off = x.new_zeros(())
    if spec.norm == "layer":
        off = SUM * x.abs().mean(-1, keepdim=True)
        x = x - x.mean(-1, keepdim=True)
    root = (x.square().mean(-1, keepdim=True) + spec.eps).rsqrt()
    v = x * root
    # An error of the mean moves every number, and the deviation at most as far.
    return v, off * root * (1 + v.abs()) + v.abs() * (SUM / 2 + APPROXIMATE)


def _column_step(v: Tensor, e: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    import torch

    if isinstance(step, Channels):
        at = torch.from_numpy(np.asarray(step.index, np.int64)).to(v.device)
        return v[:, at], e[:, at]
    (held,) = vars(step).values()
    values = torch.from_numpy(np.asarray(held, np.float64)).to(v.device)
    if isinstance(step, Signs):
        return v * values, e
    # Factors may be folded together with neighbouring means, which are rounded to float32 alone.
    if isinstance(step, Mean):
        return v - values, e + 4 * EPS * (v.abs() + values.abs())
    assert isinstance(step, Smooth)
    return v / values, e / values + 4 * EPS * (v / values).abs()


def _rotated(
    spec: Quantize, v: Tensor, e: Tensor, step: Hadamard | Rotate, exact: bool
) -> tuple[Tensor, Tensor]:
    import torch

    if isinstance(step, Hadamard):
        matrix = np.asarray(hadamard(step.order), np.float64) / step.order**0.5
    else:
        matrix = np.asarray(step.matrix, np.float64)
    turn, n = torch.from_numpy(matrix).to(v.device), len(matrix)
    part = OPERANDS[spec.dtype]
    if spec.dtype == "float16" and not exact:
        v = v.masked_fill(v.abs() >= 65520.0, torch.inf)
        e = e + LEAST_PART
    if not exact or spec.dtype == "float32":
        e = e + v.abs() * part
    # Products of a Hadamard matrix are exact; sums of n terms may be cut off at each step.
    each = n * 2 * EPS + (0.0 if isinstance(step, Hadamard) else part)
    blocks = v.reshape(len(v), -1, n)
    bound = (blocks.abs() * each + e.reshape(blocks.shape)) @ turn.abs()
    out = (blocks @ turn).reshape(v.shape)
    return out, bound.reshape(v.shape) + 4 * EPS * out.abs()


def share(
    spec: Quantize, numbers: Numbers, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> tuple[float, str]:
    """The largest error of a result over what it may be (up to 1 is right), and where it is.

    ``codes`` as stored, ``[rows, bytes]``; a code may be another one than the nearest only where
    the exact number lies within its bound of a border between codes.
    """
    import torch

    code = coding(spec.format, spec.columns)
    group = code.group or spec.columns
    shape = (len(codes), -1, group)
    y, e = (t.reshape(shape) for t in (numbers.value, numbers.error))
    largest = y.abs().amax(-1)
    bad = ~largest.isfinite()
    y, e = (t.masked_fill(bad[..., None], 0.0) for t in (y, e))
    span, off = y.abs().amax(-1), e.amax(-1)
    bottom = y.amin(-1).clamp(max=0)
    if code.asymmetric:
        span, off = y.amax(-1).clamp(min=0) - bottom, 2 * off
    unit, room = span / code.limit, off / code.limit + 4 * EPS * span / code.limit
    dtype = getattr(torch, code.scale_dtype)
    low, high = ((unit + s * room).clamp(min=0).to(dtype).double() for s in (-1, 1))
    found = scales.double()
    lost = bad | (low == torch.inf)
    if bool((found.isnan() != lost)[low.isfinite() == high.isfinite()].any()):
        return float("inf"), "scales are NaN where they should not be, or are not where they should"
    found = found.masked_fill(lost, 0.0)
    loose = unit < LOOSE
    outside = torch.maximum(low - found, found - high).masked_fill(lost | loose, 0.0)
    if bool((outside > 0).any()):
        return 1 + float((outside / room.clamp(min=1e-300)).max()), "a scale is off"
    if bool((found[loose] > 2 * LOOSE).any()):
        return float("inf"), "the scale of a row of next to nothing"
    used = found.masked_fill(found == 0, 1.0)
    middle = torch.zeros_like(found)
    worst = torch.zeros_like(found)
    if zeros is not None:
        middle = zeros.double()
        want = (code.low - bottom / used).masked_fill(lost, 0.0)
        distance = (middle - want).abs() - (want.round() - want).abs()
        worst = distance / (4 * off / used + 16 * EPS * (1 + want.abs()))
        worst = worst.masked_fill(loose & ~lost, 0.0)
    middle, used = middle[..., None], used[..., None]
    stored, nearest = values_of(code, codes, spec.columns).reshape(shape), _nearest(code)
    wanted = (y / used + middle).clamp(code.low, code.high).masked_fill(lost[..., None], 0.0)
    distance = (stored - wanted).abs() - (nearest(wanted) - wanted).abs()
    may = 2 * (e / used + 8 * EPS * (1 + wanted.abs() + middle.abs()))
    by_code = (distance / may).masked_fill((loose & ~lost)[..., None], 0.0).amax(-1)
    if bool((by_code > worst).any()):
        return float(torch.maximum(by_code, worst).max()), "a code is off"
    return float(worst.max()), "a zero point is off"


def values_of(code: Coding, codes: Tensor, columns: int) -> Tensor:
    """What stored codes stand for, before zero points and scales, float64."""
    import torch

    held = codes.reshape(len(codes), -1).view(torch.uint8)
    if code.fp8:
        return held.view(torch.float8_e4m3fn).double()
    if code.bits == 4:
        both = torch.stack((held & 15, held >> 4), -1).reshape(len(codes), columns)
        pattern = both.to(torch.int64)
    else:
        pattern = held.to(torch.int64)
    # A pattern is the code plus `shift`, modulo the number of patterns.
    size = 1 << code.bits
    value = (pattern - code.shift - int(code.low)) % size + int(code.low)
    return value.double()


def _nearest(code: Coding) -> Any:
    import torch

    if code.fp8:
        return lambda t: t.float().to(torch.float8_e4m3fn).double()
    return torch.round
