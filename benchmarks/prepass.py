"""The prepass suite: q, k and v into attention's operands, beside a plain copy and torch.compile.

The copy moves as many bytes as must move: everything in and out once, and a second time what is
read again because something runs over all tokens (k's mean, v's scales) or all heads of one.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import kdsl
from benchmarks import rows, timing
from benchmarks.cases import PREPASS
from benchmarks.lists import captured
from kdsl.errors import UnsupportedError
from kdsl.kernels.layouts import in_torch
from kdsl.kernels.prepass import truth
from kdsl.layouts import CODES
from kdsl.layouts.attention import lane_order, padded
from kdsl.specs import Prepass

SLACK = 1.02
"""How much more error than that of exact arithmetic is still right: codes at borders alone."""

Tensors = Mapping[str, Any]
Call = Callable[[Tensors], Tensors]


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case, once checked; prints the time over that of a copy of the bytes.

    The copy and torch.compile always run beside it; ``peers`` is there because every suite takes
    it.
    """
    import torch

    del peers
    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for case in (PREPASS[name] for name in cases or PREPASS):
        given = made_inputs(case.spec, "cuda")
        exact = exact_numbers(case.spec, given)
        limit = SLACK * exact_error(case.spec, exact)
        graphs, errors = {"copy": copy(case.work)}, {"copy": 0.0}
        for name, make in (("kdsl", ours), ("torch.compile", compiled)):
            graph, made = in_graph(make(case.spec), given)
            graph.replay()
            error = relative_error(case.spec, exact, made)
            if not error <= limit:
                print(f"{case.id:22} {name:17} WRONG: error {error:.5f}", file=sys.stderr)
                continue
            graphs[name], errors[name] = graph, error
        times = timing.interleaved({name: graph.replay for name, graph in graphs.items()})
        for name, ms in times.items():
            if name == "kdsl":
                said = ", ".join(f"{ms / t:.2f}x {n}" for n, t in times.items() if n != name)
                print(f"{case.id:22} {said}, {case.work / 1e6:.0f} MB")
            yield {
                "suite": "prepass", "case": case.id, "impl": name, "dtype": case.spec.dtype,
                "ms": round(ms, 6), "work": float(case.work), "unit": "byte",
                "error": round(errors[name], 6), "density": 1.0, "run": run, "gpu": gpu,
                "commit": commit, "sources": sources, "versions": versions, "date": rows.today(),
            }  # fmt: skip
        graphs.clear()
        del given, exact, graph, made
        torch.cuda.empty_cache()


def in_graph(call: Call, given: Tensors) -> tuple[Any, Tensors]:
    """A call in a graph, and what it writes, which lives as long as the graph."""
    made: list[Tensors] = []

    def once() -> None:
        made[:] = [call(given)]

    graph = captured(once)
    graph.kept = made[0]
    return graph, made[0]


def made_inputs(spec: Prepass, device: str, seed: int = 0) -> dict[str, Any]:
    """Seeded Gaussian q, k and v as views of their projections, k with means of its own; weights
    around one, angles all round."""
    import torch

    g = torch.Generator(device).manual_seed(seed)
    out: dict[str, Any] = {}
    for name, shape in spec.inputs.items():
        if name in ("q", "k", "v"):
            heads, tokens, d = shape
            x = torch.randn((1, tokens, heads * d), generator=g, device=device)
            x += torch.randn(heads * d, generator=g, device=device) * (name == "k")
            x = x.to(getattr(torch, spec.dtype))
            out[name] = x.view(1, tokens, heads, d).transpose(1, 2)
        else:
            out[name] = torch.randn(shape, generator=g, device=device)
    for name in out:
        if name.endswith("weight"):
            out[name] = 1 + 0.1 * out[name]
    if spec.rope is not None:
        angle = 3 * out["cos"]
        out["cos"], out["sin"] = angle.cos(), angle.sin()
    return out


def ours(spec: Prepass) -> Call:
    """The product as a user gets it."""
    op = kdsl.build(spec)

    def call(given: Tensors) -> Tensors:
        made = op(*given.values())
        beside = {n: getattr(made, n) for n in ("k_mean", "q_pool", "k_pool")}
        return {**dict(zip(spec.layout.operands, made.operands, strict=True)), **beside}

    return call


def compiled(spec: Prepass) -> Call:
    """The same in torch, compiled."""
    import torch

    torch._dynamo.reset()
    made: Call = torch.compile(plain(spec, "cuda"), dynamic=False, fullgraph=True)
    return made


