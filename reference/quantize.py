"""The truth about `Quantize`: NumPy, in float64 up to the quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import layouts
from kdsl.errors import InputError, UnsupportedError
from kdsl.layouts.codes import F32, Float
from kdsl.layouts.format import Format, entry_index
from kdsl.layouts.groups import Shape
from kdsl.layouts.quantizer import extremes
from kdsl.layouts.transforms import Hadamard, Recipe, Rotate
from kdsl.specs import Quantize, as_array

Array = npt.NDArray[Any]
OVERFLOW = 65520.0
"""What rounds to infinity in float16, which rotations of float16 tensors take."""
LEAST = float(np.finfo(np.float32).tiny)


def quantize(
    spec: Quantize,
    x: Any,
    scale: Any = None,
    shift: Any = None,
    tables: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """The buffers of ``x [rows, columns]`` by name, or of ``[batch, rows, columns]``.

    ``scale`` and ``shift``, ``[columns]`` or ``[batch, columns]``, are what the norm is modulated
    with; ``tables`` the recipe's values.  bfloat16 travels as float32 values.  With a batch axis
    each buffer has one too.  InputError where shapes do not fit the spec.
    """
    values = transformed(spec, x, scale, shift, tables)
    if values.ndim == 2:
        return _coded(spec.format, values)
    items = [_coded(spec.format, item) for item in values]
    return {
        name: np.stack([item[name] for item in items])
        if items
        else np.zeros((0, *shape), np.dtype(word))
        for name, (shape, word) in spec.buffers().items()
    }


def transformed(
    spec: Quantize,
    x: Any,
    scale: Any = None,
    shift: Any = None,
    tables: Mapping[str, Any] | None = None,
) -> npt.NDArray[np.float64]:
    """What is quantized: float64, in the shape of ``x``."""
    values = as_array(x, np.float64)
    if values.ndim not in (2, 3) or values.shape[-2:] != (spec.rows, spec.columns):
        raise InputError(
            f"x has shape {values.shape}",
            where="[rows, columns], or with a batch axis before",
            hint=f"[{spec.rows}, {spec.columns}]",
        )
    recipe = spec.recipe.recipe(tables or {}, spec.columns)
    with np.errstate(all="ignore"):  # NaN and infinities travel
        values = _before(spec, values, scale, shift)
        for step in recipe.steps:
            if spec.dtype == "float16" and isinstance(step, (Hadamard, Rotate)):
                values = np.where(np.abs(values) >= OVERFLOW, np.copysign(np.inf, values), values)
            values = Recipe((step,)).forward(values)
    return values


def _before(spec: Quantize, x: Array, scale: Any, shift: Any) -> Array:
    if spec.norm is not None:
        x = x - x.mean(-1, keepdims=True) if spec.norm == "layer" else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.eps)
    if spec.modulate:
        by, more = (_of_items(spec, x, n, v) for n, v in (("scale", scale), ("shift", shift)))
        x = x * (1 + by) + more
    if spec.activation is not None:
        z = x
        if spec.activation == "gelu_tanh":
            z = 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        x = x / (1 + np.exp(-z))
    return x


def _of_items(spec: Quantize, x: Array, name: str, given: Any) -> Array:
    if given is None:
        raise InputError(f"no {name}", where="modulate=True", hint="op(x, scale, shift)")
    held = as_array(given, np.float64)
    allowed = [(spec.columns,)] + ([(x.shape[0], spec.columns)] if x.ndim == 3 else [])
    if held.shape not in allowed:
        raise InputError(f"{name} has shape {held.shape}", hint=" or ".join(map(str, allowed)))
    return held[:, None, :] if held.ndim == 2 else held


def _coded(fmt: Format, values: npt.NDArray[np.float64]) -> dict[str, Array]:
    """A matrix in a format; groups that are not finite come back as NaN."""
    shape = (values.shape[0], values.shape[1])
    level, scale = fmt.level, fmt.level.scale
    assert scale is not None, "the spec has checked this"
    with np.errstate(over="ignore"):
        held = values.astype(np.float32)
    at = entry_index(scale.field.groups, shape, {})
    over = partial(extremes, groups=scale.field.groups, shape=shape, at=at, start=0.0)
    groups = scale.field.groups.shape(shape)
    size = np.where(np.isfinite(held), np.abs(held), np.inf)
    largest = over(np.maximum, size)
    unit = largest / level.field.code.limit
    if scale.field.fit == "range":
        low, high = level.field.code.ends
        clean = np.where(np.isfinite(held), held, 0.0)
        top, bottom = over(np.maximum, clean), over(np.minimum, clean)
        unit = np.where(np.isfinite(unit), (top - bottom) / (high - low), np.inf)
    lost = unit >= _beyond(scale.field.code)
    small = (unit < LEAST) if scale.field.code == F32 else np.zeros(groups, np.bool_)
    fields = layouts.quantize(fmt, np.where((lost | small)[at], 0.0, held))
    if lost.any():
        code = scale.field.code
        if scale.scale is not None or not isinstance(code, Float) or code.nan is None:
            raise UnsupportedError(
                f"{int(lost.sum())} groups hold NaN or infinities",
                where=f"scales of {fmt.name} have no NaN",
                hint="finite numbers",
            )
        fields[scale.field.name] = np.where(lost, code.nan, fields[scale.field.name])
        fields |= _zeros(fmt, fields, lost, at, shape)
    return fmt.pack(fields, shape)


def _zeros(
    fmt: Format, fields: Mapping[str, Array], lost: Array, at: Any, shape: Shape
) -> dict[str, Array]:
    """Codes and zero points of lost groups: patterns of 0."""
    out = {fmt.level.field.name: np.where(lost[at], 0, fields[fmt.level.field.name])}
    if fmt.level.zero is not None:
        zero = fmt.level.zero.field
        out[zero.name] = np.where(lost, zero.code.encode(0.0), fields[zero.name])
    return {
        name: np.broadcast_to(v, fmt.fields[name].groups.shape(shape)) for name, v in out.items()
    }


def _beyond(code: Any) -> float:
    """The least scale that a code of scales rounds to no number; infinity where none is so."""
    if not isinstance(code, Float) or code.special != "ieee":
        return float("inf")
    top = int(np.log2(code.limit))
    return code.limit + 2.0 ** (top - code.mantissa - 1)
