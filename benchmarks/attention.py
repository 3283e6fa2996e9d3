"""The attention suite: forward over random block masks, and dense."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import kdsl
from benchmarks import rows, timing
from benchmarks.cases import ATTENTION, BLOCK, AttentionCase
from benchmarks.peers import PEERS
from kdsl.errors import KdslError, UnsupportedError

LIMIT = 0.01
"""Relative Frobenius error above which nothing is timed: bf16 operands give 0.0023."""


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case: ours first, then the peers that are installed and can compute it."""
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for case in (ATTENTION[name] for name in cases or ATTENTION):
        tensors, kept = inputs(case)
        runs, errors = {}, {}
        for name, make in {"kdsl": ours, **{p: PEERS[p] for p in peers}}.items():
            try:
                call = make(tensors, kept) if name != "kdsl" else ours(tensors, kept, case)
                error = relative_error(call(), tensors, kept)
            except (ImportError, KdslError) as reason:
                print(
                    f"{case.id:22} {name:17} left out: {str(reason).splitlines()[0]}",
                    file=sys.stderr,
                )
                continue
            if not error < LIMIT:
                print(
                    f"{case.id:22} {name:17} WRONG: error {error:.4f}, not timed", file=sys.stderr
                )
                continue
            runs[name], errors[name] = call, error
        batch, heads, tokens, head_dim = case.shape
        density = float(kept.mean())
        work = 4.0 * batch * heads * tokens * tokens * head_dim * density
        for name, ms in timing.interleaved(runs).items():
            after = relative_error(runs[name](), tensors, kept)
            if not after < LIMIT:
                said = f"{case.id:22} {name:17} WRONG after timing: error {after:.4f}"
                print(said, file=sys.stderr)
                continue
            yield {
                "suite": "attention", "case": case.id, "impl": name, "dtype": case.dtype,
                "ms": round(ms, 5), "work": work, "unit": "flop", "error": round(errors[name], 6),
                "density": round(density, 6), "run": run, "gpu": gpu, "commit": commit,
                "sources": sources, "versions": versions, "date": rows.today(),
            }  # fmt: skip
        del tensors, runs
        torch.cuda.empty_cache()


def inputs(case: AttentionCase) -> tuple[tuple[Any, Any, Any], npt.NDArray[np.bool_]]:
    """Seeded Gaussian q, k, v and the kept blocks."""
    import torch

    dtype = getattr(torch, case.dtype)
    g = torch.Generator("cuda").manual_seed(case.seed)
    q, k, v = (torch.randn(case.shape, generator=g, device="cuda", dtype=dtype) for _ in range(3))
    return (q, k, v), case.plan()


def ours(
    tensors: tuple[Any, Any, Any], kept: npt.NDArray[np.bool_], case: AttentionCase
) -> Callable[[], Any]:
    """The product as a user gets it: build, bind, call."""
    op = kdsl.build(case.spec, tables={"plan": kept} if case.spec.open_tables else None)
    return lambda: op(*tensors)


def relative_error(out: Any, tensors: tuple[Any, Any, Any], kept: npt.NDArray[np.bool_]) -> float:
    """Relative Frobenius error in float64 on sampled query blocks of the first and last head.

    NaN where the output does not hold a number everywhere.
    """
    import torch

    q, k, v = tensors
    if not bool(out.isfinite().all()):
        return float("nan")
    heads, n = kept.shape[:2]
    diff = norm = 0.0
    for head in {0, heads - 1}:
        for row in sorted({0, n // 3, n - 1}):
            part = slice(row * BLOCK, (row + 1) * BLOCK)
            score = q[0, head, part].double() @ k[0, head].double().T * q.shape[-1] ** -0.5
            keep = torch.from_numpy(kept[head, row]).to(q.device).repeat_interleave(BLOCK)
            score.masked_fill_(~keep[None, : k.shape[2]], -float("inf"))
            want = score.softmax(-1) @ v[0, head].double()
            diff += float((out[0, head, part].double() - want).square().sum())
            norm += float(want.square().sum())
    return float((diff / norm) ** 0.5)
