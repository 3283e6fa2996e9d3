"""What the tuner and the builder ask of every operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kdsl.specs import Spec
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work


class Tunable(Protocol):
    """An operation on one workload: spec and values of its tables.

    Configurations cross this interface as plain JSON objects.
    """

    @property
    def op(self) -> str:
        """Name of the operation."""

    @property
    def spec(self) -> Spec:
        """What is computed."""

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a configuration cannot run on a GPU, or None: no compiler is asked."""

    def default(self, target: Target) -> dict[str, Any]:
        """A good configuration without any measurement."""

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Operations and bytes of a call, for cost models."""

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""

    def statistics(self) -> Mapping[str, float]:
        """Statistics of the mask that soft keys are made of; empty where there are none."""
