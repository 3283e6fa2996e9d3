"""QuantLinear by the kernels, in the interpreter: what the reference's module computes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from kdsl import layouts
from kdsl.errors import UnsupportedError
from kdsl.kernels.matmul.launch import capability_of
from kdsl.layouts import Format, rotations
from kdsl.layouts.transforms import Recipe
from kdsl.nn import QuantLinear, Transform
from kdsl.runtime import build
from kdsl.specs import Matmul, Quantize
from tests.devices import DEVICE
from tests.matrices import check, check_weight_only

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")
INSIDE, OUTSIDE = 256, 72
ACTIVATIONS = (
    layouts.activations(), layouts.activations("int8", None, True), layouts.activations("fp8"),
)  # fmt: skip


def weights(x: Format) -> list[Format]:
    """Formats that are multiplied with these activations."""
    fp8 = x.name.startswith("fp8")
    exact = "e4m3" if fp8 else "int8"
    few = [layouts.slog(bits, None, 64, exact) for bits in (4, 3)]
    eight = layouts.w8("channel", "fp8" if fp8 else "int8")
    return [eight] if "asymmetric" in x.name else [eight, *few]


def inputs(*lead: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Rows whose columns stand out."""
    x = torch.randn(*lead, INSIDE, generator=torch.Generator().manual_seed(len(lead)))
    x[..., ::31] += 4
    return x.to(DEVICE, dtype)


def layer(weight: Format, x: Format, dtype: torch.dtype = torch.float16, **options: Any) -> Any:
    """A module where the kernels run."""
    torch.manual_seed(0)
    recipe = rotations.candidates(inputs(64).float().cpu().numpy(), 64)["centred, permuted"]
    plain = torch.nn.Linear(INSIDE, OUTSIDE, dtype=dtype)
    made = QuantLinear.from_linear(plain, weight=weight, x=x, recipe=recipe, **options)
    return made.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("x", ACTIVATIONS, ids=lambda f: f.name)
def test_it_is_the_reference(x: Format, dtype: torch.dtype) -> None:
    """Within the bound of a product of the very codes that the kernel made, with a residual and
    without, for numbers of rows that share a configuration."""
    for weight in weights(x):
        made = layer(weight, x, dtype, activation="gelu_tanh")
        for count in (3, 17, 20):
            given = inputs(count, dtype=dtype)
            rest = torch.randn(count, OUTSIDE).to(DEVICE, dtype)
            name = str(dtype).removeprefix("torch.")
            coded = Quantize(rows=count, columns=INSIDE, format=x, recipe=made.recipe, dtype=name)
            codes = build(coded, backend="triton", tables=layouts.tables(made.recipe))(given)
            for residual in (False, True):
                spec = Matmul(
                    rows=count, inner=INSIDE, columns=OUTSIDE, x=x, weight=weight, dtype=name,
                    bias=True, activation="gelu_tanh", residual=residual,
                )  # fmt: skip
                held = made.state_dict() | {"residual": rest}
                held |= {f"x_{b.name}": c for b, c in zip(x.buffers, codes, strict=True)}
                operands = {n: np.asarray(held[n].cpu()) for n in spec.operands}
                found = made(given, rest) if residual else made(given)
                check(spec, found, operands, capability_of(found.device))


@pytest.mark.parametrize("x", ACTIVATIONS, ids=lambda f: f.name)
def test_layers_are_compiled(x: Format) -> None:
    """One graph for any number of rows; the bits of eager calls; copies compute the same."""
    torch._dynamo.reset()
    made = layer(weights(x)[-1], x)
    run = torch.compile(made, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (2, 6):
        assert torch.equal(run(inputs(3, count)), made(inputs(3, count)))
    assert torch.equal(copy.deepcopy(made)(inputs(5)), made(inputs(5)))
    assert made(inputs(0)).shape == (0, OUTSIDE)


def test_weights_alone_are_read_as_they_are_stored() -> None:
    """With x in 16 bits the kernel reads the codes, and no decoded weight is kept; a format or
    dtype that no kernel reads is decoded, and multiplied by torch."""
    for bits in (4, 3):
        torch.manual_seed(0)
        weight = layouts.slog(bits, None, 128, "float32")
        plain = torch.nn.Linear(INSIDE, OUTSIDE, dtype=torch.float16)
        made = QuantLinear.from_linear(plain, weight=weight, x=None, activation="silu").to(DEVICE)
        assert "decoded" not in repr(made)
        for count in (3, 40):
            given = inputs(count)
            spec = Matmul(
                rows=count, inner=INSIDE, columns=OUTSIDE, x=None, weight=weight,
                dtype="float16", bias=True, activation="silu",
            )  # fmt: skip
            held = made.state_dict() | {"x": given}
            operands = {n: np.asarray(held[n].cpu()) for n in spec.operands}
            check_weight_only(spec, made(given), operands)
    stays = torch.nn.Linear(INSIDE, OUTSIDE, dtype=torch.float32)
    for weight in (layouts.gptq(4, 64), layouts.slog(4, None, 128, "float32")):
        made = QuantLinear.from_linear(stays, weight=weight, x=None).to(DEVICE)
        assert "weight decoded" in repr(made)
        given = inputs(5, dtype=torch.float32)
        wanted = torch.nn.functional.linear(given, made.dequantized().float(), made.bias)
        assert torch.equal(made(given), wanted)


def test_what_no_kernel_computes() -> None:
    """Said when the module comes to where kernels run, with the way out."""
    with pytest.raises(UnsupportedError, match='backend="reference"'):
        layer(layouts.gptq(4, 64), ACTIVATIONS[0])
    made = layer(layouts.gptq(4, 64), ACTIVATIONS[0], backend="reference")
    assert made(inputs(2)).shape == (2, OUTSIDE)


def test_a_rotation_on_the_device() -> None:
    """`Transform` moves with its values, and its transpose takes gradients back."""
    turn = Transform(Recipe((rotations.Signs(np.ones(60)), rotations.Hadamard(20))), 60).to(DEVICE)
    x = torch.randn(3, 60, device=DEVICE, dtype=torch.float64, requires_grad=True)
    turn(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=1e-12, atol=1e-12)
