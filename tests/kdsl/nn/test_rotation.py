"""The recipe as a function of torch: values, exact transposes, dtypes, graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdsl.errors import InputError, SpecError
from kdsl.layouts.hadamard import factors, hadamard
from kdsl.layouts.transforms import Channels, Hadamard, Mean, Recipe, Rotate, Signs, Smooth

torch: Any = pytest.importorskip("torch")
from kdsl.nn import Transform, transform  # noqa: E402

RNG = np.random.default_rng(0)
EPS = 2.0**-52


def recipe(order: int, width: int) -> Recipe:
    """A step of each kind around a Hadamard rotation."""
    q, _ = np.linalg.qr(RNG.standard_normal((4, 4)))
    return Recipe((
        Smooth(RNG.uniform(0.5, 2, width).astype(np.float32)),
        Mean(RNG.standard_normal(width).astype(np.float32)),
        Channels(RNG.permutation(width)),
        Signs(RNG.choice([-1.0, 1.0], width).astype(np.float32)),
        Hadamard(order),
        Rotate(q),
    ))  # fmt: skip


@pytest.mark.parametrize("order", [4, 12, 20, 28, 40, 256, 360, 1152])
def test_it_is_the_recipe(order: int) -> None:
    """Values, inverse and gradient are the NumPy recipe's, also where a matrix is several."""
    width = 2 * order if order < 1000 else order
    steps = recipe(order, width)
    module, x = Transform(steps, width), RNG.standard_normal((3, 5, width))
    given = torch.from_numpy(x).requires_grad_()
    found = module(given)
    wanted = steps.forward(x)
    # Sums of up to `order` and 4 terms, of numbers no larger than these.
    bound = (order + 8) * EPS * order**0.5 * 16 * np.abs(x).max()
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=bound)
    back = module.inverse(found.detach()).numpy()
    np.testing.assert_allclose(back, x, atol=4 * bound)
    g = RNG.standard_normal(x.shape)
    found.backward(torch.from_numpy(g))
    np.testing.assert_allclose(given.grad.numpy(), steps.gradient(g), atol=bound)
    assert np.abs(steps.forward(x) - x).max() > 0.1


@pytest.mark.parametrize("order", [20, 28, 40])
def test_gradients_are_transposes(order: int) -> None:
    """By differences, first and second; the forward matrix in their place would be wrong."""
    steps = Recipe((Hadamard(order),))
    if order == 28:  # its Paley II matrix is symmetric; with its columns in another order it is not
        turned = hadamard(28)[:, RNG.permutation(28)] / np.sqrt(28)
        steps = Recipe((Rotate(turned),))
    module = Transform(steps, 2 * order)
    x = torch.randn(2, 2 * order, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)
    g = torch.randn_like(x)
    (found,) = torch.autograd.grad(module(x), x, g)
    np.testing.assert_allclose(found.numpy(), steps.gradient(g.numpy()), atol=1e-13)
    assert (found - module(g)).abs().max() > 0.1


def test_factors_make_the_matrix() -> None:
    """Their Kronecker product is the matrix that a recipe multiplies with."""
    for order in (1, 20, 256, 360, 1152, 1536):
        made = np.ones((1, 1))
        for matrix in factors(order):
            made = np.kron(made, matrix)
        np.testing.assert_array_equal(made, hadamard(order))
    with pytest.raises(SpecError):
        factors(92)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_once(dtype: str) -> None:
    """Within half a unit of the exact result, and what float32 sums may be off."""
    steps = Recipe((Signs(RNG.choice([-1.0, 1.0], 80).astype(np.float32)), Hadamard(20)))
    x = torch.from_numpy(RNG.standard_normal((7, 80))).to(getattr(torch, dtype))
    exact = steps.forward(x.double().numpy())
    found = transform(x, steps)
    assert found.dtype == x.dtype
    sums = np.abs(x.double().numpy()).reshape(7, 4, 20).sum(-1, keepdims=True) / 20**0.5
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    allowed = unit * np.abs(exact) * (1 + 1e-5) + np.broadcast_to(
        22 * 2.0**-24 * sums, (7, 4, 20)
    ).reshape(7, 80)
    assert (np.abs(found.double().numpy() - exact) <= allowed).all()


def test_it_is_compiled_and_cast() -> None:
    """One graph; `.to` of another dtype leaves the recipe's values as they were calibrated."""
    steps = recipe(20, 40)
    module = Transform(steps, 40).to(torch.float16)
    assert {t.dtype for t in module.buffers()} == {
        torch.float32, torch.float64, torch.int64, torch.int8}  # fmt: skip
    x = torch.randn(3, 40)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    again = Transform(recipe(20, 40), 40)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))
    assert "hadamard 20" in repr(module)


def test_what_does_not_fit_is_named() -> None:
    """Columns, dtypes, values of another width, blocks that do not divide."""
    module = Transform(Recipe((Hadamard(4),)), 8)
    for x in (torch.zeros(2, 9), torch.zeros(2, 8, dtype=torch.int32)):
        with pytest.raises(InputError, match="x is torch"):
            module(x)
    with pytest.raises(InputError, match="mean_0 has shape"):
        Transform(Recipe((Mean(np.zeros(4)),)), 8)
    with pytest.raises(SpecError, match="do not divide"):
        Transform(Recipe((Hadamard(20),)), 30)
