"""Operators: a spec bound to a way of computing it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.runtime.choice import Choice
from kdsl.specs import Spec
from kdsl.targets import Target

Tables = Mapping[str, Any]


class Operator(ABC):
    """What `build` returns: call it, ask it for the truth, the source, the reasons.

    ``target`` is the GPU it was built for (None: the reference), ``backend`` what computes a call.
    """

    spec: Spec
    target: Target | None
    backend: str
    choice: Choice | None

    @abstractmethod
    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """Compute. ``check=True`` synchronises and raises on NaN, infinity and bad table values."""

    @abstractmethod
    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """The same in NumPy: the truth, slowly; arrays in float64."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The complete generated file; it runs on its own."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The chosen configuration; empty for the reference."""
        return self.choice.params if self.choice else {}

    @abstractmethod
    def explain(self) -> str:
        """Backend, configuration and where it came from, density, cost: as text."""

    @abstractmethod
    def cost(self) -> Mapping[str, float]:
        """Operations, bytes, and the predicted and measured time in microseconds where known."""

    @abstractmethod
    def bind(self, tables: Tables) -> Operator:
        """The operator with values for its open tables, ready to be called without them."""


def array_tables(tables: Tables | None) -> dict[str, npt.NDArray[Any]]:
    """Tables as NumPy arrays; block rows as the boolean map they stand for."""
    from kdsl.blocks import Blocks

    out: dict[str, npt.NDArray[Any]] = {}
    for name, value in (tables or {}).items():
        if isinstance(value, Blocks):
            kept = value.kept()
            out[name] = kept[0] if kept.shape[0] == 1 else kept
        else:
            held = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            out[name] = held
        if out[name].dtype == np.bool_:
            out[name] = out[name].astype(np.uint8)
    return out
