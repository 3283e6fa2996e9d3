"""The attention suite: random block masks and dense, forward and gradients."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import kdsl
from benchmarks import rows, timing
from benchmarks.cases import ATTENTION, BLOCK, AttentionCase
from benchmarks.peers import PEERS, Peer, Prepared, own
from kdsl.errors import KdslError, UnsupportedError
from kdsl.kernels.attention.config import BACKENDS

VARIANTS = {f"kdsl/{template}": backend for template, backend in BACKENDS.items()}
"""Our templates by the name that rows carry; `build(backend=...)` takes them."""

Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Call:
    """What is timed, and how far its last results are off."""

    run: Callable[[], Any]
    error: Callable[[], float]


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case: ours first, then the peers that are installed and can compute it.

    ``peers`` may name `VARIANTS` of ours, too.  In cases with a layout ours begins at quantized
    operands, ``"kdsl/whole"`` at 16-bit ones, and the peers compute in 16 bits.
    Gradients are timed under torch's deterministic algorithms, too.
    """
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for case in (ATTENTION[name] for name in cases or ATTENTION):
        tensors, kept = inputs(case)
        calls: dict[str, Call] = {}
        errors: dict[str, float] = {}
        truth = Truth(case, tensors, kept)
        backends = {"kdsl": None, **{p: VARIANTS[p] for p in peers if p in VARIANTS}}
        makers: dict[str, Peer] = {name: ours(case, backend) for name, backend in backends.items()}
        if case.layout:
            makers["kdsl/whole"] = ours(case, whole=True)
        makers |= {p: PEERS[p] for p in peers if p in PEERS}
        for name, make in makers.items():
            try:
                call = prepare(make, case, tensors, kept, truth)
                error = call.error()
            except (ImportError, KdslError) as reason:
                said = f"left out: {str(reason).splitlines()[0]}"
                print(f"{case.id:22} {name:17} {said}", file=sys.stderr)
                continue
            if not error < case.limit:
                said = f"WRONG: error {error:.4f}, not timed"
                print(f"{case.id:22} {name:17} {said}", file=sys.stderr)
                continue
            calls[name], errors[name] = call, error
        if case.backward and "kdsl" in calls:
            calls["kdsl/deterministic"] = call = deterministic(calls["kdsl"])
            errors["kdsl/deterministic"] = call.error()
        density = float(kept.mean())
        for name, ms in timing.interleaved({n: c.run for n, c in calls.items()}).items():
            after = calls[name].error()
            if not after < case.limit:
                said = f"{case.id:22} {name:17} WRONG after timing: error {after:.4f}"
                print(said, file=sys.stderr)
                continue
            yield {
                "suite": "attention", "case": case.id, "impl": name,
                "dtype": (name not in PEERS and case.layout) or case.dtype,
                "ms": round(ms, 5), "work": case.work * density, "unit": "flop",
                "error": round(errors[name], 6), "density": round(density, 6), "run": run,
                "gpu": gpu, "commit": commit, "sources": sources, "versions": versions,
                "date": rows.today(),
            }  # fmt: skip
        del tensors, calls, truth
        torch.cuda.empty_cache()


def inputs(case: AttentionCase) -> tuple[tuple[Any, ...], Kept]:
    """Seeded Gaussian q, k, v and gradient of the output, and the kept blocks."""
    import torch

    dtype = getattr(torch, case.dtype)
    g = torch.Generator("cuda").manual_seed(case.seed)
    made = (torch.randn(case.shape, generator=g, device="cuda", dtype=dtype) for _ in range(4))
    return tuple(made), case.plan()


def ours(case: AttentionCase, backend: str | None = None, *, whole: bool = False) -> Peer:
    """The product as a user gets it, or as ``backend`` makes it: build, bind, call.

    With a layout operands are quantized before, unless ``whole``.
    """

    def make(tensors: tuple[Any, Any, Any], kept: Kept, backward: bool) -> Prepared:
        tables = {"plan": kept} if case.spec.open_tables else None
        op = kdsl.build(case.spec, tables=tables, backend=backend)
        mine = own(tensors, backward)
        given = op.quantize(*mine) if case.layout and not whole else mine
        return Prepared(lambda: op(*given), mine)

    return make


def prepare(
    make: Peer, case: AttentionCase, tensors: tuple[Any, ...], kept: Kept, truth: Truth
) -> Call:
    """The forward of an implementation, or its gradients after a forward that is not timed."""
    import torch

    q, k, v, dout = tensors
    made = make((q, k, v), kept, case.backward)
    if not case.backward:
        return Call(made.run, lambda: truth.of_output(made.turned(made.run())))
    out, grad = made.run(), made.turned(dout).contiguous()

    def run() -> Any:
        return torch.autograd.grad(out, made.tensors, grad, retain_graph=True)

    return Call(run, lambda: truth.of_gradients([made.turned(x) for x in run()]))


def deterministic(call: Call) -> Call:
    """The same under ``torch.use_deterministic_algorithms``."""
    import torch

    def under(made: Callable[[], Any]) -> Any:
        torch.use_deterministic_algorithms(True)
        try:
            return made()
        finally:
            torch.use_deterministic_algorithms(False)

    return Call(lambda: under(call.run), lambda: under(call.error))


class Truth:
    """Float64 results of the first and the last head, as far as a case needs them."""

    def __init__(self, case: AttentionCase, tensors: tuple[Any, ...], kept: Kept) -> None:
        self.tensors, self.kept = tensors, kept
        heads = sorted({0, case.shape[1] - 1})
        self.gradients = {h: self._gradients(h) for h in heads} if case.backward else {}

    def of_output(self, out: Any) -> float:
        """Relative Frobenius error on sampled query blocks, see `relative_error`."""
        q, k, v, _ = self.tensors
        return relative_error(out, (q, k, v), self.kept)

    def of_gradients(self, found: Sequence[Any]) -> float:
        """The worst relative Frobenius error of dQ, dK, dV; NaN where one is not a number."""
        if not all(bool(x.isfinite().all()) for x in found):
            return float("nan")
        worst = 0.0
        for i, x in enumerate(found):
            pairs = [(x[0, h].double(), wanted[i]) for h, wanted in self.gradients.items()]
            diff = sum(float((a - b).square().sum()) for a, b in pairs)
            norm = sum(float(b.square().sum()) for _, b in pairs)
            worst = max(worst, (diff / norm) ** 0.5)
        return worst

    def _gradients(self, head: int) -> tuple[Any, Any, Any]:
        """dQ, dK and dV of one head, a row of blocks at a time."""
        import torch

        q, k, v, do = (x[0, head].double() for x in self.tensors)
        scale = q.shape[-1] ** -0.5
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for row in range(self.kept.shape[1]):
            part = slice(row * BLOCK, (row + 1) * BLOCK)
            keep = torch.from_numpy(self.kept[head, row]).to(q.device).repeat_interleave(BLOCK)
            score = (q[part] @ k.T * scale).masked_fill_(~keep[None, : len(k)], -float("inf"))
            p = score.softmax(-1)
            dp = do[part] @ v.T
            ds = p * (dp - (p * dp).sum(-1, keepdim=True))
            dq[part] = scale * ds @ k
            dk += scale * ds.T @ q[part]
            dv += p.T @ do[part]
        return dq, dk, dv


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
