"""Twin-Log Quantization of LRQ-DiT (arXiv 2508.03485), as published and as its public code has it.

Each sign of a row has a grid of its own, uniform in ``log2(|w| + eta)``.  The variants differ in
ranges and symbols, see `TwinLog`; the codebook of `shifted_log` is what this library recommends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.layouts.codes import F32, PARAMETERS, Floats, Patterns, TwinLog
from kdsl.layouts.format import Buffer, Field, Format, Level, Part
from kdsl.layouts.groups import Block

QUANTILES = (0.98, 0.99, 0.995, 0.999, 0.99999)
SHIFTS = tuple(float(s) for s in np.linspace(0.0, 0.5, 13))


def tlq(levels: int = 4, variant: str = "paper") -> Format:
    """Twin-log patterns along K, dense in rows of bytes; five float32 parameters a row."""
    fields = [Field(n, F32, Block(1, None), "given") for n in PARAMETERS]
    level = Level(
        Field("code", TwinLog(levels, variant)), parameters=tuple(Level(f) for f in fields)
    )
    buffers = [Buffer("codes", "uint8", (Part("code", "n k x -> n | k x"),), pad=True)]
    buffers += [Buffer(f.name, "float32", (Part(f.name, "n g x -> n | g x"),)) for f in fields]
    return Format(f"tlq{levels}-{variant}", level, tuple(buffers))


def fit_tlq(
    fmt: Format,
    x: npt.ArrayLike,
    *,
    shifts: Sequence[float] = SHIFTS,
    quantiles: Sequence[float] = QUANTILES,
    bottoms: Sequence[float] = (0.0,),
) -> dict[str, Patterns]:
    """Patterns of the shift and the two quantiles, shared by the tensor, with the least error.

    ``bottoms`` are quantiles at which the published variant starts a side's grid; 0 is its least
    magnitude.  InputError for values that are not finite or a format that is not `tlq`.
    """
    code = fmt.level.field.code
    if not isinstance(code, TwinLog):
        raise InputError(f"{fmt.name} is no twin-log format", hint="layouts.tlq(3)")
    values = np.asarray(x, np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError("twin-log quantization takes a finite matrix [rows, columns]")
    best, least = None, np.inf
    for eta in shifts:
        # The sides do not touch each other: the best of each is the best of both.
        sides = []
        for sign in (1, -1):
            tries = [
                _side(values, sign, eta, top, bottom, code)
                for top, bottom in itertools.product(quantiles, bottoms)
            ]
            sides.append(min(tries, key=lambda t: t[0]))
        error = sides[0][0] + sides[1][0]
        if error < least:
            least, best = error, (eta, sides)
    assert best is not None
    eta, ((_, up, zero_up, at_up), (_, down, zero_down, at_down)) = best
    neither = 1 if code.variant == "paper" else 0
    signs = np.where(values > 0, 1, np.where(values < 0, -1, neither))
    found = {"code": code.join(signs, np.where(signs > 0, at_up, at_down))}
    rows = np.full_like(up, eta)
    for name, held in zip(PARAMETERS, (up, zero_up, down, zero_down, rows), strict=True):
        found[name] = held.astype(np.float32).view(np.int32).astype(np.int64) & 0xFFFFFFFF
    return found


def _side(
    values: Floats, sign: int, eta: float, top: float, bottom: float, code: TwinLog
) -> tuple[float, Floats, Floats, Patterns]:
    """(squared error, delta, zero, positions) of one sign for one shift and quantile."""
    n = code.positions
    own = sign * values > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log2(np.abs(values) + np.float32(eta))
    if code.variant == "code":
        logs = np.where(own, log, 0.0)
        high = np.quantile(logs, top, axis=1, keepdims=True)
        low = logs.min(axis=1, keepdims=True)
        delta = ((high - low) / n).astype(np.float32)
        delta = np.where(delta > 0, delta, 1.0).astype(np.float32)
        zero = np.rint(low / delta).astype(np.float32)
        last = n - 1 if sign > 0 else n
    else:
        # Zeros count as the smallest positive magnitude, other signs not at all.
        logs = np.where(own & np.isfinite(log), log, np.nan)
        empty = np.asarray(np.isnan(logs)).all(axis=1, keepdims=True)
        logs = np.where(empty, 0.0, logs)
        high = np.nanquantile(logs, top, axis=1, keepdims=True)
        low = np.nanquantile(logs, bottom, axis=1, keepdims=True)
        delta = ((high - low) / (n - 1)).astype(np.float32)
        delta = np.where(delta > 0, delta, 1.0).astype(np.float32)
        zero = (low / delta).astype(np.float32)
        last = n - 1
    with np.errstate(invalid="ignore"):
        position = np.clip(np.rint(log / delta - zero), 0, last)
    position = np.where(np.isfinite(position), position, 0).astype(np.int64)
    got = sign * (np.exp2((position + zero) * delta) - eta)
    error = float(np.sum(np.where(own, got - values, 0.0) ** 2))
    return error, delta, zero, position
