"""What the tuner and the builder ask of every operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kdsl.specs import Spec
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Check, Work

Load = Callable[[str], Any]
"""Generated source to module: `kdsl.runtime.codecache.load`."""


class Runner(Protocol):
    """An operation on one device with its inputs and outputs: what the measuring process drives.

    `run` puts one call on the device's current stream and waits for nothing; memory between its own
    launches it takes from torch's cache.
    """

    @property
    def families(self) -> tuple[str, ...]:
        """Kinds of inputs: each shows other faults."""

    def prepare(self, family: str, seed: int) -> None:
        """Fill the inputs; the same seed gives the same ones on one kind of device."""

    def poison(self) -> None:
        """Fill the outputs with what no kernel writes."""

    def run(self, params: Mapping[str, Any]) -> None:
        """One call with a configuration."""

    def check(self) -> Check:
        """Compare what `run` wrote with a plain computation from the same inputs; waits."""


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

    @property
    def template_hash(self) -> str:
        """Identity of the hand-written code and of what generates into it."""

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name, those that shape the program among them (`records.keys.HARD_DIMS`)."""

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a configuration cannot run on a GPU, or None: no compiler is asked."""

    def default(self, target: Target) -> dict[str, Any]:
        """A good configuration without any measurement."""

    def written_default(self, target: Target) -> dict[str, Any]:
        """The same by the hand-written rule, where rows have changed the default."""

    def facts(self, target: Target) -> Mapping[str, Any]:
        """What a distilled rule may ask: sizes, mask statistics, dtype, compute capability."""

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Operations and bytes of a call, for cost models."""

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""

    def statistics(self) -> Mapping[str, float]:
        """Statistics of the mask that soft keys are made of; empty where there are none."""

    def make_runner(self, device: Any, load: Load) -> Runner:
        """Inputs, calls and checks on a torch device; ``load`` imports generated source."""
