"""Torch modules of quantized layers, and quantization of whole models.

`QuantLinear` is a linear layer whose weight is stored in a format and whose input is rotated and
quantized on its way into the product; `Transform` the rotation alone, with gradients; `quantize`
takes a model, a `Scheme` and batches, and `apply` puts a saved plan into a model.  Names are loaded
when they are first used: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdsl.nn.linear import QuantLinear
    from kdsl.nn.model import apply, plan_of, quantize
    from kdsl.nn.report import show
    from kdsl.nn.rotation import Transform, transform
    from kdsl.nn.scheme import Scheme, w4a8, w4a16, w8a8

__all__ = [
    "QuantLinear",
    "Scheme",
    "Transform",
    "apply",
    "plan_of",
    "quantize",
    "show",
    "transform",
    "w4a8",
    "w4a16",
    "w8a8",
]

_HOMES = {
    "QuantLinear": "linear",
    "Scheme": "scheme",
    "Transform": "rotation",
    "apply": "model",
    "plan_of": "model",
    "quantize": "model",
    "show": "report",
    "transform": "rotation",
    "w4a16": "scheme",
    "w4a8": "scheme",
    "w8a8": "scheme",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"kdsl.nn.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kdsl.nn' has no attribute {name!r}")
