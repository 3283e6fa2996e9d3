"""The truth about `Matmul`: NumPy, in float64 from the numbers that the operands stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.layouts.codes import TwinLog
from kdsl.layouts.format import Format, Level, entry_index
from kdsl.layouts.groups import Shape
from kdsl.specs import Matmul, as_array

Array = npt.NDArray[np.float64]


def matmul(spec: Matmul, operands: Mapping[str, Any], weight: Array | None = None) -> Array:
    """``[rows, columns]`` in float64; operands by the names of ``spec.operands``.

    bfloat16 travels as float32 values, e4m3 as bytes.  ``weight`` is what the weight's buffers
    stand for, where that is known already.  InputError for operands that are missing or not of
    their format.
    """
    y = product(spec, operands, weight)
    with np.errstate(all="ignore"):  # NaN and infinities travel
        if spec.bias:
            y = y + _held(spec, operands, "bias")
        y = activated(spec.activation, y)
        return y + _held(spec, operands, "residual") if spec.residual else y


def product(spec: Matmul, operands: Mapping[str, Any], weight: Array | None = None) -> Array:
    """``x @ weight.T`` of what both stand for."""
    if spec.x is None:
        x = _held(spec, operands, "x")
    else:
        x = values(spec.x, buffers_of(spec.x, "x", operands), spec.x_shape)
    if weight is None:
        held = buffers_of(spec.weight, "weight", operands)
        weight = values(spec.weight, held, spec.weight_shape)
    with np.errstate(all="ignore"):
        out: Array = x @ weight.T
    return out


def activated(activation: str | None, y: Array) -> Array:
    """The activation of numbers."""
    if activation is None:
        return y
    if activation == "gelu_erf":
        found = [math.erf(v) for v in (y / math.sqrt(2)).reshape(-1).tolist()]
        return y * (0.5 * (1 + np.array(found).reshape(y.shape)))
    z = y
    if activation == "gelu_tanh":
        z = 2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    out: Array = y / (1 + np.exp(-z))
    return out


def buffers_of(fmt: Format, side: str, operands: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The buffers of one side by their own names."""
    out = {}
    for buffer in fmt.buffers:
        name = f"{side}_{buffer.name}"
        if name not in operands:
            raise InputError(f"no {name}", where=fmt.name, hint="every operand of the spec")
        out[buffer.name] = as_bytes(operands[name])
    return out


def as_bytes(x: Any) -> npt.NDArray[Any]:
    """An array of a buffer; e4m3 tensors as the bytes they are."""
    if hasattr(x, "detach") and "float8" in str(x.dtype):
        import torch

        x = x.view(torch.uint8)
    return as_array(x)


def values(fmt: Format, buffers: Mapping[str, npt.NDArray[Any]], shape: Shape) -> Array:
    """What buffers stand for, with products of codes and scales in float64.

    `Format.decode` rounds them to float32, for that is what a tensor is dequantized to; a product
    of codes meets its scales afterwards, and never sees that rounding.
    """
    fields = fmt.unpack(buffers, shape)
    tables = fmt.tables(fields, shape)

    def of(level: Level) -> Array:
        field = level.field
        if isinstance(field.code, TwinLog):
            return fmt.decode(fields, shape).astype(np.float64)
        at = entry_index(field.groups, shape, tables)
        value: Array = field.code.decode(fields[field.name]).astype(np.float64)[at]
        with np.errstate(all="ignore"):
            if level.zero is not None:
                value = value - of(level.zero)
            if level.scale is not None:
                value = value * of(level.scale)
            if level.offset is not None:
                value = value + of(level.offset)
        return value

    return np.array(np.broadcast_to(of(fmt.level), shape))


def _held(spec: Matmul, operands: Mapping[str, Any], name: str) -> Array:
    if name not in operands:
        raise InputError(f"no {name}", where=repr(spec), hint="every operand of the spec")
    wanted, got = spec.operands[name][0], as_array(operands[name], np.float64)
    if got.shape != wanted:
        raise InputError(f"{name} has shape {got.shape}", hint=str(wanted))
    return got
