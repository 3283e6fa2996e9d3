"""The matmul suite: products of quantized operands with an epilogue, beside torch's own.

Peers are `torch._scaled_mm` by rows and columns on e4m3, `torch._int_mm`, and a bf16 product, each
with the same epilogue compiled.  Every implementation is held against the product of its own
operands.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import kdsl
from benchmarks import rows, timing
from benchmarks.attention import VARIANTS
from benchmarks.cases import MATMUL, MatmulCase
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.kernels.matmul.facts import Packed, view
from kdsl.kernels.matmul.truth import unpacked

SAMPLED = 256
"""Rows whose error is measured."""
MOST_ERROR = 2 * 2.0**-9
"""Relative Frobenius error beyond which a result is wrong: peers round to bf16 twice."""
CUT = 2.0**-14
"""Of a sum of e4m3 products, that each 32 of them cost in registers of 13 bits, on average and at
most: half of what is cut off, always towards zero."""
LIMITS = {"int8": 127.0, "fp8": 448.0}


@dataclass(frozen=True)
class Inputs:
    """Gaussian operands of a case in bf16 and as codes with scales, on the GPU."""

    x: Any
    weight: Any
    bias: Any
    residual: Any
    coded: Mapping[str, tuple[Any, Any, Any, Any]]
    """Codes and scales of x, then of the weight, by code."""
    few: Mapping[str, Any]
    """The weight's buffers where it has fewer than eight bits."""


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case, once checked.

    The peers of this suite always run beside it; ``peers`` may name `VARIANTS` of ours, too.
    """
    import torch

    variants = {p: VARIANTS[p] for p in peers if p in VARIANTS}
    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for case in (MATMUL[name] for name in cases or MATMUL):
        given = made_inputs(case, "cuda")
        calls, errors = {}, {}
        for name, call in implementations(case, given, variants).items():
            error = relative_error(case, given, name, call())
            if not error <= most_error(case, name):
                print(f"{case.id:22} {name:17} WRONG: error {error:.5f}", file=sys.stderr)
                continue
            calls[name], errors[name] = call, error
        for name, ms in timing.interleaved(calls).items():
            yield {
                "suite": "matmul", "case": case.id, "impl": name, "dtype": "bfloat16",
                "ms": round(ms, 6), "work": case.spec.flop, "unit": "flop",
                "error": round(errors[name], 6), "density": 1.0, "run": run, "gpu": gpu,
                "commit": commit, "sources": sources, "versions": versions, "date": rows.today(),
            }  # fmt: skip
        del given, calls
        torch.cuda.empty_cache()


def made_inputs(case: MatmulCase, device: str) -> Inputs:
    """Seeded operands; weights of the size that keeps results of the size of 1."""
    import torch

    spec, g = case.spec, torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Any:
        return torch.randn(shape, generator=g, device=device).bfloat16()

    x, weight = drawn(*spec.x_shape), drawn(*spec.weight_shape) * spec.inner**-0.5
    bias, residual = drawn(spec.columns), drawn(spec.rows, spec.columns) if spec.residual else None
    made = {code: (*coded(x, code), *coded(weight, code)) for code in ("int8", "fp8")}
    few = {} if case.bits == 8 else few_bits(case, weight)
    return Inputs(x, weight, bias, residual, made, few)


def few_bits(case: MatmulCase, weight: Any) -> dict[str, Any]:
    """A weight's buffers in its format, by the largest of each group and nearest entries."""
    import torch

    held = view(case.spec).weight
    assert isinstance(held, Packed)
    code = case.spec.weight.level.field.code
    book = torch.from_numpy(code.decode(np.arange(1 << held.bits))).to(weight.device)
    groups = weight.float().reshape(len(weight), -1, held.group)
    scales = (groups.abs().amax(-1) / float(book.abs().max())).half()
    entries, order = book.sort()
    t = (groups / scales.float()[..., None]).reshape(weight.shape)
    pattern = order[torch.bucketize(t, (entries[1:] + entries[:-1]) / 2)]

    def bytes_of(fields: Any, each: int) -> Any:
        parts = fields.reshape(len(fields), -1, each)
        by = torch.arange(each, device=fields.device) * (8 // each)
        return (parts << by).sum(-1).to(torch.uint8)

    out = {f"weight_{held.scales}": scales}
    if held.bits == 4:
        return {f"weight_{held.codes}": bytes_of(pattern, 2), **out}
    planes = {held.codes: bytes_of(pattern & 3, 4), held.signs: bytes_of(pattern >> 2, 8)}
    return {**{f"weight_{n}": p for n, p in planes.items()}, **out}


def coded(x: Any, code: str) -> tuple[Any, Any]:
    """Codes and scales ``[rows, 1]`` of a matrix, a scale a row."""
    import torch

    scale = x.abs().amax(-1, keepdim=True).float() / LIMITS[code]
    t = x.float() / scale
    codes = t.round().to(torch.int8) if code == "int8" else t.to(torch.float8_e4m3fn)
    return codes, scale


def implementations(
    case: MatmulCase, given: Inputs, variants: Mapping[str, str]
) -> dict[str, Callable[[], Any]]:
    """Calls without arguments: ours, variants of it that take the case, and the peers, by name."""
    import torch

    torch._dynamo.reset()
    x, sx, w, sw = given.coded[case.code]
    buffers = given.few or {"weight_codes": as_stored(w), "weight_scales": sw}
    rest = (as_stored(x), sx, *([given.residual] if case.spec.residual else []))
    x8, s8, w8, t8 = given.coded["fp8"]
    xi, si, wi, ti = given.coded["int8"]

    def scaled() -> Any:
        y = torch._scaled_mm(x8, w8.T, s8, t8.T, out_dtype=torch.bfloat16, use_fast_accum=True)
        return epilogue(case, y.float(), given)

    def integer() -> Any:
        return epilogue(case, torch._int_mm(xi, wi.T).float() * si * ti.T, given)

    def plain() -> Any:
        return epilogue(case, (given.x @ given.weight.T).float(), given)

    peers = {"torch._scaled_mm": scaled, "torch._int_mm": integer, "torch bf16": plain}
    compiled = {
        name: torch.compile(call, dynamic=False, fullgraph=True) for name, call in peers.items()
    }
    own: dict[str, Callable[[], Any]] = {}
    for name, backend in {"kdsl": None, **variants}.items():
        try:
            op = kdsl.build(case.spec, backend=backend).bind({**buffers, "bias": given.bias})
        except (ConfigError, UnsupportedError) as error:
            if backend is None:
                raise
            print(f"{case.id:22} {name:17} left out: {error}", file=sys.stderr)
        else:
            own[name] = partial(op, *rest)
    return {**own, **compiled}


def as_stored(codes: Any) -> Any:
    """Codes as the buffer of their format: e4m3 as bytes."""
    import torch

    return codes if codes.dtype == torch.int8 else codes.view(torch.uint8)


def epilogue(case: MatmulCase, y: Any, given: Inputs, rows: slice = slice(None)) -> Any:
    """Bias, and GELU or residual in the type of ``y``, rounded to bf16 if that is float32.

    Compiled with the peers: of the case it reads plain fields, as Dynamo cannot follow a spec.
    """
    import torch

    y = y + given.bias
    if case.residual:
        y = y + given.residual[rows]
    else:
        y = torch.nn.functional.gelu(y, approximate="tanh")
    return y.bfloat16() if y.dtype == torch.float32 else y


def most_error(case: MatmulCase, name: str) -> float:
    """Relative Frobenius error beyond which an implementation's result is wrong."""
    code = {"torch._scaled_mm": "fp8", "torch._int_mm": "int8", "torch bf16": ""}
    cut = code.get(name, case.code) == "fp8"
    return MOST_ERROR + cut * case.spec.inner / 32 * CUT


def relative_error(case: MatmulCase, given: Inputs, name: str, found: Any) -> float:
    """Relative Frobenius error of sampled rows against float64 from its own operands."""
    sample = slice(0, SAMPLED)
    if name == "torch bf16":
        y = given.x[sample].double() @ given.weight.double().T
    else:
        code = {"torch._scaled_mm": "fp8", "torch._int_mm": "int8"}.get(name, case.code)
        x, sx, w, sw = given.coded[code]
        weight = w.double() * sw.double()
        held = view(case.spec).weight
        if name.startswith("kdsl") and isinstance(held, Packed):
            weight = unpacked(held, given.few)
        y = (x[sample].double() * sx[sample].double()) @ weight.T
    wanted = epilogue(case, y, given, sample)
    return float((found[sample].double() - wanted).norm() / wanted.norm())
