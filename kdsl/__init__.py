"""Describe sparse, reordered, quantized attention; get the kernel, its tuning and the proof.

The names below load their modules when they are first used (PEP 562), so that ``import kdsl``
stays in the milliseconds and needs neither torch, triton, cupy nor optuna.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdsl import calibrate, errors, layouts, masks, nn, orders, plans
    from kdsl.errors import KdslError
    from kdsl.expr import table
    from kdsl.grid import Grid
    from kdsl.nn.model import quantize
    from kdsl.runtime import build
    from kdsl.specs import Attention, Matmul, Partition, Permute, Prepass, Quantize

    __version__: str

__all__ = [
    "Attention",
    "Grid",
    "KdslError",
    "Matmul",
    "Partition",
    "Permute",
    "Prepass",
    "Quantize",
    "__version__",
    "build",
    "calibrate",
    "errors",
    "layouts",
    "masks",
    "nn",
    "orders",
    "plans",
    "quantize",
    "table",
]

_DISTRIBUTION = "kdsl-kernels"
_MODULES = frozenset({"calibrate", "errors", "layouts", "masks", "nn", "orders", "plans"})
_HOMES = {
    "Attention": "kdsl.specs",
    "Grid": "kdsl.grid",
    "KdslError": "kdsl.errors",
    "Matmul": "kdsl.specs",
    "Partition": "kdsl.specs",
    "Permute": "kdsl.specs",
    "Prepass": "kdsl.specs",
    "Quantize": "kdsl.specs",
    "build": "kdsl.runtime",
    "quantize": "kdsl.nn.model",
    "table": "kdsl.expr",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kdsl.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'kdsl' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; ``0+checkout`` where the code runs without having been installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return "0+checkout"