def plain(spec: Prepass, device: str) -> Call:
    """Exactly the spec in plain torch, for layouts with scales by blocks of tokens and e4m3 v."""
    import torch

    tokens, layout = spec.grid.tokens, spec.layout
    index = _index(spec, device)
    lanes = torch.from_numpy(lane_order(padded(tokens))).to(device)

    def moved(x: Any, shared: int) -> Any:
        if index is None:
            return x
        head = torch.arange(x.shape[1], device=device)[:, None]
        return x[:, head, index[::shared]]

    def turned(given: Tensors, name: str) -> Any:
        x, d = given[name].float(), spec.head_dim
        if spec.norm == "layer":
            x = torch.nn.functional.layer_norm(
                x, (d,), given[f"{name}_weight"], given[f"{name}_bias"], spec.eps
            )
        elif spec.norm is not None:
            axes = (1, 3) if spec.norm == "rms_token" else (3,)
            weight = given[f"{name}_weight"].view(-1, 1, d)
            x = x * (x.square().mean(axes, keepdim=True) + spec.eps).rsqrt() * weight
        if spec.rope is not None:
            start = spec.grid.visual_start
            rest, visual = x[:, :, :start], x[:, :, start:]
            a, b = visual[..., ::2], visual[..., 1::2]
            cos, sin = given["cos"], given["sin"]
            both = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
            x = torch.cat([rest, both], 2)
        return x

    def blocks(x: Any, size: int) -> Any:
        x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % size))
        return x.unflatten(2, (-1, size))

    def coded(x: Any, size: int, code: str) -> tuple[Any, Any]:
        parts = blocks(x, size)
        scale = parts.abs().amax((3, 4), keepdim=True) / CODES[code]
        codes = (parts / scale).round().to(torch.int8).flatten(2, 3)[:, :, :tokens]
        return codes.contiguous(), scale[..., 0, 0, None].squeeze(-1).flatten(2)[..., None]

    def pooled(x: Any, size: int) -> Any:
        count = torch.full((-(-tokens // size),), size, device=device)
        count[-1] = tokens - (len(count) - 1) * size
        return blocks(x, size).sum(3) / count[:, None]

    def call(given: Tensors) -> Tensors:
        q, k = turned(given, "q"), turned(given, "k")
        out: dict[str, Any] = {}
        if spec.smooth:
            mean = k.mean(2)
            k, out["k_mean"] = k - mean[:, :, None], mean
        q, k = moved(q, 1), moved(k, spec.group)
        out["q"], out["q_scale"] = coded(q, layout.q.group[0], layout.q.code)  # type: ignore[index,arg-type]
        out["k"], out["k_scale"] = coded(k, layout.k.group[0], layout.k.code)  # type: ignore[index,arg-type]
        v = given["v"].float()
        scale = v.abs().amax(2, keepdim=True) / CODES["e4m3"]
        v = moved(v, spec.group) / scale
        v = torch.nn.functional.pad(v, (0, 0, 0, padded(tokens) - tokens))
        codes = v[:, :, lanes].to(torch.float8_e4m3fn)
        out["v"], out["v_scale"] = codes.transpose(2, 3).contiguous(), scale
        if spec.pool is not None:
            out["q_pool"], out["k_pool"] = pooled(q, spec.pool[0]), pooled(k, spec.pool[1])
        return out

    return call


def copy(work: int) -> Any:
    """A plain copy that reads and writes as many bytes together, in a graph."""
    import torch

    pair = torch.zeros((2, work // 2), dtype=torch.uint8, device="cuda")
    graph = captured(lambda: pair[1].copy_(pair[0]))
    graph.kept = pair
    return graph


def _index(spec: Prepass, device: str) -> Any:
    import torch

    if not spec.moves:
        return None
    index = np.broadcast_to(
        np.atleast_2d(spec.stored_order.index()), (spec.heads, spec.grid.tokens)
    )
    return torch.from_numpy(index.copy()).to(device)


def exact_numbers(spec: Prepass, given: Tensors) -> dict[str, list[Any]]:
    """q, k and v of the first and the last head before they are quantized, in stored order."""
    out: dict[str, list[Any]] = {"q": [], "k": [], "v": []}
    index = _index(spec, given["q"].device)
    for name, shared in (("q", 1), ("k", spec.group), ("v", spec.group)):
        root = truth._root_of_tokens(spec, given[name][0]) if name != "v" else None
        for head in (0, given[name].shape[1] - 1):
            if name == "v":
                x = given["v"][0, head].double()
            else:
                numbers = truth.transformed(spec, given, name, 0, head, root)
                if name == "k" and spec.smooth:
                    numbers, _ = truth.smoothed(spec, numbers)
                x = numbers.value
            out[name].append(x if index is None else x[index[head * shared]])
    return out


def exact_error(spec: Prepass, exact: Mapping[str, list[Any]]) -> float:
    """Relative Frobenius error of the codes that exact arithmetic gives."""
    layouts = {"q": spec.layout.q, "k": spec.layout.k, "v": spec.layout.v}
    pairs = []
    for name, layout in layouts.items():
        assert layout is not None
        for x in exact[name]:
            codes, scale = in_torch.quantize(layout, x)
            held = scale if name == "v" else in_torch.spread(layout, scale, len(x))
            pairs.append((codes.float().double() * held.double(), x))
    return _error(pairs)


def relative_error(spec: Prepass, exact: Mapping[str, list[Any]], made: Tensors) -> float:
    """The same of a result's codes."""
    import torch

    pairs, tokens = [], spec.grid.tokens
    for name, layout in (("q", spec.layout.q), ("k", spec.layout.k)):
        for head, x in zip((0, made[name].shape[1] - 1), exact[name], strict=True):
            held = in_torch.spread(layout, made[f"{name}_scale"][0, head], tokens)
            pairs.append((made[name][0, head].double() * held.double(), x))
    back = torch.from_numpy(np.argsort(lane_order(padded(tokens)))).to(made["v"].device)
    for head, x in zip((0, made["v"].shape[1] - 1), exact["v"], strict=True):
        codes = made["v"][0, head].float().T
        codes = codes[back] if spec.layout.v_stored == "lanes" else codes
        pairs.append((codes[:tokens].double() * made["v_scale"][0, head].double(), x))
    return _error(pairs)


def _error(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Over q, k and v alike: each head's numbers relative to their own size."""
    return float(sum(((a - b).norm() / b.norm()) ** 2 for a, b in pairs) / len(pairs)) ** 0.5
