"""What operators have of torch, where it is installed; without it there are arrays only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def torch_ops() -> Any:
    """The operations of torch."""
    from kdsl.runtime import torch_ops

    return torch_ops


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
