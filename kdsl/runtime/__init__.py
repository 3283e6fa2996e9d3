"""The door: `build` makes an `Operator` of a spec."""

from kdsl.runtime.builder import build
from kdsl.runtime.operator import Operator

__all__ = ["Operator", "build"]
