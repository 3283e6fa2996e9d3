"""What tests of matmul share: specs, operands, and the comparison with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from kdsl import layouts
from kdsl.layouts.codebooks import NF4
from kdsl.layouts.codes import Int, Lut
from kdsl.layouts.format import Field
from kdsl.reference.matmul import matmul
from kdsl.specs import Matmul
from kdsl.specs.matmul import ACTIVATIONS


def packed(bits: int = 4, code: str = "int8", group: int = 128) -> layouts.Format:
    """Weights of four or three bits for a unit."""
    return layouts.slog(bits, None, group, "e4m3" if code == "fp8" else "int8")


def spec_of(code: str = "int8", asymmetric: bool = False, **fields: Any) -> Matmul:
    """A product of 8-bit operands, unless the fields say others."""
    plain = {
        "rows": 37, "inner": 208, "columns": 72, "dtype": "float16",
        "x": layouts.activations(code, None, asymmetric), "weight": layouts.w8("channel", code),
    }  # fmt: skip
    return Matmul(**{**plain, **fields})


@st.composite
def packed_matmuls(draw: st.DrawFn, dtypes: Sequence[str]) -> Matmul:
    """Any product with weights of four or three bits that the kernels compute."""
    code, group = draw(st.sampled_from(("int8", "fp8"))), draw(st.sampled_from((64, 128, 192)))
    uniform = layouts.Format(
        "uniform",
        replace(packed(4, code, group).level, field=Field("code", Int(4, bias=-8))),
        packed(4, code, group).buffers,
    )
    return spec_of(
        code,
        rows=draw(st.integers(1, 60)),
        inner=group * draw(st.integers(1, 4)),
        columns=draw(st.integers(1, 90)),
        dtype=draw(st.sampled_from(tuple(dtypes))),
        weight=draw(st.sampled_from((packed(4, code, group), packed(3, code, group), uniform))),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from((None, *ACTIVATIONS))),
    )


@st.composite
def matmuls(draw: st.DrawFn, dtypes: Sequence[str], step: int = 1) -> Matmul:
    """Any spec that the kernels compute; sizes are multiples of ``step``."""
    code = draw(st.sampled_from(("int8", "fp8")))
    size = st.integers(1, 160 // step).map(lambda n: n * step)
    return spec_of(
        code,
        code == "int8" and draw(st.booleans()),
        rows=draw(st.integers(1, 150)),
        inner=draw(size) * draw(st.sampled_from((1, 3))),
        columns=draw(size),
        dtype=draw(st.sampled_from(tuple(dtypes))),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from((None, *ACTIVATIONS))),
    )


def operands(spec: Matmul, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Gaussian operands as a producer quantizes them; rows of different sizes, columns off zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(spec.x_shape) * np.exp(rng.standard_normal((spec.rows, 1)))
    x += 0.5 * rng.standard_normal(spec.inner)
    weight = rng.standard_normal(spec.weight_shape) * spec.inner**-0.5
    out: dict[str, npt.NDArray[Any]] = {}
    if spec.x is None:
        out["x"] = in_16_bits(x, spec.dtype)
    for side, fmt, held in (("x", spec.x, x), ("weight", spec.weight, weight)):
        if fmt is None:
            continue
        packed = fmt.pack(layouts.quantize(fmt, held.astype(np.float32)), held.shape)
        out |= {f"{side}_{name}": value for name, value in packed.items()}
    dtype = np.float32 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
    for name in ("bias", "residual"):
        if name in spec.operands:
            shape = spec.operands[name][0]
            out[name] = rng.standard_normal(shape).astype(dtype)
    return out


def check(spec: Matmul, found: Any, given: Mapping[str, Any], capability: tuple[int, int]) -> None:
    """A result is the reference's within the bound of `kernels/matmul/truth.py`, and the truth
    that the tuner checks with is the reference."""
    import torch

    from kdsl.kernels.matmul import truth

    held = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in given.items()}
    out = torch.as_tensor(found).cpu()
    share, why = truth.share(spec, held, out, slice(None), capability)
    assert share <= 1, f"{why}: {share:.3g} of what is allowed"
    wanted = matmul(spec, given)
    exact = torch.from_numpy(wanted).to(getattr(torch, spec.dtype))
    share, why = truth.share(spec, held, exact, slice(None), capability)
    assert share <= 1, f"two truths differ, {why}: {share:.3g}"


def in_16_bits(x: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Numbers that a dtype has; those of bfloat16 in float32, cut off."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    return (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def book(bits: int, group: int) -> layouts.Format:
    """Weights of a codebook that is neither uniform nor symmetric: NF4, or every second entry."""
    plain = layouts.slog(bits, None, group)
    code = Lut(NF4 if bits == 4 else NF4[::2], "nf")
    return layouts.Format("book", replace(plain.level, field=Field("code", code)), plain.buffers)


def few_bits(kind: str, bits: int, group: int = 128) -> layouts.Format:
    """Weights of each kind that the kernels decode differently."""
    if kind == "signed":
        return layouts.slog(bits, None, group)
    if kind == "table":
        return book(bits, group)
    return layouts.uniform(bits, group, asymmetric=kind == "zeros")


KINDS = ("signed", "uniform", "table", "zeros")


@st.composite
def weight_only(
    draw: st.DrawFn, dtypes: Sequence[str], groups: Sequence[int] = (64, 128)
) -> Matmul:
    """Any product of 16-bit x that the kernels compute."""
    group = draw(st.sampled_from(tuple(groups)))
    return Matmul(
        rows=draw(st.integers(1, 40)),
        inner=group * draw(st.integers(1, 5)),
        columns=draw(st.integers(1, 90)),
        dtype=draw(st.sampled_from(tuple(dtypes))),
        weight=few_bits(draw(st.sampled_from(KINDS)), draw(st.sampled_from((4, 3))), group),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from((None, *ACTIVATIONS))),
    )


def weight_only_operands(spec: Matmul, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """`operands`, with what is not quantized exact in the spec's dtype."""
    given = operands(spec, seed)
    for name in ("bias", "residual"):
        if name in given:
            given[name] = in_16_bits(given[name], spec.dtype)
    return given


def check_weight_only(spec: Matmul, found: Any, given: Mapping[str, Any]) -> None:
    """A result is the reference's within the derived bound, and so is the truth it is held to."""
    import torch

    from kdsl.kernels.matmul.weight_only import truth

    held = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in given.items()}
    share, why = truth.share(spec, held, torch.as_tensor(found).cpu(), slice(None))
    assert share <= 1, f"{why}: {share:.3g} of what is allowed"
    exact = torch.from_numpy(matmul(spec, given)).to(getattr(torch, spec.dtype))
    share, why = truth.share(spec, held, exact, slice(None))
    assert share <= 1, f"two truths differ, {why}: {share:.3g}"
