"""Are the tensors of a call what the spec says?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdsl.errors import InputError
from kdsl.specs import DTYPES, Attention, Matmul, Permute, Prepass, Quantize

AXES = "[batch, heads, tokens, head_dim]"


def check_tensors(
    spec: Attention, tensors: tuple[Any, ...], *, any_dtype: bool = False
) -> tuple[Any, Any, Any]:
    """q, k, v if their shapes, dtypes and devices fit; InputError names the first that does not."""
    if len(tensors) != 3:
        raise InputError(f"attention takes q, k, v, got {len(tensors)} tensors", hint="op(q, k, v)")
    q, k, v = tensors
    for name, x in zip("qkv", tensors, strict=True):
        _check_kind(name, x)
    batch = q.shape[0] if len(q.shape) else 0
    queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
    wanted = {
        "q": (batch, spec.heads, queries, spec.head_dim),
        "k": (batch, spec.group_heads, keys, spec.head_dim),
        "v": (batch, spec.group_heads, keys, spec.head_dim),
    }
    for name, x in zip("qkv", tensors, strict=True):
        if _kind(x) != _kind(q):
            raise InputError(
                f"{name} is a {_kind(x)}, q a {_kind(q)}",
                hint="three torch tensors, or three NumPy arrays",
            )
        _check_form(name, x, wanted[name], None if any_dtype else spec.dtype, "Attention")
        if getattr(x, "device", None) != getattr(q, "device", None):
            raise InputError(
                f"{name} is on {x.device}, q on {q.device}", hint=f"{name}.to(q.device)"
            )
    return q, k, v


def check_operands(spec: Attention, tensors: tuple[Any, ...]) -> dict[str, Any]:
    """Operands of quantized attention by name; InputError names the first that does not fit.

    Scales and sums are contiguous, and so are the tokens of transposed v.  NumPy has no float8: its
    codes come as their bits, uint8.
    """
    layout = spec.layout
    assert layout is not None
    names = ", ".join(layout.operands)
    if len(tensors) != len(layout.operands):
        raise InputError(
            f"quantized attention takes q, k, v or {names}, got {len(tensors)} tensors",
            hint=f"op(q, k, v), or op({names}), as op.quantize(q, k, v) makes them",
        )
    given = dict(zip(layout.operands, tensors, strict=True))
    for name, x in given.items():
        _check_kind(name, x)
    batch, d = (given["q"].shape[0] if len(given["q"].shape) else 0), spec.head_dim
    q = (batch, spec.heads, spec.query_grid.tokens, d)
    k = (batch, spec.group_heads, spec.key_grid.tokens, d)
    for name, (shape, dtype) in layout.shapes(q, k, spec.dtype).items():
        x = given[name]
        if tuple(x.shape) != shape:
            raise InputError(f"{name} has shape {tuple(x.shape)}", hint=str(shape))
        if dtype == "float8_e4m3fn" and _kind(x) == "NumPy array":
            dtype = "uint8"
        if not _fits(x, dtype):
            raise InputError(f"{name} is {str(x.dtype).removeprefix('torch.')}", hint=dtype)
        if _kind(x) != _kind(given["q"]):
            raise InputError(f"{name} is a {_kind(x)}, q a {_kind(given['q'])}", hint="one kind")
        if getattr(x, "device", None) != getattr(given["q"], "device", None):
            raise InputError(f"{name} is on {x.device}, q on {given['q'].device}")
        turned = name == "v" and layout.v is not None
        if _kind(x) == "torch tensor" and (
            not x.is_contiguous() if "_" in name else turned and x.stride(-1) != 1
        ):
            raise InputError(f"{name} is not contiguous", hint=f"{name}.contiguous()")
    return given


def check_permuted(spec: Permute, tensors: tuple[Any, ...], *, any_dtype: bool = False) -> Any:
    """x if its shape and dtype fit; InputError says what does not."""
    if len(tensors) != 1:
        raise InputError(f"permute takes x, got {len(tensors)} tensors", hint="op(x)")
    (x,) = tensors
    _check_kind("x", x)
    batch = x.shape[0] if len(x.shape) else 0
    wanted = (batch, spec.heads, spec.grid.tokens, spec.head_dim)
    _check_form("x", x, wanted, None if any_dtype else spec.dtype, "Permute")
    return x


def check_quantized(
    spec: Quantize, tensors: tuple[Any, ...], *, any_dtype: bool = False
) -> tuple[Any, Any, Any]:
    """x, and scale and shift or None twice, if they fit; InputError names what does not."""
    names = ("x", "scale", "shift") if spec.modulate else ("x",)
    if len(tensors) != len(names):
        raise InputError(
            f"quantize takes {', '.join(names)}, got {len(tensors)} tensors",
            hint=f"op({', '.join(names)})",
        )
    dtype = None if any_dtype else spec.dtype
    for name, tensor in zip(names, tensors, strict=True):
        _check_kind(name, tensor)
    x = tensors[0]
    lead = tuple(x.shape[:1]) if len(x.shape) == 3 else ()
    _check_form("x", x, (*lead, spec.rows, spec.columns), dtype, "Quantize", "[rows, columns]")
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        items = lead if len(tensor.shape) == 2 else ()
        wanted = (*items, spec.columns)
        _check_form(name, tensor, wanted, dtype, "Quantize", "[columns] or [batch, columns]")
        if _kind(tensor) != _kind(x) or getattr(tensor, "device", 0) != getattr(x, "device", 0):
            raise InputError(f"{name} and x are not of one kind and on one device")
    scale, shift = tensors[1:] if spec.modulate else (None, None)
    return x, scale, shift


def check_matmul(
    spec: Matmul,
    operands: Mapping[str, Any],
    *,
    any_dtype: bool = False,
    wanted: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
) -> None:
    """InputError names the first operand that does not fit, by shape, dtype or device.

    Codes of e4m3 are float8 tensors or bytes.  ``wanted`` has shape and dtype of
    those to look at, all of the spec unless given.
    """
    first = ""
    for name, (shape, dtype) in (spec.operands if wanted is None else wanted).items():
        x = operands[name]
        _check_kind(name, x)
        plain = dtype in ("bfloat16", "float16", "float32") and "_" not in name
        held = None if any_dtype and plain else dtype
        if dtype == "uint8" and str(x.dtype) == "torch.float8_e4m3fn":
            held = None
        _check_form(name, x, shape, held, "Matmul", f"{name} of Matmul")
        first = first or name
        other = operands[first]
        if _kind(x) == _kind(other) and getattr(x, "device", 0) != getattr(other, "device", 0):
            raise InputError(f"{name} is on {x.device}, {first} on {other.device}")


def check_prepass(
    spec: Prepass, tensors: tuple[Any, ...], *, any_dtype: bool = False
) -> dict[str, Any]:
    """The tensors by name if they fit; InputError names the first that does not."""
    names = ", ".join(spec.inputs)
    if len(tensors) != len(spec.inputs):
        raise InputError(
            f"this pre-pass takes {names}, got {len(tensors)} tensors", hint=f"op({names})"
        )
    named = dict(zip(spec.inputs, tensors, strict=True))
    for name, x in named.items():
        _check_kind(name, x)
        shape = spec.inputs[name]
        if name in ("q", "k", "v"):
            q = named["q"]
            wanted = (q.shape[0] if len(q.shape) else 0, *shape)
            _check_form(name, x, wanted, None if any_dtype else spec.dtype, "Prepass")
        else:
            _check_beside(spec, name, x, shape)
        if _kind(x) != _kind(named["q"]):
            raise InputError(f"{name} is a {_kind(x)}, q a {_kind(named['q'])}", hint="one kind")
        if getattr(x, "device", None) != getattr(named["q"], "device", None):
            raise InputError(f"{name} is on {x.device}, q on {named['q'].device}")
    return named


def _check_beside(spec: Prepass, name: str, x: Any, shape: tuple[int, ...]) -> None:
    """Weights, and tables of cosines and sines: of visual tokens, narrow or wide."""
    angles = name in ("cos", "sin")
    wide = (*shape[:-1], spec.head_dim) if angles else shape
    if tuple(x.shape) not in (shape, wide):
        hint = f"{shape} or {wide}" if angles else str(shape)
        grid, found = spec.grid, tuple(x.shape)
        if angles and grid.text and found[:1] == (grid.tokens,):
            at = f"{grid.text}:" if grid.visual_start else f":{grid.visual}"
            hint = f"{name}[{at}]: rows of the visual tokens alone, text is not turned"
        raise InputError(f"{name} has shape {found}", where=repr(grid), hint=hint)
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in (*DTYPES, *(("float64",) if isinstance(x, np.ndarray) else ())):
        raise InputError(f"{name} is {dtype}", hint=" or ".join(DTYPES))


def check_angles(spec: Prepass, named: Mapping[str, Any]) -> None:
    """InputError where a wide table of cosines or sines does not hold each number twice; waits for
    the device."""
    half = spec.head_dim // 2
    for name in ("cos", "sin"):
        if name not in named or named[name].shape[-1] == half:
            continue
        x = named[name]
        first, second = x[:, ::2], x[:, 1::2]
        if spec.rope == "half":
            first, second = x[:, :half], x[:, half:]
        if bool((first != second).any()):
            raise InputError(
                f"{name} differs between channels that are turned together",
                where=f"rope={spec.rope!r}",
                hint=f"a table with {half} columns, or the other rope",
            )


def _check_kind(name: str, x: Any) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise InputError(f"{name} is a {type(x).__name__}", hint="a torch tensor or a NumPy array")
    if getattr(getattr(x, "device", None), "type", "") == "meta":
        raise InputError(
            f"{name} is on the meta device and has no values", hint="a tensor on a CPU or GPU"
        )


def _check_form(
    name: str,
    x: Any,
    wanted: tuple[int, ...],
    dtype: str | None,
    operation: str,
    axes: str = AXES,
) -> None:
    found = tuple(x.shape)
    if found != wanted:
        swapped = len(found) == len(wanted) == 4 and found == (
            wanted[0],
            wanted[2],
            wanted[1],
            wanted[3],
        )
        hint = f"{name}.transpose(1, 2): {wanted}" if swapped else str(wanted)
        if swapped and _kind(x) != "torch tensor":
            hint = f"{name}.swapaxes(1, 2): {wanted}"
        raise InputError(f"{name} has shape {found}", where=axes, hint=hint)
    if dtype is not None and not _fits(x, dtype):
        said = str(x.dtype).removeprefix("torch.")
        raise InputError(
            f"{name} is {said}, the spec says {dtype}", hint=_cast(name, x, dtype, operation)
        )


def _kind(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return "NumPy array"
    module = type(x).__module__.partition(".")[0]
    return "torch tensor" if hasattr(x, "detach") else f"{module} array"


def _fits(x: Any, dtype: str) -> bool:
    if isinstance(x, np.ndarray):
        # NumPy has no bfloat16: its values travel as float32.
        return str(x.dtype) == ("float32" if dtype == "bfloat16" else dtype)
    return str(x.dtype).removeprefix("torch.") == dtype


def _cast(name: str, x: Any, dtype: str, operation: str) -> str:
    if _kind(x) != "torch tensor":
        return f"{name}.astype({'float32' if dtype == 'bfloat16' else dtype!r})"
    said = str(x.dtype).removeprefix("torch.")
    other = (
        f", or {operation}(dtype={said!r})" if said in ("bfloat16", "float16", "float32") else ""
    )
    return f"{name}.to(torch.{dtype}){other}"


def check_finite(tensors: Mapping[str, Any]) -> None:
    """InputError if a tensor holds NaN or infinity; waits for the device."""
    for name, x in tensors.items():
        finite = np.isfinite(x) if isinstance(x, np.ndarray) else x.isfinite()
        if bool(finite.all()):
            continue
        # The first one alone: there may be as many as there are numbers.
        bad: Any = ~finite.reshape(-1)
        flat = int(bad.argmax() if isinstance(x, np.ndarray) else bad.byte().argmax())
        first = [int(i) for i in np.unravel_index(flat, tuple(x.shape))]
        raise InputError(f"{name} holds NaN or infinity, first at {first}")
