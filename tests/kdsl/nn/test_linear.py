"""QuantLinear by the reference: what it computes, any rows, casts, copies, files, refusals."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest

from kdsl import layouts
from kdsl.errors import InputError, SpecError, UnsupportedError
from kdsl.layouts import Format, rotations
from kdsl.layouts.transforms import Recipe
from kdsl.reference.matmul import matmul
from kdsl.reference.quantize import quantize
from kdsl.specs import Matmul, Quantize

torch: Any = pytest.importorskip("torch")
from kdsl.nn import QuantLinear  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")
INSIDE, OUTSIDE = 128, 48
WEIGHTS = (
    layouts.w8(), layouts.slog(4, None, 64), layouts.slog(3, None, 64), layouts.gptq(4, 64),
    layouts.mx(layouts.codes.E2M1),
)  # fmt: skip
ACTIVATIONS = (layouts.activations(), layouts.activations("int8", None, True), None)


def rows(*lead: int, seed: int = 0) -> Any:
    """Inputs whose columns stand out by their means."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, INSIDE, generator=g)
    return x + 3 * torch.randn(INSIDE, generator=torch.Generator().manual_seed(9))


def linear(bias: bool = True) -> Any:
    """A plain layer."""
    torch.manual_seed(1)
    return torch.nn.Linear(INSIDE, OUTSIDE, bias=bias)


def recipe(name: str = "centred, permuted") -> Recipe:
    """Mean, order, signs and Hadamard blocks."""
    return rotations.candidates(rows(64).numpy(), 32)[name] if name else Recipe()


def layer(weight: Format, x: Format | None, bias: bool = True, **options: Any) -> Any:
    """A quantized layer in float32."""
    options.setdefault("recipe", recipe())
    return QuantLinear.from_linear(linear(bias), weight=weight, x=x, **options)


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda f: f.name)
@pytest.mark.parametrize("x", ACTIVATIONS[:2], ids=lambda f: f.name)
def test_it_is_quantize_and_matmul(weight: Format, x: Format) -> None:
    """To the bit: the reference's product of the reference's codes with the stored weight."""
    made, given = layer(weight, x, activation="silu"), rows(5)
    coded = Quantize(rows=5, columns=INSIDE, format=x, recipe=made.recipe, dtype="float32")
    codes = quantize(coded, given, tables=layouts.tables(made.recipe))
    spec = Matmul(rows=5, inner=INSIDE, columns=OUTSIDE, x=x, weight=weight, dtype="float32",
                  bias=True, activation="silu")  # fmt: skip
    operands = {f"x_{n}": v for n, v in codes.items()}
    operands |= {n: t for n, t in made.state_dict().items() if n in spec.operands}
    wanted = matmul(spec, operands).astype(np.float32)
    np.testing.assert_array_equal(made(given).numpy(), wanted)


@pytest.mark.parametrize("x", ACTIVATIONS, ids=lambda f: "16 bits" if f is None else f.name)
def test_it_is_near_the_layer(x: Format | None) -> None:
    """Each result is off the plain layer's by no more than half a step of every code allows."""
    made, plain, given = layer(layouts.w8(), x), linear(), rows(9)
    with torch.no_grad():
        off = (made(given) - plain(given)).abs().double().numpy()
    turned = made.recipe.forward(given.double().numpy())
    w = made.recipe.matched(plain.weight.detach().double().numpy())
    stored = np.abs(made.dequantized().double().numpy())
    step_w = np.abs(w).max(1, keepdims=True) / 127 / 2
    wide = np.ptp(turned, axis=1, keepdims=True) if x is ACTIVATIONS[1] else None
    # A zero point is rounded too: a whole step instead of half a one.
    step_x = np.abs(turned).max(1, keepdims=True) / 254 if wide is None else wide / 255
    step_x = 0 * step_x if x is None else step_x
    bound = (np.abs(turned) + step_x) @ np.broadcast_to(step_w, w.shape).T
    bound += np.broadcast_to(step_x, turned.shape) @ np.maximum(stored, np.abs(w)).T
    small = 2.0**-20 * (np.abs(turned) @ np.abs(w).T + np.abs(given.numpy()) @ np.abs(w).T + 1)
    assert (off <= bound * (1 + 1e-6) + small).all()
    assert off.max() > small.max()


