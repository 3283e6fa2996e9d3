"""The tunable of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from kdsl.errors import UnsupportedError
from kdsl.runtime.tunable import Tunable
from kdsl.specs import Attention, Permute, Spec


def tunable_for(
    spec: Spec, tables: Mapping[str, npt.NDArray[Any]] | None = None, batch: int = 1
) -> Tunable:
    """What there is to choose about a spec, for given values of its tables.

    UnsupportedError for an operation that has nothing to tune.
    """
    if isinstance(spec, Attention):
        from kdsl.kernels.attention.tunable import AttentionTunable

        return AttentionTunable(spec, tables, batch)
    if isinstance(spec, Permute):
        from kdsl.kernels.permute.tunable import PermuteTunable

        return PermuteTunable(spec, tables, batch)
    raise UnsupportedError(
        f"nothing can be tuned about {type(spec).__name__} yet", hint="kdsl.Attention(...)"
    )
