"""Weights to codes in torch, where they lie: for models that NumPy would take hours for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdsl import layouts
from kdsl.errors import InputError
from kdsl.layouts import Format
from kdsl.layouts.codes import F16, F32, Int, Lut, Patterns
from kdsl.layouts.groups import Block

AT_ONCE = 1 << 22
"""Numbers that are worked on at a time: some 200 MB in float64."""


def fit(
    fmt: Format,
    w: Tensor,
    *,
    clips: Sequence[float] = (1.0,),
    importance: npt.ArrayLike | None = None,
) -> dict[str, Patterns]:
    """Patterns of ``w [rows, columns]``, as `kdsl.layouts.quantize` finds them.

    In torch on the device of ``w`` for integers and codebooks with a scale a row or a group, by
    NumPy for any other format.  ``importance [columns]`` weighs squared errors of a clip search.
    """
    weights = None if importance is None else np.asarray(importance, np.float64)
    if weights is not None and weights.shape != (w.shape[1],):
        raise InputError(f"importance of shape {weights.shape}", hint=f"({w.shape[1]},)")
    if not in_torch(fmt):
        return layouts.quantize(fmt, w.float().cpu().numpy(), clips=clips, weights=weights)
    fmt.check((w.shape[0], w.shape[1]))
    if not bool(torch.isfinite(w).all()):
        raise InputError("values that are not finite", where=fmt.name)
    if not clips or any(not 0 < c <= 1 for c in clips):
        raise InputError(f"clips={tuple(clips)}", hint="factors above 0, at most 1")
    if weights is not None and (not np.isfinite(weights).all() or (weights < 0).any()):
        raise InputError("weights of the error must be finite and not negative")
    step = max(AT_ONCE // w.shape[1], 1)
    scale = fmt.level.scale
    assert scale is not None
    names = (fmt.level.field.name, scale.field.name)
    parts = [_fit(fmt, w[i : i + step], clips, weights) for i in range(0, len(w), step)]
    return {n: np.concatenate([p[j] for p in parts]) for j, n in enumerate(names)}


def in_torch(fmt: Format) -> bool:
    """Whether a format is fitted in torch."""
    level, scale = fmt.level, fmt.level.scale
    if scale is None or level.zero or level.offset or level.parameters or fmt.extra:
        return False
    if scale.scale or scale.zero or scale.offset or scale.field.fit != "largest":
        return False
    groups, code = scale.field.groups, level.field.code
    plain = isinstance(groups, Block) and groups.rows == 1 and not groups.ragged
    whole = isinstance(code, Lut) or (isinstance(code, Int) and not code.negated)
    return plain and whole and scale.field.code in (F16, F32)


def _fit(
    fmt: Format, w: Tensor, clips: Sequence[float], weights: npt.NDArray[np.float64] | None
) -> tuple[Patterns, Patterns]:
    """(codes, scales) of some rows."""
    level, scale = fmt.level, fmt.level.scale
    assert scale is not None
    by = scale.field.code
    groups = scale.field.groups.shape((w.shape[0], w.shape[1]))
    work = w.float().double().view(len(w), groups[1], -1)
    unit = work.abs().amax(-1).cpu().numpy() / level.field.code.limit
    weigh = None
    if weights is not None:
        weigh = torch.from_numpy(weights).to(w.device).view(groups[1], -1)

    def at(factor: npt.NDArray[np.float64] | float) -> tuple[Tensor, Tensor, Patterns]:
        found = by.encode(unit * factor)
        held = torch.from_numpy(by.decode(found)).to(w.device)[..., None]
        safe = torch.where(held == 0, 1.0, held).double()
        entries = torch.where(held == 0, 0.0, work / safe)
        return _codes(level.field.code, entries), held, found

    best: npt.NDArray[np.float64] | float = float(clips[0])
    if len(clips) > 1:
        least, best = np.full(groups, np.inf), np.ones(groups)
        table = torch.from_numpy(level.field.code.decode(np.arange(1 << level.field.code.bits)))
        table = table.to(w.device)
        for clip in clips:
            codes, held, _ = at(clip)
            error = ((table[codes] * held).double() - work).square()
            error = error if weigh is None else error * weigh
            total = error.sum(-1).cpu().numpy()
            better = total < least
            least[better], best[better] = total[better], clip
    codes, _, found = at(best)
    return codes.flatten(1).cpu().numpy(), found


def _codes(code: object, entries: Tensor) -> Tensor:
    """Nearest patterns, as ``code.encode(..., clip=True)``."""
    if isinstance(code, Int):
        rounded = entries.round().clamp(code.low, code.high).long()
        return (rounded - code.bias) & ((1 << code.bits) - 1)
    assert isinstance(code, Lut)
    values = np.asarray(code.values, np.float64)
    order = np.argsort(values, kind="stable")
    cuts = torch.from_numpy((values[order][1:] + values[order][:-1]) / 2).to(entries.device)
    places = torch.bucketize(entries, cuts)
    return torch.from_numpy(order).to(entries.device)[places]
