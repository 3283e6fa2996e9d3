"""What a right result may be: plain torch in float64, with a bound on what float32 adds to it.

Every number comes with the largest error that the kernels' arithmetic may have made of it, by the
usual rounding analysis: `EPS` for each float32 operation, sums by the longest chain that any order
of adding within a tile may have.  A code may be another one than the nearest only where the exact
number lies within its bound of the border between both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdsl.kernels.layouts import in_torch
from kdsl.kernels.prepass.arguments import SETTLED, carried
from kdsl.kernels.prepass.config import SPACE
from kdsl.kernels.prepass.facts import CODES
from kdsl.layouts import Layout
from kdsl.layouts.attention import SUMMED, lane_order
from kdsl.layouts.groups import Lanes
from kdsl.specs import Prepass

if TYPE_CHECKING:
    from torch import Tensor

EPS = 2.0**-24
APPROXIMATE = 4 * EPS
"""Of the GPU's inverse root: two units in the last place, and its own rounding."""
TINY = 2.0**-126
LOOSE = 2.0**-100
"""Scales below which it is only asked that nothing is large: some units take such numbers for 0."""


@dataclass(frozen=True)
class Numbers:
    """Values and bounds of their errors, float64 in one shape."""

    value: Tensor
    error: Tensor


Found = tuple[float, str]
"""How much of what is allowed an error takes (up to 1 is right), and of what."""


def check(
    spec: Prepass, tensors: Mapping[str, Tensor], index: Tensor | None, out: Mapping[str, Tensor]
) -> Found:
    """The worst number of a result over what it may be off.

    ``index`` are the original tokens by stored position, ``[heads, tokens]``.
    """
    worst: Found = 0.0, ""
    for found in _checks(spec, tensors, index, out):
        # NaN is worse than anything.
        if not found[0] <= worst[0]:
            worst = found
    return worst


def _checks(
    spec: Prepass, tensors: Mapping[str, Tensor], index: Tensor | None, out: Mapping[str, Tensor]
) -> Iterator[Found]:
    for item in range(tensors["q"].shape[0]):
        for name, heads in (("q", spec.heads), ("k", spec.group_heads)):
            root = _root_of_tokens(spec, tensors[name][item])
            shared = 1 if name == "q" else spec.group
            for head in range(heads):
                numbers = transformed(spec, tensors, name, item, head, root)
                if name == "k" and spec.smooth:
                    numbers, mean = smoothed(spec, numbers)
                    yield _near(out["k_mean"][item, head], mean, "k's mean")
                if index is not None:
                    at = index[head * shared]
                    numbers = Numbers(numbers.value[at], numbers.error[at])
                yield from _coded(spec, numbers, name, item, head, out)
        for head in range(spec.group_heads):
            v = tensors["v"][item, head]
            v = v if index is None else v[index[head * spec.group]]
            yield from _values(spec, v, item, head, out)


def transformed(
    spec: Prepass,
    tensors: Mapping[str, Tensor],
    name: str,
    item: int,
    head: int,
    root: Tensor | None = None,
) -> Numbers:
    """A head of q or k, normalized and turned, in the original order ``[tokens, head_dim]``;
    ``root`` that of tokens over all heads."""
    d = spec.head_dim
    v = tensors[name][item, head].double()
    e = v.new_zeros(v.shape)
    if spec.norm is not None:
        weight = tensors[f"{name}_weight"].double()
        weight = weight[head * d : head * d + d] if spec.norm == "rms_token" else weight
        terms = d * (tensors[name].shape[1] if spec.norm == "rms_token" else 1)
        rounding = (terms / 2 + 4) * EPS + APPROXIMATE
        off = v.new_zeros((len(v), 1))
        if spec.norm == "layer":
            off = (d + 3) * EPS * v.abs().mean(-1, keepdim=True)
            v = v - v.mean(-1, keepdim=True)
            off = off + EPS * v.abs()
        if root is None:
            root = (v.square().mean(-1) + spec.eps).rsqrt()
        by = root[:, None]
        v = v * by
        # An error of the mean moves every number, and the deviation at most as far.
        e = off * by + v.abs() * (rounding + off.amax(-1, keepdim=True) * by + 3 * EPS)
        v, e = v * weight, e * weight.abs()
        if spec.norm == "layer":
            bias = tensors[f"{name}_bias"].double()
            e = e + 3 * EPS * (v.abs() + bias.abs())
            v = v + bias
    return _turned(spec, tensors, Numbers(v, e))


