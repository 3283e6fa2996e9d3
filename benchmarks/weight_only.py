"""The weight_only suite: products of few 16-bit rows with weights of few bits.

Everything runs in CUDA graphs over weights that together exceed the L2 cache three times, as those
of a model's layers do.  ``read`` is a plain sum of as many bytes, ``torch bf16`` the product with
16-bit weights; quack's 4-bit product runs beside it where it is installed.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kdsl
from benchmarks import rows, timing
from benchmarks.attention import VARIANTS
from benchmarks.cases import WEIGHT_ONLY, WeightOnlyCase
from benchmarks.lists import captured
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.kernels.matmul.weight_only.truth import numbers
from kdsl.kernels.matmul.weight_only.tunable import traffic

SHARE_OF_L2 = 3.0
"""Bytes of all weights over those of the cache."""
MOST_ERROR = 2.0**-8
"""Relative Frobenius error beyond which a result is wrong: half a unit in bfloat16's last place."""


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case, once checked; prints the share of a plain read's rate.

    ``peers`` may name backends of ours, such as ``kdsl/triton``.
    """
    import torch

    variants = {p: VARIANTS[p] for p in peers if p in VARIANTS}
    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    for case in (WEIGHT_ONLY[name] for name in cases or WEIGHT_ONLY):
        work = traffic(case.spec)
        count = max(4, int(-(-SHARE_OF_L2 * l2 // work)))
        graphs, errors = {}, {}
        for name, (calls, wanted) in implementations(case, count, variants).items():
            found: list[Any] = []

            def each(calls: Any = calls, found: Any = found) -> None:
                found.clear()
                found.extend(call() for call in calls)

            graph = captured(each)
            graph.kept = (calls, found)
            graph.replay()
            error = relative_error(found[0], wanted)
            if not error <= MOST_ERROR:
                print(f"{case.id:22} {name:17} WRONG: error {error:.5f}", file=sys.stderr)
                continue
            graphs[name], errors[name] = graph, error
        times = timing.interleaved({name: graph.replay for name, graph in graphs.items()})
        for name, ms in times.items():
            share = times["read"] / ms
            ms /= count
            print(f"{case.id:22} {name:12} {ms * 1e3:7.2f} us, {share:.1%} of a read's rate")
            yield {
                "suite": "weight_only", "case": case.id, "impl": name, "dtype": case.spec.dtype,
                "ms": round(ms, 6), "work": float(work), "unit": "byte",
                "error": round(errors[name], 6), "density": 1.0, "run": run, "gpu": gpu,
                "commit": commit, "sources": sources, "versions": versions, "date": rows.today(),
            }  # fmt: skip
        del graphs
        torch.cuda.empty_cache()


def implementations(
    case: WeightOnlyCase, count: int, variants: dict[str, str]
) -> dict[str, tuple[list[Callable[[], Any]], Any]]:
    """Calls, one a weight, and what the first one gives in float64, by name."""
    import torch

    spec = case.spec
    x = torch.randn(spec.x_shape, device="cuda", dtype=torch.bfloat16)
    made = [drawn(case, "cuda") for _ in range(count)]
    wanted = x.double() @ numbers(spec, made[0])[0].T
    out: dict[str, tuple[list[Callable[[], Any]], Any]] = {}
    for name, backend in {"kdsl": None, **variants}.items():
        try:
            op = kdsl.build(spec, backend=backend)
        except (ConfigError, UnsupportedError) as error:
            if backend is None:
                raise
            print(f"{case.id:22} {name:17} left out: {error}", file=sys.stderr)
            continue
        out[name] = [lambda w=w, op=op: op(x, *w) for w in (list(m.values()) for m in made)], wanted
    plain = [torch.zeros(traffic(spec) // 4, device="cuda") for _ in range(count)]
    out["read"] = [t.sum for t in plain], torch.zeros((), dtype=torch.float64, device="cuda")
    wide = [torch.randn(spec.weight_shape, device="cuda").bfloat16() for _ in range(count)]
    product = x.double() @ wide[0].double().T
    out["torch bf16"] = [lambda w=w: torch.nn.functional.linear(x, w) for w in wide], product
    if case.bits == 4:
        out |= quack(case, x, count)
    return out


def drawn(case: WeightOnlyCase, device: str) -> dict[str, Any]:
    """Random codes and scales, by the operands' names."""
    import torch

    out = {}
    for name, (shape, dtype) in case.spec.operands.items():
        if name == "x":
            continue
        t = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        out[name] = t.uniform_(1e-4, 4e-4) if t.is_floating_point() else t.random_(0, 256)
    return out


def quack(case: WeightOnlyCase, x: Any, count: int) -> dict[str, Any]:
    """quack's product of 16-bit x with four bits, where it is installed."""
    import torch

    try:
        from quack.gemm_w4 import gemm_w4a16
        from quack.operand_transform.formats import decode_format
    except ImportError as error:
        print(f"{case.id:22} quack             left out: {error}", file=sys.stderr)
        return {}
    form, columns = decode_format("int4"), case.spec.columns
    calls, wanted = [], None
    for _ in range(count):
        w = torch.randn(case.spec.weight_shape, device="cuda", dtype=torch.bfloat16) * 0.02
        codes, scales = form.quantize_reference(w)
        if wanted is None:
            wanted = x.double() @ form.dequant_reference(codes, scales).double().T
        p = form.prepare(codes, scales)
        calls.append(lambda p=p: gemm_w4a16(x, p[0], p[1], wformat="int4", n_out=columns))
        del w
    return {"quack W4A16": (calls, wanted)}


def relative_error(found: Any, wanted: Any) -> float:
    """Relative Frobenius error; absolute where nothing is wanted."""
    off = (found.double() - wanted).norm()
    return float(off / wanted.norm().clamp(min=1e-30)) if wanted.any() else float(off)
