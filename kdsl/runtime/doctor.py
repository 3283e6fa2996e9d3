"""What works here, and on a named GPU: operation by operation, tried, not assumed."""

from __future__ import annotations

import itertools
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from kdsl.errors import CompileError, ConfigError, KdslError, StoreError, UnsupportedError
from kdsl.grid import Grid
from kdsl.layouts import (
    Outline,
    activations,
    int8,
    int8_qk,
    int8_qk_fp8_pv,
    int8_qk_int8_pv,
    slog,
    w8,
)
from kdsl.orders import axes
from kdsl.runtime import codecache
from kdsl.runtime.aot import compile_for
from kdsl.runtime.arrays import interpreting
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.builder import build, device_target
from kdsl.runtime.choice import Choice
from kdsl.runtime.operator import Operator
from kdsl.runtime.records import default_place, default_sources
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import DTYPES, HEAD_DIMS, Attention, Matmul, Permute, Prepass, Quantize, Spec
from kdsl.targets import Target

MEASURED, COMPILED, NO, FAILS = "measured", "compiled only", "not supported", "fails"
"""Ran here and is as near to the truth as it must be; compiles for a GPU that is not here; has no
kernel or none that compiles; ran here and is wrong, or did not end."""
GRID = Grid(height=10, width=20)
"""Tokens of a trial: ragged against every block."""
TURN = Outline((("hadamard", 128),))
WIDTHS = (3072, 12288)
"""Columns of activations that are quantized: a hidden state and what lies between two layers."""


@dataclass(frozen=True)
class Finding:
    """One operation, tried.  ``dtype`` and ``head_dim`` (or columns) may be ``"all"``."""

    operation: str
    direction: str
    dtype: str
    head_dim: str
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
    out["cache"] = str(codecache.cache_folder())
    out["database"] = str(default_place())
    return out


def examine(target: Target | None, say: Callable[[str], None]) -> Iterator[Finding]:
    """Every operation x dtype x head_dim: run on a GPU that is here, else compiled for it.

    Without a GPU here, the reference is tried once for each operation.  StoreError where the
    machine has no room to compile.
    """
    present = device_target()
    here = present is not None and (target is None or target.name == present.name)
    target = target or present
    if present is None:
        yield from _references(say)
    if target is None:
        return
    rows = measured_rows(target)
    for operation, direction, op, spec in subjects():
        width = spec.columns if isinstance(spec, (Quantize, Matmul)) else spec.head_dim
        say(f"{operation} {direction} {spec.dtype} width {width}")
        status, note = _tried(spec, op, target, here)
        if known := rows[op, spec.dtype, width]:
            note += f"; {known} measured rows of {target.name} in the database"
        yield Finding(operation, direction, spec.dtype, str(width), status, note)