def _root_of_tokens(spec: Prepass, x: Tensor) -> Tensor | None:
    if spec.norm != "rms_token":
        return None
    total = x.new_zeros(x.shape[1]).double()
    for head in x:
        total += head.double().square().sum(-1)
    return (total / (x.shape[0] * x.shape[2]) + spec.eps).rsqrt()


def _turned(spec: Prepass, tensors: Mapping[str, Tensor], numbers: Numbers) -> Numbers:
    if spec.rope is None:
        return numbers
    v, e = numbers.value, numbers.error
    start, half = spec.grid.visual_start, spec.head_dim // 2
    pairs = slice(None, None, 2), slice(1, None, 2)
    if spec.rope == "half":
        pairs = slice(None, half), slice(half, None)
    # Text is turned by no angle.
    cos, sin = v.new_ones((len(v), half)), v.new_zeros((len(v), half))
    for full, name in ((cos, "cos"), (sin, "sin")):
        table = tensors[name].double()
        table = table if table.shape[-1] == half else table[:, pairs[0]]
        full[start : start + spec.grid.visual] = table
    out, bound = v.clone(), e.clone()
    (a, b), (c, f) = ((x[:, pairs[0]], x[:, pairs[1]]) for x in (v, e))
    c, f = c + 3 * EPS * a.abs(), f + 3 * EPS * b.abs()
    out[:, pairs[0]], out[:, pairs[1]] = a * cos - b * sin, a * sin + b * cos
    bound[:, pairs[0]] = cos.abs() * c + sin.abs() * f
    bound[:, pairs[1]] = sin.abs() * c + cos.abs() * f
    return Numbers(out, bound)


def smoothed(spec: Prepass, numbers: Numbers) -> tuple[Numbers, Numbers]:
    """Numbers less their mean over all tokens, and the mean."""
    v, e = numbers.value, numbers.error
    # Tiles in any order, tiles of tiles in any order, and those of a program one after another.
    chain = SPACE["rows"][-1] + SETTLED[0] + len(v) / (SPACE["rows"][0] * SETTLED[0]) + 4
    mean, size = v.mean(0), v.abs().mean(0)
    off = e.mean(0) + chain * EPS * size
    return (
        Numbers(v - mean, e + off + 2 * EPS * (v.abs() + mean.abs())),
        Numbers(mean, off + EPS * mean.abs()),
    )


def _near(found: Tensor, wanted: Numbers, what: str) -> Found:
    """Plain numbers: NaN where they should be, the others within their bounds."""
    finite = wanted.value.isfinite()
    if bool((found.isfinite() != finite).any()):
        return float("inf"), f"{what} is no number where it should be one, or the other way round"
    off = (found.double() - wanted.value)[finite].abs()
    share = off / wanted.error[finite].clamp(min=TINY)
    return (float(share.max()) if share.numel() else 0.0), f"{what} is off"


def _coded(
    spec: Prepass, numbers: Numbers, name: str, item: int, head: int, out: Mapping[str, Tensor]
) -> Iterator[Found]:
    layout = spec.layout.q if name == "q" else spec.layout.k
    yield _codes(layout, numbers, out[name][item, head], out[f"{name}_scale"][item, head], name)
    if spec.pool is not None:
        size = spec.pool["qk".index(name)]
        v, e = numbers.value, numbers.error
        parts = [
            Numbers(
                v[i : i + size].mean(0),
                e[i : i + size].mean(0) + (size + 4) * EPS * v[i : i + size].abs().mean(0),
            )
            for i in range(0, len(v), size)
        ]
        for block, wanted in enumerate(parts):
            found = out[f"{name}_pool"][item, head, block]
            yield _near(found, wanted, f"the mean of a block of {name}")


def groups_of_rows(layout: Layout, tokens: int) -> Tensor:
    """The group of each token."""
    import torch

    if isinstance(layout.group, Lanes):
        return torch.from_numpy(layout.group.rows(tokens))
    return torch.arange(tokens) // (layout.group[0] or max(tokens, 1))


