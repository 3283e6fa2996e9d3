"""Are the tensors of a call what the spec says?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdsl.errors import InputError
from kdsl.specs import Attention


def check_tensors(
    spec: Attention, tensors: tuple[Any, ...], *, any_dtype: bool = False
) -> tuple[Any, Any, Any]:
    """q, k, v if their shapes, dtypes and devices fit; InputError names the first that does not."""
    if len(tensors) != 3:
        raise InputError(f"attention takes q, k, v, got {len(tensors)} tensors")
    q, k, v = tensors
    for name, x in zip("qkv", tensors, strict=True):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise InputError(f"{name} is a {type(x).__name__}", hint="a torch tensor or an array")
    batch = q.shape[0] if len(q.shape) else 0
    queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
    wanted = {
        "q": (batch, spec.heads, queries, spec.head_dim),
        "k": (batch, spec.group_heads, keys, spec.head_dim),
        "v": (batch, spec.group_heads, keys, spec.head_dim),
    }
    for name, x in zip("qkv", tensors, strict=True):
        if tuple(x.shape) != wanted[name]:
            raise InputError(
                f"{name} has shape {tuple(x.shape)}",
                where="[batch, heads, tokens, head_dim]",
                hint=_shape_hint(tuple(x.shape), wanted[name]),
            )
        if not any_dtype and not _fits(x, spec.dtype):
            raise InputError(
                f"{name} is {x.dtype}, the spec says {spec.dtype}", hint=_cast(x, spec)
            )
        if getattr(x, "device", None) != getattr(q, "device", None):
            raise InputError(
                f"{name} is on {x.device}, q on {q.device}", hint=f"{name}.to(q.device)"
            )
        if getattr(x, "requires_grad", False):
            import torch

            if torch.is_grad_enabled():
                raise InputError(
                    f"{name} requires a gradient and this operator has no backward yet",
                    hint="torch.no_grad(), or .detach()",
                )
    return q, k, v


def _fits(x: Any, dtype: str) -> bool:
    if isinstance(x, np.ndarray):
        # NumPy has no bfloat16: its values travel as float32.
        return str(x.dtype) == ("float32" if dtype == "bfloat16" else dtype)
    return str(x.dtype) == f"torch.{dtype}"


def _cast(x: Any, spec: Attention) -> str:
    if isinstance(x, np.ndarray):
        return f"x.astype(np.{'float32' if spec.dtype == 'bfloat16' else spec.dtype})"
    return f"x.to(torch.{spec.dtype}), or Attention(dtype={str(x.dtype).removeprefix('torch.')!r})"


def _shape_hint(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(found) == 4 and found == (wanted[0], wanted[2], wanted[1], wanted[3]):
        return f"x.transpose(1, 2): {wanted}"
    return str(wanted)


def check_finite(tensors: Mapping[str, Any]) -> None:
    """InputError if a tensor holds NaN or infinity; waits for the device."""
    for name, x in tensors.items():
        finite = np.isfinite(x) if isinstance(x, np.ndarray) else x.isfinite()
        if not bool(finite.all()):
            found = np.argwhere(~finite) if isinstance(x, np.ndarray) else (~finite).nonzero()
            raise InputError(f"{name} holds NaN or infinity, first at {found[0].tolist()}")
