"""The door: `build` makes an `Operator` of a spec.

Loaded when first used (PEP 562): looking up records needs the standard library alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdsl.runtime.builder import build
    from kdsl.runtime.operator import Operator

__all__ = ["Operator", "build"]

_HOMES = {"Operator": "kdsl.runtime.operator", "build": "kdsl.runtime.builder"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kdsl.runtime' has no attribute {name!r}")
