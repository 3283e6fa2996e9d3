"""What tests of matmul share: specs, operands, and the comparison with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from kdsl import layouts
from kdsl.layouts.codes import Int
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
    for side, fmt, held in (("x", spec.x, x), ("weight", spec.weight, weight)):
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
