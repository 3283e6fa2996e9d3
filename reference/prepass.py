"""The truth about `Prepass`: NumPy, in float64 up to the quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.specs import Prepass, as_array

Float = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def prepass(
    spec: Prepass, tensors: Mapping[str, Any], tables: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The outputs by name, of the tensors that ``spec.inputs`` names.

    bfloat16 travels as float32 values, e4m3 codes as their bits; v that has no code comes in its
    stored order, as it is.  InputError where shapes do not fit.
    """
    given = checked(spec, tensors)
    found = stored(spec, tensors, tables)
    v = as_array(tensors["v"])
    order = _by_key_head(spec, tables)
    v = np.take_along_axis(v, order[None, :, :, None], axis=-2) if spec.moves else v
    with np.errstate(over="ignore", invalid="ignore"):
        q, k = (found[name].astype(np.float32) for name in "qk")
    made = spec.layout.quantize(q, k, v)
    out: dict[str, Array] = dict(zip(spec.layout.operands, made, strict=True))
    if spec.smooth:
        out["k_mean"] = found["k_mean"].astype(np.float32)
    if spec.pool is not None:
        for name, size in zip("qk", spec.pool, strict=True):
            out[f"{name}_pool"] = pooled(found[name], size).astype(np.float32)
    shapes = spec.shapes(given["q"].shape[0])
    assert all(out[name].shape == shapes[name][0] for name in spec.outputs)
    return {name: out[name] for name in spec.outputs}


def stored(
    spec: Prepass, tensors: Mapping[str, Any], tables: Mapping[str, Array] | None = None
) -> dict[str, Float]:
    """What is quantized: ``q`` and ``k`` in stored order, float64; with ``smooth`` ``k_mean``."""
    given = checked(spec, tensors)
    with np.errstate(all="ignore"):  # NaN and infinities travel
        q, k = (_turned(spec, given, _normalized(spec, given, name)) for name in "qk")
        out = {}
        if spec.smooth:
            out["k_mean"] = k.mean(-2) if spec.grid.tokens else np.zeros_like(k[..., 0, :])
            k = k - out["k_mean"][..., None, :]
    if spec.moves:
        queries = np.atleast_2d(spec.stored_order.index(tables))
        queries = np.broadcast_to(queries, q.shape[1:3])
        q = np.take_along_axis(q, queries[None, :, :, None], axis=-2)
        k = np.take_along_axis(k, _by_key_head(spec, tables)[None, :, :, None], axis=-2)
    return {"q": q, "k": k, **out}


def pooled(x: Float, size: int) -> Float:
    """Means of ``size`` tokens each of ``[batch, heads, tokens, channels]``, the last of fewer."""
    tokens = x.shape[-2]
    if not tokens:
        return x
    first = np.arange(0, tokens, size)
    with np.errstate(invalid="ignore"):
        total: Float = np.add.reduceat(x, first, axis=-2)
    counts = np.minimum(first + size, tokens) - first
    return total / counts[:, None]


def checked(spec: Prepass, tensors: Mapping[str, Any]) -> dict[str, Float]:
    """The tensors as float64 arrays; InputError names the first whose shape does not fit."""
    out: dict[str, Float] = {}
    for name, shape in spec.inputs.items():
        x = as_array(tensors[name], np.float64)
        wanted = (x.shape[0] if x.ndim else 0, *shape) if name in "qkv" else shape
        wide = (*shape[:-1], spec.head_dim) if name in ("cos", "sin") else wanted
        if x.shape not in (wanted, wide) or (name in "kv" and len(x) != len(out["q"])):
            raise InputError(f"{name} has shape {x.shape}", hint=str(wanted))
        out[name] = x
    return out


def _normalized(spec: Prepass, given: Mapping[str, Float], name: str) -> Float:
    x = given[name]
    if spec.norm is None:
        return x
    weight = given[f"{name}_weight"].reshape(-1, 1, spec.head_dim)
    if spec.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    axes = (-3, -1) if spec.norm == "rms_token" else (-1,)
    x = x / np.sqrt((x**2).mean(axes, keepdims=True) + spec.eps) * weight
    out: Float = x + given[f"{name}_bias"] if spec.norm == "layer" else x
    return out


def _turned(spec: Prepass, given: Mapping[str, Float], x: Float) -> Float:
    if spec.rope is None:
        return x
    half, start = spec.head_dim // 2, spec.grid.visual_start
    first = np.arange(half) * 2 if spec.rope == "interleaved" else np.arange(half)
    second = first + (1 if spec.rope == "interleaved" else half)
    # Text is turned by no angle: an infinity there still spoils the other channel of its pair.
    cos, sin = np.ones((spec.grid.tokens, half)), np.zeros((spec.grid.tokens, half))
    for full, name in ((cos, "cos"), (sin, "sin")):
        table = given[name]
        # A wide table has each number twice, at the channels that it belongs to.
        table = table if table.shape[-1] == half else table[:, first]
        full[start : start + spec.grid.visual] = table
    a, b = x[..., first], x[..., second]
    out = np.empty_like(x)
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


def _by_key_head(spec: Prepass, tables: Mapping[str, Array] | None) -> npt.NDArray[np.int64]:
    """Original tokens by stored position, ``[kv_heads, tokens]``."""
    index = np.atleast_2d(spec.stored_order.index(tables))
    index = index[:: spec.group] if len(index) > 1 else index
    return np.broadcast_to(index, (spec.group_heads, spec.grid.tokens))