@pytest.mark.parametrize("x", ACTIVATIONS, ids=lambda f: "16 bits" if f is None else f.name)
def test_any_leading_axes_and_numbers_of_rows(x: Format | None) -> None:
    """Rows are independent of each other: batches, single rows and none give what all give."""
    made, given = layer(layouts.slog(4, None, 64), x), rows(2, 3, 7)
    whole = made(given)
    assert whole.shape == (2, 3, 7, OUTSIDE)
    torch.testing.assert_close(made(given[1, 2, 3]), whole[1, 2, 3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made(given[:, 1]), whole[:, 1], rtol=1e-6, atol=1e-6)
    swapped = made(given.transpose(0, 2)).transpose(0, 2)
    torch.testing.assert_close(swapped, whole, rtol=1e-6, atol=1e-6)
    assert made(given[:0]).shape == (0, 3, 7, OUTSIDE)


@pytest.mark.parametrize("x", ACTIVATIONS, ids=lambda f: "16 bits" if f is None else f.name)
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "silu"])
def test_the_epilogue(activation: str, x: Format | None) -> None:
    """Activation and residual are those of torch on the plain result."""
    plain = layer(layouts.w8(), x)
    made = layer(layouts.w8(), x, activation=activation)
    given, rest = rows(2, 4), torch.randn(2, 4, OUTSIDE)
    functional = torch.nn.functional
    act = {
        "silu": functional.silu, "gelu_erf": functional.gelu,
        "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    }[activation]  # fmt: skip
    wanted = act(plain(given).double()) + rest
    torch.testing.assert_close(made(given, rest).double(), wanted, rtol=1e-5, atol=1e-5)
    without = act(plain(given).double())
    torch.testing.assert_close(made(given).double(), without, rtol=1e-5, atol=1e-5)


def test_a_mean_makes_a_bias() -> None:
    """Without a bias of its own a layer has one as soon as its recipe takes a mean away."""
    assert layer(layouts.w8(), ACTIVATIONS[0], bias=False).bias is not None
    bare = layer(layouts.w8(), ACTIVATIONS[0], bias=False, recipe=recipe("hadamard"))
    assert bare.bias is None
    with torch.no_grad():
        off = bare(rows(4)) - linear(False)(rows(4))
    assert off.norm() < 0.05 * linear(False)(rows(4)).norm()


def test_casts_leave_formats_alone() -> None:
    """`.to(bfloat16)` changes activations and bias; codes, scales and the recipe stay."""
    made = layer(layouts.slog(3, None, 64), ACTIVATIONS[0])
    before = {n: t.clone() for n, t in made.state_dict().items() if n != "bias"}
    made.to(torch.bfloat16)
    assert made.dtype == made.bias.dtype == torch.bfloat16
    for name, t in before.items():
        assert torch.equal(t, made.state_dict()[name]), name
        assert t.dtype == made.state_dict()[name].dtype
    assert made(rows(3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(SpecError, match="float64"):
        made.double()


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda f: f.name)
def test_copies_and_files(weight: Format) -> None:
    """Deep copies, pickles by torch, state dicts and plans compute the same bits."""
    made, given = layer(weight, ACTIVATIONS[1]), rows(6)
    wanted = made(given)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = QuantLinear.from_plan(made.to_plan())
    blank = QuantLinear(INSIDE, OUTSIDE, weight=weight, x=ACTIVATIONS[1], recipe=recipe(),
                        dtype=torch.float32)  # fmt: skip
    blank.load_state_dict(torch.load(file, weights_only=True))
    for one in (copy.deepcopy(made), other, blank):
        assert torch.equal(one(given), wanted)


def test_a_state_dict_says_what_it_is() -> None:
    """Its header is a tensor; one of another format, recipe or epilogue is refused by name."""
    made = layer(layouts.slog(4, None, 64), ACTIVATIONS[0])
    assert made.state_dict()["_extra_state"].dtype == torch.uint8
    for said, other in (
        ("another weight", layer(layouts.slog(4, 0.3, 64), ACTIVATIONS[0])),
        ("another x", layer(layouts.slog(4, None, 64), layouts.activations("fp8"))),
        ("another activation", layer(layouts.slog(4, None, 64), ACTIVATIONS[0], activation="silu")),
    ):
        with pytest.raises(InputError, match=said):
            other.load_state_dict(made.state_dict())
    for bad in (
        torch.zeros(4, dtype=torch.uint8),
        torch.frombuffer(bytearray(b"{}"), dtype=torch.uint8),
    ):
        with pytest.raises(InputError, match="header"):
            made.load_state_dict({**made.state_dict(), "_extra_state": bad})


def test_layers_of_a_compiled_model_share_a_graph() -> None:
    """Weights are inputs of a graph: blocks of one kind are traced once, for any number of rows."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    blocks = [layer(layouts.slog(4, None, 64), ACTIVATIONS[0]) for _ in range(3)]
    for i, block in enumerate(blocks):
        block.weight_scales.mul_(i + 1)
        run = torch.compile(block, fullgraph=True, backend=counter, dynamic=True)
        for count in (4, 9):
            assert torch.equal(run(rows(count)), block(rows(count)))
    assert counter.frame_count == 1


def test_written_weights_are_seen() -> None:
    """The reference keeps decoded weights, and notices when codes or scales are written to."""
    made, given = layer(layouts.slog(4, None, 64), ACTIVATIONS[0], recipe=Recipe()), rows(3)
    made.bias.zero_()
    first = made(given)
    made.weight_scales.mul_(2)
    torch.testing.assert_close(made(given), 2 * first, rtol=1e-6, atol=1e-6)


def test_no_device_no_values() -> None:
    """On the meta device a layer has sizes, which is what memory is counted by."""
    made = QuantLinear(INSIDE, OUTSIDE, weight=layouts.slog(3, None, 64), x=ACTIVATIONS[0],
                       device="meta")  # fmt: skip
    count = sum(t.numel() * t.element_size() for t in made.buffers())
    assert count == layouts.slog(3, None, 64).nbytes((OUTSIDE, INSIDE)) + 2 * OUTSIDE
    made.to_empty(device="cpu")
    assert made(rows(2).bfloat16()).shape == (2, OUTSIDE)


def test_what_it_says() -> None:
    """Sizes, formats, steps and epilogue."""
    made = layer(layouts.slog(3, None, 64), ACTIVATIONS[0], activation="silu")
    for words in ("in_features=128", "slog3", "int8-token", "hadamard 32", "activation=silu"):
        assert words in repr(made)


def test_refusals() -> None:
    """Weights that cannot be stored, inputs that do not fit, gradients: said by name."""
    bad = linear()
    with torch.no_grad():
        bad.weight[3, 5] = float("nan")
    with pytest.raises(InputError, match=r"not finite[\s\S]*row 3, column 5"):
        QuantLinear.from_linear(bad, weight=layouts.w8(), x=None)
    with torch.no_grad():
        bad.weight[3] = 0
    with pytest.raises(InputError, match=r"rows of zeros[\s\S]*row 3"):
        QuantLinear.from_linear(bad, weight=layouts.w8(), x=None)
    with pytest.raises(SpecError, match="do not divide 128"):
        layer(layouts.slog(4, None, 96), None)
    with pytest.raises(InputError, match="meta device"):
        QuantLinear.from_linear(linear().to("meta"), weight=layouts.w8(), x=None)
    made = layer(layouts.w8(), ACTIVATIONS[0])
    for given in (rows(2)[:, :64], rows(2).half()):
        with pytest.raises(InputError, match="x is torch"):
            made(given)
    with pytest.raises(InputError, match="residual is torch"):
        made(rows(2), torch.zeros(3, OUTSIDE))
    with pytest.raises(UnsupportedError, match="no gradient"):
        made(rows(2).requires_grad_()).sum().backward()
