"""Everything the report shows, gathered before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from examples.clip.arrays import Floats
from examples.clip.calibrate import Calibration
from examples.clip.heads import Projected
from examples.clip.look import Glance
from examples.clip.video import Clip
from kdsl.errors import InputError


@dataclass(frozen=True)
class Leaf:
    """One generated function: what it is for, its language, its complete source."""

    name: str
    language: str
    source: str


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of a kernel: registers a thread, spills and shared memory in bytes."""

    kernel: str
    arch: str
    config: str
    registers: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Cost:
    """Time of one call; ``work`` in floating-point operations over kept blocks, where it is known.

    ``kind`` says whether a GPU was timed or a model asked; ``source`` which GPU, or which model.
    """

    what: str
    config: str
    kind: Literal["measured", "predicted"]
    ms: float
    source: str
    work: float | None = None

    @property
    def rate(self) -> float | None:
        """TFLOP/s, or None without ``work``."""
        return None if self.work is None else self.work / self.ms / 1e9


@dataclass(frozen=True)
class Check:
    """One comparison with the reference: relative error, its bound, and where the kernel ran."""

    what: str
    where: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error lies within the bound; NaN does not."""
        return self.error <= self.bound


@dataclass(frozen=True, eq=False)
class ClipFacts:
    """The run as the report tells it.

    ``mass_before`` is float32 ``[heads, rows, columns]``, block masses in the original FHW order;
    ``errors`` each head's relative Frobenius error of block-sparse against dense attention.  What a
    run did not do stays empty, and the report says so.
    """

    clip: Clip
    made: Projected
    found: Calibration
    mass_before: Floats
    errors: tuple[float, ...]
    gpu: str
    command: str
    glances: tuple[Glance, ...] = ()
    checks: tuple[Check, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    compiled: tuple[Compiled, ...] = ()
    costs: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        heads = len(self.found.names)
        if len(self.errors) != heads or self.mass_before.shape != self.found.mass.shape:
            raise InputError(
                f"{len(self.errors)} errors and masses {self.mass_before.shape}",
                where="ClipFacts",
                hint=f"one error for each of {heads} heads, masses {self.found.mass.shape}",
            )
        for glance in self.glances:
            if not 0 <= glance.head < heads or not 0 <= glance.token < self.clip.grid.tokens:
                raise InputError(
                    f"head {glance.head}, token {glance.token}",
                    where="ClipFacts.glances",
                    hint=f"heads below {heads}, tokens below {self.clip.grid.tokens}",
                )