def _codes(layout: Layout, numbers: Numbers, codes: Tensor, scale: Tensor, name: str) -> Found:
    """Integer codes and their scales ``[groups, 1]``."""
    limit, groups = float(CODES[layout.code]), len(scale)
    of = groups_of_rows(layout, len(codes)).to(codes.device)

    def largest(x: Tensor) -> Tensor:
        return x.new_zeros(groups).scatter_reduce(0, of, x.amax(-1), "amax")

    bad = largest((~numbers.value.isfinite()).double()) > 0
    v, e = (t.masked_fill(bad[of][:, None], 0.0) for t in (numbers.value, numbers.error))
    found = scale[:, 0].double()
    if bool((found.isnan() != bad).any()):
        return float("inf"), f"scales of {name} are NaN where they should not be, or are not"
    if bool(codes[bad[of]].any()):
        return float("inf"), f"codes of {name} beside a scale of NaN"
    found = found.masked_fill(bad, 0.0)
    unit, off = largest(v.abs()) / limit, largest(e) / limit
    room = off + 4 * EPS * unit
    loose = unit + room < LOOSE
    if bool((found[loose] > 2 * LOOSE).any()) or bool((found < 0).any()):
        return float("inf"), f"the scale of a group of {name} with next to nothing"
    share = ((found - unit).abs() / room.clamp(min=TINY)).masked_fill(loose, 0.0)
    worst = float(share.max()) if groups else 0.0
    by = found[of][:, None]
    used = by > LOOSE
    t = v / by.masked_fill(~used, 1.0)
    may = 0.5 + e / by.masked_fill(~used, 1.0) + 4 * EPS * t.abs()
    wrong = ((codes.double() - t).abs() / may).masked_fill(~used, 0.0)
    if bool((codes.abs() > limit).any()):
        return float("inf"), f"codes of {name} beyond {limit:.0f}"
    if bool(codes[(by == 0).expand(codes.shape)].any()):
        return float("inf"), f"codes of {name} without a scale"
    code = float(wrong.max()) if wrong.numel() else 0.0
    return (worst, f"a scale of {name} is off") if worst > code else (code, f"a code of {name}")


def _values(
    spec: Prepass, v: Tensor, item: int, head: int, out: Mapping[str, Tensor]
) -> Iterator[Found]:
    """v of a head in stored order against what was written."""
    import torch

    layout, found = spec.layout, out["v"][item, head]
    if layout.v is None:
        # Where it stays as it is, it is the input itself.
        same = found.view(torch.int16) == v.view(torch.int16) if carried(spec) else found == found
        yield (0.0 if bool((same | v.isnan()).all()) else float("inf")), "v is not what it was"
        return
    padded = found.shape[-1]
    wide = found.view(torch.int8).T
    if layout.v_stored == "lanes":
        back = torch.from_numpy(np.argsort(lane_order(padded))).to(v.device)
        wide = wide[back]
    tokens = len(v)
    if bool(wide[tokens:].any()):
        yield float("inf"), "v past the last token is not 0"
    _, scale = in_torch.quantize(layout.v, v)
    own = out["v_scale"][item, head]
    same = (own == scale) | (own.isnan() & scale.isnan())
    yield (0.0 if bool(same.all()) else float("inf")), "a scale of v is off"
    by = own.double()
    used = (by > LOOSE).expand(tokens, -1)
    held = wide[:tokens]
    if bool(held[~used & ~((by > 0) & (by <= LOOSE))].any()):
        yield float("inf"), "codes of v without a scale"
    t = torch.where(used, v.double() / torch.where(used, by, 1.0), 0.0)
    if layout.weights == "e4m3":
        codes = held.contiguous().view(torch.float8_e4m3fn).double()
        half = 2.0 ** (t.abs().clamp(min=2.0**-6).log2().floor() - 4)
    else:
        codes, half = held.double(), torch.full_like(t, 0.5)
    share = ((codes - t).abs() / (half + 4 * EPS * t.abs())).masked_fill(~used, 0.0)
    yield (float(share.nan_to_num(nan=float("inf")).max()) if share.numel() else 0.0), "a code of v"
    if layout.weights == "uint8":
        parts = found.T.reshape(padded // SUMMED, SUMMED, -1).sum(1, dtype=torch.int32)
        same = parts == out["v_sum"][item, head].int()
        yield (0.0 if bool(same.all()) else float("inf")), "sums of v's codes"
