"""What operators have of torch, where it is installed; without it there are arrays only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.specs import Spec, canonical


def torch_ops() -> Any:
    """The operations of torch."""
    from kdsl.runtime import torch_ops

    return torch_ops


def torch_rows() -> Any:
    """The operations of torch on rows: quantizing, products."""
    from kdsl.runtime import torch_rows

    return torch_rows


def rows_seen_by_torch() -> Callable[[tuple[Any, ...]], bool]:
    """Says whether torch must see a call of quantize or matmul on some tensors."""
    try:
        seen: Callable[[tuple[Any, ...]], bool] = torch_rows().seen
    except ImportError:
        return lambda tensors: False
    return seen


def seen_by_torch() -> Callable[[tuple[Any, ...]], bool]:
    """Says whether torch must see a call on some tensors."""
    try:
        wanted: Callable[[tuple[Any, ...]], bool] = torch_ops().wanted
    except ImportError:
        return lambda tensors: False
    return wanted


def warm() -> Any:
    """Calls that are ready, none at first."""
    try:
        from kdsl.runtime.warm import Warm
    except ImportError:
        return lambda tensors: None
    return Warm()


def identity(spec: Spec, fixed: Mapping[str, npt.NDArray[Any]], *others: Any) -> str:
    """A text that is another one where operators compute other things.

    Torch's compiler takes what an operator's methods return for constants, and the graph it made of
    one operator for that of any other in the same line of a program, unless a guard tells the two
    apart.  It guards texts.  Layers with equal masks have equal ones, and share a graph.
    """
    digest = hashlib.sha256(canonical({"spec": spec.to_json(), "others": others}).encode())
    for name, values in sorted(fixed.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
