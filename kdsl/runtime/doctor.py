"""What works here, and on a named GPU: operation by operation, tried, not assumed."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from kdsl.errors import KdslError
from kdsl.kernels.attention.backward.tunable import PARTS, BackwardTunable
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.reference.attention_backward import attention_backward
from kdsl.runtime.aot import compile_for
from kdsl.runtime.builder import build, device_target
from kdsl.runtime.codecache import cache_folder
from kdsl.runtime.tunable import Tunable
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
    for dtype, head_dim in itertools.product(DTYPES, HEAD_DIMS):
        say(f"attention backward {dtype} head_dim {head_dim}")
        spec = Attention(tokens=TOKENS, heads=2, head_dim=head_dim, dtype=dtype)
        yield _backward(spec, target, here)


def _attention(spec: Attention, target: Target | None, here: bool) -> Finding:
    name = ("attention", "forward", spec.dtype, spec.head_dim)
    if target is None:
        error = _reference_error(spec)
        return Finding(*name, RUNS, f"NumPy reference, rows of weights sum to 1 within {error:.0e}")
    try:
        if here:
            return Finding(*name, RUNS, f"checked just now, error {_kernel_error(spec):.1e}")
        note = _compiled(AttentionTunable(spec), target)
    except KdslError as error:
        return Finding(*name, NO, error.what.splitlines()[0])
    return Finding(*name, COMPILES, note)


def _backward(spec: Attention, target: Target | None, here: bool) -> Finding:
    name = ("attention", "backward", spec.dtype, spec.head_dim)
    if target is None:
        error = _reference_gradient_error(spec)
        return Finding(*name, RUNS, f"NumPy reference, weights of dV sum to 1 within {error:.0e}")
    try:
        if here:
            return Finding(*name, RUNS, f"checked just now, error {_gradient_error(spec):.1e}")
        forward = AttentionTunable(spec)
        notes = {p: _compiled(BackwardTunable(forward, p), target) for p in PARTS}
    except KdslError as error:
        return Finding(*name, NO, error.what.splitlines()[0])
    return Finding(*name, COMPILES, f"dK, dV: {notes['keys']}; dQ: {notes['queries']}")


def _compiled(tunable: Tunable, target: Target) -> str:
    """What the compiler made of the default configuration."""
    compiled = compile_for(tunable, tunable.default(target), target)
    note = f"{compiled.registers} registers, {compiled.shared_bytes // 1024} KiB shared"
    return note + (f", {compiled.spill_bytes} bytes spilled" if compiled.spill_bytes else "")


def _reference_error(spec: Attention) -> float:
    """Attention over values of one gives one: how far the reference is off."""
    rng = np.random.default_rng(0)
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    q, k = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    dtype = "float16" if spec.dtype == "float16" else "float32"
    op = build(spec, backend="reference")
    out = op.reference(q.astype(dtype), k.astype(dtype), np.ones(shape, dtype))
    return float(np.abs(out - 1).max())


def _reference_gradient_error(spec: Attention) -> float:
    """A query's weights sum to one, so dV sums to the output's gradient: how far it is off."""
    rng = np.random.default_rng(0)
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    q, k, v, dout = (rng.standard_normal(shape) for _ in range(4))
    _, _, dv = attention_backward(spec, q, k, v, dout)
    return float(np.abs(dv.sum(2) - dout.sum(2)).max())


def _gradient_error(spec: Attention) -> float:
    """Largest relative error of the gradients of a small call on the GPU."""
    import torch

    dtype = getattr(torch, spec.dtype)
    g = torch.Generator("cuda").manual_seed(0)
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    q, k, v, dout = (torch.randn(shape, generator=g, device="cuda", dtype=dtype) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    found = torch.autograd.grad(build(spec)(*leaves), leaves, dout)
    wanted = attention_backward(spec, q, k, v, dout)
    return max(
        float(np.linalg.norm(x.double().cpu().numpy() - y) / np.linalg.norm(y))
        for x, y in zip(found, wanted, strict=True)
    )


def _kernel_error(spec: Attention) -> float:
    """Relative error of a small call on the GPU against the reference."""
    import torch

    dtype = getattr(torch, spec.dtype)
    g = torch.Generator("cuda").manual_seed(0)
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    q, k, v = (torch.randn(shape, generator=g, device="cuda", dtype=dtype) for _ in range(3))
    op = build(spec)
    out, want = op(q, k, v).double().cpu().numpy(), op.reference(q, k, v)
    return float(np.linalg.norm(out - want) / np.linalg.norm(want))
