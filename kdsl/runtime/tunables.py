"""The tunable of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from kdsl.errors import UnsupportedError
from kdsl.runtime.tunable import Tunable
from kdsl.specs import Attention, Matmul, Permute, Prepass, Quantize, Spec


def tunable_for(
    spec: Spec,
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
    batch: int = 1,
    op: str = "",
) -> Tunable:
    """What there is to choose about a spec, for given values of its tables.

    ``op`` names one of `operations`, the first unless given.  UnsupportedError for what has nothing
    to tune.
    """
    if op and op not in operations(spec):
        raise UnsupportedError(
            f"{type(spec).__name__} has no operation {op!r}", hint=", ".join(operations(spec))
        )
    if isinstance(spec, Attention):
        from kdsl.kernels.attention.quantized.tunable import tunable_of

        forward = tunable_of(spec, tables, batch)
        if op in ("", forward.op):
            return forward
        from kdsl.kernels.attention.backward.tunable import PARTS, BackwardTunable

        return next(t for t in (BackwardTunable(forward, part) for part in PARTS) if t.op == op)
    if isinstance(spec, Permute):
        from kdsl.kernels.permute.tunable import PermuteTunable

        return PermuteTunable(spec, tables, batch)
    if isinstance(spec, Quantize):
        from kdsl.kernels.quantize.tunable import QuantizeTunable

        return QuantizeTunable(spec, tables, batch)
    if isinstance(spec, Matmul) and spec.x is None:
        from kdsl.kernels.matmul.weight_only.tunable import WeightOnlyTunable

        return WeightOnlyTunable(spec)
    if isinstance(spec, Matmul):
        from kdsl.kernels.matmul.tunable import MatmulTunable

        return MatmulTunable(spec)
    if isinstance(spec, Prepass):
        from kdsl.kernels.prepass.tunable import PrepassTunable

        return PrepassTunable(spec, tables, batch)
    raise UnsupportedError(
        f"nothing can be tuned about {type(spec).__name__} yet", hint="kdsl.Attention(...)"
    )


def operations(spec: Spec) -> tuple[str, ...]:
    """Names of what can be tuned about a spec: the forward first, then its backward's kernels."""
    if isinstance(spec, Attention):
        if spec.layout is not None:
            return ("attention_quantized",)
        return "attention", "attention_backward_keys", "attention_backward_queries"
    if isinstance(spec, Quantize):
        return ("quantize",)
    if isinstance(spec, Matmul):
        return ("matmul",) if spec.x is not None else ("matmul_weight_only",)
    if isinstance(spec, Prepass):
        return ("prepass",)
    return ("permute",) if isinstance(spec, Permute) else ()
