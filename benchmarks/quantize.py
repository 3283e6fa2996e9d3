"""The quantize suite: rotate and quantize in one pass, beside a plain copy and torch.compile.

Everything runs in CUDA graphs over buffers that together exceed the L2 cache three times, each
call on its own input and into its own output, so that what is timed is memory.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import kdsl
from benchmarks import rows, timing
from benchmarks.cases import QUANTIZE, QuantizeCase
from benchmarks.lists import captured
from kdsl.errors import UnsupportedError
from kdsl.layouts.hadamard import hadamard

SHARE_OF_L2 = 3.0
"""Bytes of all buffers over those of the cache."""
LEAST, MOST = 4, 256
"""Calls in a graph."""
SAMPLED = 256
"""Rows whose error is measured."""
SLACK = 1.02
"""How much more error than that of exact arithmetic is still right: codes at borders alone."""

Call = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class Made:
    """A graph of calls, one a buffer, and the first one's codes and scales."""

    graph: Any
    codes: Any
    scales: Any


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case, once checked; prints the share of a copy's rate.

    The copy and torch.compile always run beside it; ``peers`` is there because every suite takes
    it.
    """
    import torch

    del peers
    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for case in (QUANTIZE[name] for name in cases or QUANTIZE):
        inputs = made_inputs(case)
        graphs = {"copy": copies(case, len(inputs))}
        errors = {"copy": 0.0}
        limit = SLACK * exact_error(case, inputs[0])
        for name, call in (("kdsl", ours(case)), ("torch.compile", compiled(case))):
            made = in_graph(call, inputs)
            made.graph.replay()
            error = relative_error(case, inputs[0], made)
            if not error <= limit:
                print(f"{case.id:22} {name:17} WRONG: error {error:.5f}", file=sys.stderr)
                continue
            graphs[name], errors[name] = made.graph, error
        times = timing.interleaved({name: graph.replay for name, graph in graphs.items()})
        for name, ms in times.items():
            ms /= len(inputs)
            if name == "kdsl":
                share = times["copy"] / times["kdsl"]
                print(f"{case.id:22} {share:.1%} of a copy's rate, {len(inputs)} buffers")
            yield {
                "suite": "quantize", "case": case.id, "impl": name, "dtype": case.spec.dtype,
                "ms": round(ms, 6), "work": float(case.work), "unit": "byte",
                "error": round(errors[name], 6), "density": 1.0, "run": run, "gpu": gpu,
                "commit": commit, "sources": sources, "versions": versions, "date": rows.today(),
            }  # fmt: skip
        del inputs, graphs
        torch.cuda.empty_cache()


def buffers(case: QuantizeCase, l2_bytes: int) -> int:
    """How many inputs it takes that the cache holds none of them when its turn comes."""
    return int(min(max(-(-SHARE_OF_L2 * l2_bytes // case.work), LEAST), MOST))


def made_inputs(case: QuantizeCase) -> list[Any]:
    """Seeded Gaussian inputs with columns that stand out."""
    import torch

    count = buffers(case, torch.cuda.get_device_properties(0).L2_cache_size)
    g = torch.Generator("cuda").manual_seed(0)
    shape, dtype = (case.spec.rows, case.spec.columns), getattr(torch, case.spec.dtype)
    made = [torch.randn(shape, generator=g, device="cuda", dtype=dtype) for _ in range(count)]
    for x in made:
        x[:, ::97] *= 16
    return made


def in_graph(call: Callable[[Any], tuple[Any, Any]], inputs: Sequence[Any]) -> Made:
    """Calls on each input in one graph; every output keeps memory of its own."""
    kept: list[tuple[Any, Any]] = []

    def each() -> None:
        kept.clear()
        kept.extend(call(x) for x in inputs)

    graph = captured(each)
    # What a graph reads and writes lives as long as it does.
    graph.kept = list(kept)
    return Made(graph, *kept[0])


def copies(case: QuantizeCase, count: int) -> Any:
    """Plain copies that read and write as many bytes together, in a graph."""
    import torch

    half = case.work // 2
    pairs = torch.empty((count, 2, half), dtype=torch.uint8, device="cuda")
    pairs.zero_()

    def each() -> None:
        for source, target in pairs:
            target.copy_(source)

    graph = captured(each)
    graph.kept = pairs
    return graph


def ours(case: QuantizeCase) -> Callable[[Any], tuple[Any, Any]]:
    """The product as a user gets it."""
    return kdsl.build(case.spec)


def compiled(case: QuantizeCase) -> Callable[[Any], tuple[Any, Any]]:
    """The same in torch, compiled."""
    import torch

    torch._dynamo.reset()
    turn = torch.from_numpy(hadamard(case.block).astype(np.float32)).cuda()
    turn = turn.to(getattr(torch, case.spec.dtype))

    def plain(x: Any) -> tuple[Any, Any]:
        y = (x.reshape(-1, case.block) @ turn).float() / case.block**0.5
        return coded(case, y.reshape(len(x), -1))

    return torch.compile(plain, dynamic=False, fullgraph=True)


def coded(case: QuantizeCase, y: Any) -> tuple[Any, Any]:
    """(codes, scales) of rotated numbers in plain torch."""
    import torch

    groups = y.reshape(len(y), -1, case.group or y.shape[1])
    limit = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}[case.code]
    scale = groups.abs().amax(-1, keepdim=True) / limit
    t = (groups / scale).reshape(y.shape)
    if case.code == "fp8":
        codes = t.to(torch.float8_e4m3fn).view(torch.uint8)
    elif case.code == "int4":
        pattern = t.round().to(torch.int32) & 15
        codes = (pattern[:, ::2] | pattern[:, 1::2] << 4).to(torch.uint8)
    else:
        codes = t.round().to(torch.int8)
    return codes, scale.squeeze(-1)


def rotated(case: QuantizeCase, x: Any) -> Any:
    """What is quantized, of the first rows, in float64."""
    import torch

    turn = torch.from_numpy(hadamard(case.block).astype(np.float64)).to(x.device)
    sample = x[:SAMPLED].double()
    return (sample.reshape(-1, case.block) @ turn / case.block**0.5).reshape(sample.shape)


def exact_error(case: QuantizeCase, x: Any) -> float:
    """Relative Frobenius error of the codes that exact arithmetic gives."""
    y = rotated(case, x)
    return _error(case, y, *coded(case, y))


def relative_error(case: QuantizeCase, x: Any, made: Made) -> float:
    """The same of a result's first rows."""
    return _error(case, rotated(case, x), made.codes[:SAMPLED], made.scales[:SAMPLED])


def _error(case: QuantizeCase, y: Any, codes: Any, scales: Any) -> float:
    from kdsl.kernels.quantize.facts import coding
    from kdsl.kernels.quantize.truth import values_of

    held = values_of(coding(case.spec.format, case.spec.columns), codes, case.spec.columns)
    back = held.reshape(len(y), scales.shape[1], -1) * scales.double()[..., None]
    return float((back.reshape(y.shape) - y).norm() / y.norm())
