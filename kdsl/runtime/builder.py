"""`build`: from a spec to an operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from kdsl.errors import ConfigError, SpecError, UnsupportedError
from kdsl.runtime.operator import Operator, Tables
from kdsl.specs import Attention, Matmul, Permute, Prepass, Quantize, Spec
from kdsl.targets import Target, from_device
from kdsl.targets import get as target_named

BACKENDS = ("triton", "gluon", "cuda", "reference")


def build(
    spec: Spec,
    *,
    gpu: str | None = None,
    config: Mapping[str, Any] | None = None,
    backend: str | None = None,
    mode: str = "predict",
    tables: Tables | None = None,
    backward: Mapping[str, Mapping[str, Any]] | None = None,
) -> Operator:
    """An operator for a spec.

    ``gpu`` names a target that may be absent: its source, cost and compilation work then, calling
    does not.  Without it the GPU at hand is taken, or the NumPy reference where there is none.
    ``config`` is taken as given (missing settings from the default), ``backend`` is one of
    ``"triton"`` (the portable template), ``"gluon"`` (Hopper's), ``"cuda"``, ``"reference"``; None
    takes what was measured to be best.  ``mode`` says how far the look-up of a configuration goes:
    ``"off"``, ``"strict"``, ``"nearest"``, ``"predict"``, ``"now"``.  ``tables`` gives values of
    open tables, or a sample that the configuration is chosen for.  ``backward`` gives
    configurations of the gradients' kernels, by name: ``"keys"`` for dK and dV, ``"queries"`` for
    dQ; they are chosen as the forward's when they are first needed.
    """
    if not isinstance(spec, (Attention, Permute, Quantize, Matmul, Prepass)):
        raise SpecError(
            f"build takes a spec, got {type(spec).__name__}", hint="kdsl.Attention(...)"
        )
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r}", hint=" or ".join(map(repr, BACKENDS)))
    present = device_target()
    target = target_named(gpu) if gpu is not None else present
    here = target is not None and present is not None and target.name == present.name
    if isinstance(spec, Permute):
        from kdsl.runtime.permute import PermuteOperator

        if backward:
            raise ConfigError("permute has no backward kernels", hint="backward=None")
        own = _pick(backend, ("cuda",), target) or "cuda"
        if own == "cuda" and target is None:
            raise UnsupportedError(
                "there is no GPU here for the CUDA kernel",
                hint='gpu="a100" to look at it, or backend="reference"',
            )
        return PermuteOperator(spec, target, own, config, mode, here, tables)
    from kdsl.runtime.arrays import interpreting

    own_backends = ("triton",) if isinstance(spec, (Quantize, Prepass)) else ("triton", "gluon")
    if isinstance(spec, Matmul) and spec.x is None:
        own_backends = ("triton", "cuda")
    picked = _pick(backend, own_backends, target)
    if interpreting() and picked != "reference":
        if picked in ("gluon", "cuda"):
            name = {"gluon": "Gluon", "cuda": "CUDA C"}[picked]
            raise UnsupportedError(f"{name} has no interpreter", hint='backend="triton"')
        picked = "triton"
    if picked in own_backends and target is None:
        if not interpreting():
            raise UnsupportedError(
                "there is no GPU here for the kernel",
                hint='gpu="a100" to look at it, TRITON_INTERPRET=1 in the environment to run the '
                'portable one on the CPU, or backend="reference"',
            )
        # The interpreter takes any configuration; an A100's default keeps it small.
        target = target_named("a100")
    here = here or interpreting()
    if isinstance(spec, Quantize):
        from kdsl.runtime.quantize import QuantizeOperator

        if backward:
            raise ConfigError("quantize has no backward kernels", hint="backward=None")
        return QuantizeOperator(spec, target, picked or "triton", config, mode, here, tables)
    if isinstance(spec, Matmul):
        from kdsl.runtime.matmul import MatmulOperator

        if backward:
            raise ConfigError("matmul has no backward kernels", hint="backward=None")
        return MatmulOperator(spec, target, picked, config, mode, here, tables)
    if isinstance(spec, Prepass):
        from kdsl.runtime.prepass import PrepassOperator

        if backward:
            raise ConfigError("prepass has no backward kernels", hint="backward=None")
        if picked is None and here and not interpreting():
            picked = "reference"  # on an H200 the kernels failed tests
        return PrepassOperator(spec, target, picked or "triton", config, mode, here, tables)
    from kdsl.runtime.attention import AttentionOperator
    from kdsl.runtime.quantized import QuantizedOperator

    kind = AttentionOperator if spec.layout is None else QuantizedOperator
    return kind(spec, target, picked, config, mode, here, tables, backward)


def _pick(backend: str | None, own: tuple[str, ...], target: Target | None) -> str | None:
    """The backend that was asked for; without a GPU the reference; else None, for any."""
    if backend is None:
        return None if target is not None else "reference"
    if backend not in (*own, "reference"):
        hint = " or ".join(map(repr, own))
        raise UnsupportedError(f"this operation has no {backend!r} backend", hint=hint)
    return backend


def device_target() -> Target | None:
    """The current CUDA device as a target, or None (also where torch is missing)."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return _target_of(torch.cuda.current_device())


@cache
def _target_of(device: int) -> Target:
    import torch

    return from_device(torch.cuda.get_device_properties(device))
