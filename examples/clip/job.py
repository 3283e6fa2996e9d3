"""The whole job on the clip: describe, tune, build, run, check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kdsl
from examples.clip.calibrate import Calibration, block_mass, calibrate
from examples.clip.describe import spec_of, tables_of
from examples.clip.facts import Check, ClipFacts, Compiled, Cost, Leaf
from examples.clip.heads import Projected, project
from examples.clip.look import glance, mask_errors
from examples.clip.piece import PieceResult
from examples.clip.video import CLIP, GRID, Clip, load
from kdsl.errors import CompileError, KdslError
from kdsl.runtime.attention import AttentionOperator

LOOKED_AT = ((0, 6, 5, 11), (4, 6, 5, 11), (7, 6, 5, 11))
"""Head, frame, row and column of the query tokens whose attention is drawn: on the rabbit."""


@dataclass(frozen=True, eq=False)
class Described:
    """The clip, its heads, and what calibration found."""

    clip: Clip
    made: Projected
    found: Calibration


def describe() -> Described:
    """Decode the clip, make the heads, choose orders and blocks."""
    clip = load(CLIP, GRID)
    made = project(clip.features, GRID)
    names = tuple(head.name for head in made.heads)
    return Described(clip, made, calibrate(made.q, made.k, GRID, names))


def build(what: Described, gpu: str | None) -> AttentionOperator:
    """The operator for a GPU that may be absent, its configuration from the tuning database."""
    spec = spec_of(what.found, what.made.q.shape[-1], "bfloat16")
    op = kdsl.build(spec, gpu=gpu, tables=tables_of(what.found))
    assert isinstance(op, AttentionOperator)
    return op


def tune(what: Described, gpu: str, budget: str, out: Path) -> int:
    """Tune the spec with its real blocks for a GPU; the tuner's exit code."""
    out.mkdir(parents=True, exist_ok=True)
    spec = spec_of(what.found, what.made.q.shape[-1], "bfloat16")
    (out / "spec.json").write_text(json.dumps(spec.to_json()))
    np.savez(out / "tables.npz", **tables_of(what.found))  # type: ignore[arg-type]
    command = ["--gpu", gpu, "--spec", str(out / "spec.json"), "--tables", str(out / "tables.npz")]
    done = subprocess.run(
        [sys.executable, "-m", "kdsl.autotune", *command, "--budget", budget], check=False
    )
    return done.returncode


def run_piece() -> PieceResult:
    """A piece of the clip through the generated kernel in Triton's interpreter.

    Triton reads its variable when it is imported, so the interpreter has a process of its own.
    """
    done = subprocess.run(
        [sys.executable, "-m", "examples.clip.piece"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise CompileError(f"the generated kernel failed in the interpreter: {' '.join(last)}")
    result = json.loads(done.stdout.splitlines()[-1])
    return PieceResult(**{**result, "orders": tuple(result["orders"])})


def compile_kernel(op: AttentionOperator) -> Compiled:
    """Compile the full kernel for the operator's GPU and read the binary."""
    from kdsl.runtime.aot import compile_for

    assert op.target is not None
    made = compile_for(op.tunable, op.config, op.target)
    settings = ", ".join(f"{k}={v}" for k, v in op.config.items())
    return Compiled(
        kernel=made.entry,
        arch=f"{op.target.name} (sm_{op.target.cc})",
        config=settings,
        registers=made.registers,
        spills=made.spill_bytes,
        shared=made.shared_bytes,
    )


def run_on_gpu(op: AttentionOperator, what: Described) -> tuple[Check, Cost]:
    """The whole clip on the GPU at hand: error against the reference, and a time."""
    import torch
    from triton.testing import do_bench

    q, k, v = (
        torch.from_numpy(np.ascontiguousarray(x)).to("cuda", torch.bfloat16)
        for x in (what.made.q, what.made.k, what.made.v)
    )
    out = op(q, k, v)
    rows = np.random.default_rng(0).choice(GRID.tokens, 256, replace=False)
    from kdsl.reference.attention import attention

    want, _ = attention(op.spec, q, k, v, op.fixed, rows=rows)
    got = out[:, :, torch.from_numpy(rows).to(out.device)].double().cpu().numpy()
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    # bfloat16 rounds weights, products and outputs by up to 2**-8 of their size.
    check = Check(
        "the whole clip, 256 queries a head", torch.cuda.get_device_name(), error, 4 * 2**-8
    )
    ms = float(do_bench(lambda: op(q, k, v), return_mode="median"))
    settings = ", ".join(f"{k}={v}" for k, v in op.config.items())
    cost = Cost(
        "attention", settings, "measured", ms, torch.cuda.get_device_name(), op.cost()["flop"]
    )
    return check, cost


def facts(
    what: Described,
    op: AttentionOperator,
    command: str,
    *,
    checks: tuple[Check, ...],
    compiled: tuple[Compiled, ...],
    costs: tuple[Cost, ...],
    notes: tuple[str, ...],
) -> ClipFacts:
    """Everything the page shows."""
    from kdsl.kernels.attention.generate import leaves

    block = what.found.settings.block
    heads = range(len(what.found.names))
    before = block_mass(what.made.q, what.made.k, GRID, ("FHW",) * len(heads), block)
    looked = [(h, (f * GRID.shape[1] + y) * GRID.shape[2] + x) for h, f, y, x in LOOKED_AT]
    return ClipFacts(
        clip=what.clip,
        made=what.made,
        found=what.found,
        mass_before=before,
        errors=mask_errors(what.made, what.found),
        gpu=op.target.name if op.target else "none",
        command=command,
        glances=tuple(glance(what.made, what.found, h, t) for h, t in looked),
        checks=checks,
        leaves=(Leaf("mask, query_index, key_index", "Triton", leaves(op.spec)),),
        compiled=compiled,
        costs=costs,
        notes=notes,
    )


def predicted(op: AttentionOperator) -> Cost:
    """The predicted time of the whole clip on the operator's GPU."""
    assert op.target is not None
    cost: Any = op.cost()
    settings = ", ".join(f"{k}={v}" for k, v in op.config.items())
    return Cost(
        "attention", settings, "predicted", cost["predicted_us"] / 1e3, op.target.name, cost["flop"]
    )


__all__ = [
    "Described",
    "KdslError",
    "build",
    "compile_kernel",
    "describe",
    "facts",
    "predicted",
    "run_on_gpu",
    "run_piece",
]
