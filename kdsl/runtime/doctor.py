"""What works here, and on a named GPU: operation by operation, tried, not assumed."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from kdsl.errors import ConfigError, KdslError
from kdsl.kernels.attention.config import BACKENDS
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.builder import build, device_target
from kdsl.runtime.codecache import cache_folder
from kdsl.specs import DTYPES, HEAD_DIMS, Attention
from kdsl.targets import Target

RUNS, COMPILES, NO = "runs", "compiles", "no"
TOKENS = 200
"""Length of the trial call: ragged against every block."""


@dataclass(frozen=True)
class Finding:
    """One operation, tried."""

    operation: str
    direction: str
    dtype: str
    head_dim: int
    status: str
    note: str


def environment() -> dict[str, str]:
    """Versions of what kdsl builds on, the GPU, and where things are kept."""
    from importlib import metadata

    out = {"python": platform.python_version()}
    for name in ("numpy", "torch", "triton", "cupy", "optuna"):
        found = "missing"
        if find_spec(name) is not None:
            candidates = metadata.packages_distributions().get(name, [name])
            found = metadata.version(candidates[0])
        out[name] = found
    present = device_target()
    out["GPU"] = present.name if present else "none: calls run the NumPy reference"
    out["cache"] = str(cache_folder())
    return out


def examine(target: Target | None, say: Callable[[str], None]) -> Iterator[Finding]:
    """Every operation x dtype x head_dim: run on a GPU that is here, else compiled for it."""
    present = device_target()
    here = present is not None and (target is None or target.name == present.name)
    target = target or present
    for dtype, head_dim in itertools.product(DTYPES, HEAD_DIMS):
        say(f"attention forward {dtype} head_dim {head_dim}")
        spec = Attention(tokens=TOKENS, heads=2, head_dim=head_dim, dtype=dtype)
        yield _attention(spec, target, here)
    for dtype in DTYPES:
        note = "no kernel yet"
        yield Finding("attention", "backward", dtype, 0, NO, note)


def _attention(spec: Attention, target: Target | None, here: bool) -> Finding:
    name = ("attention", "forward", spec.dtype, spec.head_dim)
    if target is None:
        error = _reference_error(spec)
        return Finding(*name, RUNS, f"NumPy reference, rows of weights sum to 1 within {error:.0e}")
    notes = []
    for template, backend in BACKENDS.items():
        tunable = AttentionTunable(spec, templates=(template,))
        try:
            config = tunable.default(target)
        except ConfigError:
            continue
        try:
            notes.append(f"{backend}: {_tried(tunable, config, target, backend, here)}")
        except KdslError as error:
            return Finding(*name, NO, f"{backend}: {error.what.splitlines()[0]}")
    if not notes:
        return Finding(*name, NO, "no configuration fits")
    return Finding(*name, RUNS if here else COMPILES, "; ".join(notes))


def _tried(
    tunable: AttentionTunable, config: Mapping[str, Any], target: Target, backend: str, here: bool
) -> str:
    """What a template does on a GPU that is here, or what its compiler says for one that is not."""
    if here:
        return f"checked just now, error {_kernel_error(tunable.spec, backend):.1e}"
    compiled = compile_for(tunable, config, target)
    note = f"{compiled.registers} registers, {compiled.shared_bytes // 1024} KiB shared"
    if compiled.spill_bytes:
        note += f", {compiled.spill_bytes} bytes spilled"
    return note


def _reference_error(spec: Attention) -> float:
    """Attention over values of one gives one: how far the reference is off."""
    rng = np.random.default_rng(0)
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    q, k = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    dtype = "float16" if spec.dtype == "float16" else "float32"
    op = build(spec, backend="reference")
    out = op.reference(q.astype(dtype), k.astype(dtype), np.ones(shape, dtype))
    return float(np.abs(out - 1).max())


def _kernel_error(spec: Attention, backend: str) -> float:
    """Relative error of a small call on the GPU against the reference."""
    import torch

    dtype = getattr(torch, spec.dtype)
    g = torch.Generator("cuda").manual_seed(0)
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    q, k, v = (torch.randn(shape, generator=g, device="cuda", dtype=dtype) for _ in range(3))
    op = build(spec, backend=backend)
    out, want = op(q, k, v).double().cpu().numpy(), op.reference(q, k, v)
    return float(np.linalg.norm(out - want) / np.linalg.norm(want))
