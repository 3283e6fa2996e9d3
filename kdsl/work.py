"""What one run of a kernel has to do, as counts: the input of every cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a call, and how they fall into programs.

    ``flop`` counts what the kernel computes (whole tiles), ``useful_flop`` kept blocks only, the
    figure that rates are quoted in.  ``bytes`` is the least that crosses device memory: every input
    once, every output once.  ``steps`` holds the inner-loop steps of each program in launch order,
    ``step_bytes`` what a step loads, ``step_exp`` the exponentials it takes.  ``unit`` is the dtype
    whose peak bounds the arithmetic.  ``before_bytes`` are moved by a launch of their own that has
    to end first.  ``partial`` is the share of steps that do more than the plain
    ones; ``registers`` a thread and ``spill_bytes`` are estimates (0: unknown).
    """

    flop: float
    useful_flop: float
    bytes: float
    unit: str
    programs: int
    threads: int
    shared_bytes: int
    steps: npt.NDArray[np.int64] = field(repr=False)
    step_flop: float = 0.0
    step_bytes: float = 0.0
    step_exp: float = 0.0
    partial: float = 0.0
    registers: int = 0
    spill_bytes: int = 0
    before_bytes: float = 0.0


@dataclass(frozen=True)
class AheadOfTime:
    """A Triton kernel to compile for a GPU that need not be there: see `compile_triton`.

    With NVRTC's flags under ``options["nvrtc"]`` it is CUDA C, which has no more to say than
    source and entry: see `compile_cuda`.
    """

    source: str
    entry: str
    signature: Mapping[str, Any]
    constants: Mapping[Any, Any]
    divisible: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """How far a kernel's output is from the truth, beside how far it may be.

    Both are relative; ``error`` is infinite where something else is wrong: ``reason`` says what.
    """

    error: float
    tolerance: float
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether the output may be used."""
        return self.error <= self.tolerance
