"""The door: `build` makes an `Operator` of a spec."""

from kdsl.runtime.build import build
from kdsl.runtime.operator import Operator

__all__ = ["Operator", "build"]
