"""The truth about matmul: against dequantized operands, torch's activations, exact integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdsl import layouts
from kdsl.errors import InputError
from kdsl.reference.matmul import activated, matmul, product, values
from kdsl.specs import Matmul
from tests.matrices import operands, spec_of


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (layouts.activations(), layouts.w8()),
        (layouts.activations("int8", None, True), layouts.w8()),
        (layouts.activations("fp8"), layouts.w8("channel", "fp8")),
        (layouts.block_fp8(1, 128), layouts.block_fp8()),
        (layouts.activations(), layouts.slog(4)),
        (layouts.activations("fp8", 128), layouts.gptq(4, 128)),
        (layouts.activations(), layouts.nf4()),
    ],
    ids=lambda f: f.name,
)
def test_any_formats_are_multiplied(x: layouts.Format, weight: layouts.Format) -> None:
    """What both sides dequantize to, in float64: each entry is off by float32's rounding alone,
    one a level of scales."""
    spec = Matmul(rows=5, inner=256, columns=128, x=x, weight=weight)
    given = operands(spec)
    sides = []
    for name, fmt, shape in (("x", x, spec.x_shape), ("weight", weight, spec.weight_shape)):
        buffers = {b.name: given[f"{name}_{b.name}"] for b in fmt.buffers}
        plain = fmt.dequantize(buffers, shape).astype(np.float64)
        mine = values(fmt, buffers, shape)
        np.testing.assert_allclose(mine, plain, rtol=4 * 2.0**-24, atol=1e-12)
        sides.append(plain)
    near = np.abs(sides[0]) @ np.abs(sides[1]).T * 2.0**-20
    assert (np.abs(product(spec, given) - sides[0] @ sides[1].T) <= near).all()


def test_integers_and_zero_points_are_exact() -> None:
    """Scales of powers of two: the result is the integers' own."""
    spec = spec_of("int8", True, dtype="float32")
    given = operands(spec)
    given["x_scales"][:], given["weight_scales"][:] = 0.25, 2.0
    x = given["x_codes"].astype(np.int64) - given["x_zeros"]
    wanted = 0.5 * (x @ given["weight_codes"].astype(np.int64).T)
    np.testing.assert_array_equal(matmul(spec, given), wanted)


def test_activations_are_torchs() -> None:
    """Both forms of GELU, and SiLU, at float64's precision."""
    torch: Any = pytest.importorskip("torch")
    y = np.linspace(-12, 12, 4001)
    gelu = torch.nn.functional.gelu
    for name, by in (
        ("gelu_tanh", lambda t: gelu(t, approximate="tanh")),
        ("gelu_erf", gelu),
        ("silu", torch.nn.functional.silu),
    ):
        wanted = by(torch.from_numpy(y)).numpy()
        np.testing.assert_allclose(activated(name, y), wanted, rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(activated(None, y), y)


def test_the_epilogue_has_an_order() -> None:
    """Bias before the activation, residual behind it."""
    spec = spec_of(bias=True, residual=True, activation="silu")
    given = operands(spec)
    wanted = activated("silu", product(spec, given) + given["bias"]) + given["residual"]
    np.testing.assert_array_equal(matmul(spec, given), wanted)


def test_operands_are_checked() -> None:
    """What is missing, or of another shape, is named."""
    spec = spec_of(bias=True)
    given = operands(spec)
    for name in spec.operands:
        with pytest.raises(InputError, match=f"no {name}"):
            matmul(spec, {n: v for n, v in given.items() if n != name})
    with pytest.raises(InputError, match="bias has shape"):
        matmul(spec, {**given, "bias": given["bias"][1:]})
    with pytest.raises(InputError, match="'codes' is"):
        matmul(spec, {**given, "x_codes": given["x_codes"][:-1]})