def subjects() -> Iterator[tuple[str, str, str, Attention | Permute | Quantize | Matmul | Prepass]]:
    """What is tried: name, direction, operation, spec."""
    order = axes(GRID, "WH")
    parts = {
        "attention": ("attention", "forward"),
        "attention_backward_keys": ("attention, dK and dV", "backward"),
        "attention_backward_queries": ("attention, dQ", "backward"),
    }
    for op, (name, direction) in parts.items():
        for dtype, head_dim in itertools.product(DTYPES, HEAD_DIMS):
            spec = Attention(tokens=GRID, heads=2, head_dim=head_dim, dtype=dtype)
            yield name, direction, op, spec
    coded = (("16-bit", int8_qk()), ("e4m3", int8_qk_fp8_pv()), ("int8", int8_qk_int8_pv()))
    for (pv, held), dtype, dim in itertools.product(coded, DTYPES[:2], HEAD_DIMS):
        spec = Attention(tokens=GRID, heads=2, head_dim=dim, dtype=dtype, layout=held)
        yield f"attention, int8 QK, {pv} PV", "forward", "attention_quantized", spec
    for dtype, dim in itertools.product(DTYPES, HEAD_DIMS):
        before = Prepass(
            tokens=GRID, heads=2, head_dim=dim, dtype=dtype, norm="rms_token", rope="interleaved",
            order=order, layout=int8_qk_fp8_pv(), smooth=True, pool=(128, 128),
        )  # fmt: skip
        yield "pre-pass", "forward", "prepass", before
    for code, dtype, columns in itertools.product(("int8", "fp8", "int4"), DTYPES, WIDTHS):
        fmt = activations(code)
        turned = Quantize(rows=GRID.tokens, columns=columns, dtype=dtype, recipe=TURN, format=fmt)
        yield f"rotate, quantize to {code}", "forward", "quantize", turned
    for code, bits, dtype, columns in itertools.product(("int8", "fp8"), (8, 4, 3), DTYPES, WIDTHS):
        few = slog(min(bits, 4), exact="e4m3" if code == "fp8" else "int8")
        product = Matmul(
            rows=GRID.tokens, inner=columns, columns=columns, dtype=dtype, x=activations(code),
            weight=w8("channel", code) if bits == 8 else few, bias=True, activation="gelu_tanh",
        )  # fmt: skip
        by = "" if bits == 8 else f" by {bits} bits"
        yield f"product of {code}{by}", "forward", "matmul", product
    for bits, dtype, columns in itertools.product((4, 3), DTYPES[:2], WIDTHS):
        alone = Matmul(rows=8, inner=columns, columns=columns, dtype=dtype, weight=slog(bits))
        yield f"product of 16 bits by {bits} bits", "forward", "matmul_weight_only", alone
    for layout, dtype, head_dim in itertools.product((None, int8()), DTYPES, HEAD_DIMS):
        yield (
            f"permute{f' to {layout.code}' if layout else ''}",
            "forward",
            "permute",
            Permute(
                tokens=GRID, heads=2, head_dim=head_dim, dtype=dtype, order=order, layout=layout
            ),
        )


def measured_rows(target: Target) -> Counter[tuple[str, str, int]]:
    """Measured rows of a GPU by operation, dtype and head_dim; none where there is no database."""
    out: Counter[tuple[str, str, int]] = Counter()
    try:
        ops = {op for _, _, op, _ in subjects()}
        with default_sources() as sources:
            for source, op in itertools.product(sources, ops):
                for workload in source.workloads(op):
                    found = [
                        t
                        for t in source.trials(workload.id)
                        if (t.device.name, t.measurement.kind, t.measurement.status)
                        == (target.name, "measured", "ok")
                    ]
                    width = workload.dims.get("head_dim", workload.dims.get("columns", 0))
                    of = (op, workload.dtypes.get("tensors", ""), width)
                    out[of] += len(found)
    except StoreError:
        # Who tunes hears of it; here it only means that there is nothing to count.
        return Counter()
    return out


def _tried(spec: Spec, op: str, target: Target, here: bool) -> tuple[str, str]:
    """(status, note) of one operation of a spec."""
    try:
        return run(spec, target, op) if here else _compiled(spec, op, target)
    except StoreError:
        raise
    except (CompileError, ConfigError, UnsupportedError) as error:
        hint = f": {error.hint}" if error.hint else ""
        return NO, f"{error.what.splitlines()[0]}{hint}"
    except (KdslError, RuntimeError, ImportError, ValueError) as error:
        # What CUDA, torch and Triton raise at a launch are RuntimeErrors.
        return FAILS, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _compiled(spec: Spec, op: str, target: Target) -> tuple[str, str]:
    tunable = tunable_for(spec, op=op)
    compiled = compile_for(tunable, tunable.default(target), target)
    note = f"{compiled.registers} registers, {compiled.shared_bytes // 1024} KiB shared"
    if compiled.spill_bytes:
        note += f", {compiled.spill_bytes} bytes spilled"
    return COMPILED, note


