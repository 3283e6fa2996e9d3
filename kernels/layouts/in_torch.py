"""Layouts in torch, bit for bit what `kdsl.layouts` does in NumPy; on any device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsl.layouts import CODES, AttentionLayout, Layout
from kdsl.layouts.attention import SUMMED, lane_order, padded
from kdsl.layouts.groups import Lanes

if TYPE_CHECKING:
    from torch import Tensor


def quantize(layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scales) of ``[..., tokens, channels]`` as `Layout.quantize` defines them.

    e4m3 codes come as float8_e4m3fn.
    """
    import torch

    groups = _grouped(layout, x.float())
    # Tokens of a group, groups of a span, spans: which axes a scale covers.
    peak = groups.abs().amax((-5, -3, -1), keepdim=True)
    # A tensor on the device: a Python number would become a product with its reciprocal.
    scale = peak / torch.tensor(float(CODES[layout.code]), device=x.device)
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny).masked_fill(peak == 0, 0.0)
    scale = scale.masked_fill(~scale.isfinite(), math.nan)
    codes = groups / scale
    codes = codes.masked_fill(~codes.isfinite(), 0.0)
    if layout.code == "e4m3":
        limit = float(CODES["e4m3"])
        codes = codes.clamp(-limit, limit).to(torch.float8_e4m3fn)
    else:
        codes = codes.round().to(torch.int8)
    tokens, channels = x.shape[-2:]
    codes = codes.reshape(*x.shape[:-2], -1, channels)[..., :tokens, :]
    rows, columns = layout.scale_shape(tokens, channels)
    return codes.contiguous(), scale.reshape(*x.shape[:-2], -1, columns)[..., :rows, :].contiguous()


def _grouped(layout: Layout, x: Tensor) -> Tensor:
    """``[..., spans, repeats, lanes, width, column groups, channels]``; a scale is one of a span,
    a lane and a column group.  Zeros stand past the last token."""
    import torch

    tokens, channels = x.shape[-2:]
    group = layout.group
    if isinstance(group, Lanes):
        span, period, width, columns = group.span, group.period, group.width, channels
    else:
        span = group[0] or max(tokens, 1)
        period = width = span
        columns = group[1] or channels
    # All tokens are one group, also where there are none.
    rows = 1 if not isinstance(group, Lanes) and group[0] is None else 0
    beyond = -tokens % span if tokens else rows * span
    x = torch.nn.functional.pad(x, (0, 0, 0, beyond))
    shape = (-1, span // period, period // width, width, channels // columns, columns)
    return x.reshape(*x.shape[:-2], *shape)


def spread(layout: Layout, scale: Tensor, tokens: int) -> Tensor:
    """Scales ``[..., groups, groups]`` of q or k token by token, ``[..., tokens, 1]``."""
    import torch

    if isinstance(layout.group, Lanes):
        rows = torch.from_numpy(layout.group.rows(tokens)).to(scale.device)
    else:
        rows = torch.arange(tokens, device=scale.device) // (layout.group[0] or max(tokens, 1))
    return scale[..., rows, :]


def transposed(layout: AttentionLayout, codes: Tensor) -> Tensor:
    """Codes of v ``[..., tokens, channels]`` as they are stored, ``[..., channels, tokens]``."""
    import torch

    tokens = codes.shape[-2]
    wide = codes.new_zeros((*codes.shape[:-2], padded(tokens), codes.shape[-1]))
    # As bytes: not every operation knows float8.
    wide.view(torch.int8)[..., :tokens, :] = codes.view(torch.int8)
    if layout.v_stored == "lanes":
        order = torch.from_numpy(lane_order(wide.shape[-2])).to(codes.device)
        wide = wide.view(torch.int8)[..., order, :].view(codes.dtype)
    return wide.view(torch.int8).transpose(-1, -2).contiguous().view(codes.dtype)


def operands(layout: AttentionLayout, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The operands of a call as `AttentionLayout.quantize` defines them."""
    import torch

    made = [*quantize(layout.q, q), *quantize(layout.k, k)]
    if layout.v is None:
        return (*made, v)
    codes, scale = quantize(layout.v, v)
    stored = transposed(layout, codes)
    made += [stored, scale]
    if layout.weights == "uint8":
        groups = stored.reshape(*stored.shape[:-1], stored.shape[-1] // SUMMED, SUMMED)
        parts = groups.sum(-1, dtype=torch.int32)
        made.append(parts.transpose(-1, -2).to(torch.int16).contiguous())
    return tuple(made)