def run(spec: Spec, target: Target, op: str = "") -> tuple[str, str]:
    """Run what `build` would run, on each kind of input, and hold it against the truth.

    Outputs start as NaN; the tolerance is the one that the tuner derives from dtype and length.
    """
    tunable = tunable_for(spec, op=op)
    choice = _choice(build(spec, gpu=target.name), op)
    runner: Any = tunable.make_runner("cpu" if interpreting() else "cuda", codecache.load)
    worst = None
    for family in runner.families:
        runner.prepare(family, 0)
        runner.poison()
        runner.run(choice.params)
        check = runner.check()
        if not check.right:
            said = f": {check.reason}" if check.reason else ""
            allowed = f"error {check.error:.1e}, {check.tolerance:.1e} allowed"
            return FAILS, f"{family} inputs, {allowed}{said}"
        worst = check if worst is None or check.error > worst.error else worst
    assert worst is not None
    time = choice.measured_us
    took = f", {time:.1f} us measured" if time is not None else ""
    return MEASURED, (
        f"checked just now: error {worst.error:.1e} of {worst.tolerance:.1e} allowed; "
        f"configuration: {choice.rung}{took}"
    )


def _choice(built: Operator, op: str) -> Choice:
    """What `build` chose for one operation of a spec."""
    part = op.rpartition("_")[2]
    if isinstance(built, AttentionOperator) and part in built.backward_choices:
        return built.backward_choices[part]
    assert built.choice is not None
    return built.choice


def _references(say: Callable[[str], None]) -> Iterator[Finding]:
    """The reference of each operation on values whose results are known."""
    say("the NumPy reference")
    error, allowed = reference_error()
    status = MEASURED if error <= allowed else FAILS
    note = f"NumPy reference: weights sum to 1 within {error:.0e} of {allowed:.0e} allowed"
    yield Finding("attention", "forward", "all", "all", status, note)
    order = axes(GRID, "WH")
    spec = Permute(tokens=GRID, heads=1, head_dim=64, dtype="float32", order=order)
    x = np.arange(GRID.tokens * 64, dtype=np.float32).reshape(1, 1, GRID.tokens, 64)
    moved = build(spec, backend="reference").reference(x)
    same = bool((moved[0, 0] == x[0, 0, order.index()]).all())
    note = "NumPy reference: every token where its order says" if same else "tokens misplaced"
    yield Finding("permute", "forward", "all", "all", MEASURED if same else FAILS, note)
    coded = Quantize(rows=2, columns=128, dtype="float32", format=activations(), recipe=TURN)
    ones, _ = build(coded, backend="reference").reference(np.eye(2, 128, dtype=np.float32))
    same = bool((np.abs(ones) == 127).all())
    note = "NumPy reference: a rotation spreads one entry evenly" if same else "codes are off"
    yield Finding("quantize", "forward", "all", "all", MEASURED if same else FAILS, note)
    ones, scales = np.ones((2, 64), np.int8), np.full((2, 1), 0.125, np.float32)
    product = Matmul(rows=2, inner=64, columns=2, x=activations(), weight=w8(), dtype="float32")
    found = build(product, backend="reference").reference(ones, scales, ones, scales)
    same = bool((found == 1).all())
    note = "NumPy reference: ones sum up to their number" if same else "sums are off"
    yield Finding("matmul", "forward", "all", "all", MEASURED if same else FAILS, note)
    turned = Prepass(
        tokens=2, heads=1, head_dim=64, rope="half", dtype="float16", layout=int8_qk(), smooth=True
    )
    one, quarter = np.zeros((1, 1, 2, 64), np.float16), np.ones((2, 32), np.float32)
    one[..., 3] = 1
    made = build(turned, backend="reference").reference(one, one, one, 0 * quarter, quarter)
    # A quarter turn moves channel 3 to 35; a k that does not change has nothing but its mean.
    same = bool(made.operands[0][0, 0, 0, 35] == 127 and not made.operands[2].any())
    note = "NumPy reference: a quarter turn turns, a constant goes" if same else "q or k is off"
    yield Finding("prepass", "forward", "all", "all", MEASURED if same else FAILS, note)


def reference_error() -> tuple[float, float]:
    """Attention over values of one gives one: how far the reference is off, and may be.

    Each of the two sums over n keys, and the division, may round by 2**-53 an addition.
    """
    rng = np.random.default_rng(0)
    spec = Attention(tokens=GRID, heads=2, head_dim=64, dtype="float32")
    shape = (1, spec.heads, GRID.tokens, spec.head_dim)
    q, k = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    out = build(spec, backend="reference").reference(q, k, np.ones(shape, np.float32))
    return float(np.abs(out - 1).max()), (2 * GRID.tokens + 1) * 2.0**-53
