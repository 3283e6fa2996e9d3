"""Hadamard constructions, transforms with their transposes, and the choice of a rotation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdsl.errors import InputError, SpecError
from kdsl.layouts import rotations
from kdsl.layouts.hadamard import construction, hadamard, multiply
from kdsl.layouts.transforms import Channels, Hadamard, Mean, Recipe, Rotate, Signs, Smooth

WIDTHS = (1152, 1536, 3072, 3420, 3584, 4608, 5120, 8960, 12288, 13824, 15360, 18944)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 40, 60, 76, 108, 140, 148, 180, 256])
def test_orthogonal(order: int) -> None:
    """Rows of +1 and -1 whose products are exactly n times the identity."""
    h = hadamard(order).astype(np.int64)
    assert set(np.unique(h)) <= {-1, 1}
    np.testing.assert_array_equal(h @ h.T, order * np.eye(order, dtype=np.int64))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_of_real_models(width: int) -> None:
    """The full width is constructed; a rotation keeps lengths and its transpose undoes it."""
    plan = construction(width)
    assert plan is not None
    assert np.prod([n for _, n in plan]) == width
    x = RNG.standard_normal((2, width))
    y = multiply(x, width)
    # A float64 sum of n terms of size s / sqrt(n) is off by at most about n eps s.
    bound = width * np.finfo(np.float64).eps * np.abs(x).max()
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-12)
    np.testing.assert_allclose(multiply(y, width, transpose=True), x, atol=bound)
    assert np.abs(y - x).max() > 0.1


@pytest.mark.parametrize("order", [52, 92, 116, 3, 6])
def test_orders_out_of_reach(order: int) -> None:
    """An order without a construction is refused, never padded."""
    with pytest.raises(SpecError, match=f"order {order}"):
        hadamard(order)


@pytest.mark.parametrize("order", [20, 28, 40])
def test_gradients(order: int) -> None:
    """The gradient of a rotation is its transpose: a directional derivative tells them apart."""
    turn = Recipe((Hadamard(order),))
    if order != 28:  # The Paley II matrix of 28 is symmetric; below a matrix that is not.
        assert (hadamard(order) != hadamard(order).T).any()
    else:
        turned = hadamard(28)[:, RNG.permutation(28)] / np.sqrt(28)
        assert np.abs(turned - turned.T).max() > 0.1
        turn = Recipe((Rotate(turned),))
    x, step, g = RNG.standard_normal((3, 4, 2 * order))
    # <g, f(x + d) - f(x)> = <f'(g), d> exactly, f being linear.
    change = float(np.sum(g * (turn.forward(x + step) - turn.forward(x))))
    assert change == pytest.approx(float(np.sum(turn.gradient(g) * step)), abs=1e-11)
    wrong = float(np.sum(turn.forward(g) * step))
    assert abs(change - wrong) > 1e-3


def recipe(width: int) -> Recipe:
    """A recipe with a step of each kind."""
    q, _ = np.linalg.qr(RNG.standard_normal((8, 8)))
    return Recipe(
        (
            Smooth(RNG.uniform(0.5, 2, width)),
            Mean(RNG.standard_normal(width)),
            Channels(RNG.permutation(width)),
            Signs(RNG.choice([-1.0, 1.0], width)),
            Hadamard(20),
            Rotate(q),
        )
    )


def test_a_recipe_keeps_the_product() -> None:
    """``x @ w.T`` survives every kind of step together; inverse and gradient are exact."""
    steps = recipe(40)
    x, w = RNG.standard_normal((5, 40)), RNG.standard_normal((3, 40))
    got = steps.forward(x) @ steps.matched(w).T + steps.bias(w)
    np.testing.assert_allclose(got, x @ w.T, atol=1e-11)
    np.testing.assert_allclose(steps.inverse(steps.forward(x)), x, atol=1e-12)
    g, d = RNG.standard_normal((2, 5, 40))
    change = np.sum(g * (steps.forward(x + d) - steps.forward(x)))
    assert change == pytest.approx(np.sum(steps.gradient(g) * d), abs=1e-11)


def test_a_recipe_comes_back() -> None:
    """From JSON and arrays; a missing array or an unknown step is an error."""
    steps, x = recipe(40), RNG.standard_normal((2, 40))
    header, arrays = steps.to_json()
    again = Recipe.from_json(json.loads(json.dumps(header)), arrays)
    np.testing.assert_array_equal(again.forward(x), steps.forward(x))
    with pytest.raises(InputError, match="lacks 'factors'"):
        Recipe.from_json(header, {})
    with pytest.raises(SpecError, match="step"):
        Recipe.from_json([{"kind": "shear"}], {})


def test_bad_steps() -> None:
    """Factors, orders, signs and matrices that are none are refused."""
    for act in (
        lambda: Smooth(np.array([1.0, 0.0])),
        lambda: Smooth(np.array([1.0, np.nan])),
        lambda: Channels(np.array([0, 0, 1])),
        lambda: Signs(np.array([1.0, 0.5])),
        lambda: Rotate(np.ones((2, 2))),
        lambda: rotations.fluctuation(np.array([[np.nan]])),
        lambda: rotations.candidates(np.ones((4, 100)), 64),
    ):
        with pytest.raises(InputError):
            act()
    with pytest.raises(SpecError, match="do not divide"):
        Hadamard(20).forward(np.ones((2, 30)))


def test_published_rule() -> None:
    """J is the root mean square; below 1 a Hadamard of full width, else R1 P R2."""
    quiet = 0.5 * RNG.standard_normal((64, 24)).astype(np.float32)
    assert rotations.fluctuation(np.full((2, 3), -2.0)) == 2.0
    kinds = [type(s) for s in rotations.published(quiet).steps]
    assert kinds == [Signs, Hadamard]
    loud = rotations.published(8 * quiet, block=8)
    assert [type(s) for s in loud.steps] == [Rotate, Channels, Rotate]


def test_two_rotations_spread_an_outlier() -> None:
    """R1 P R2 lowers the largest entry of an input with an outlying channel by more than half."""
    x = RNG.standard_normal((64, 64)).astype(np.float32)
    x[:, 5] += 40 * RNG.standard_normal(64)
    turned = rotations.two_rotations(x, 16, steps=64).forward(x)
    assert np.abs(turned).max() < np.abs(x).max() / 2


def test_choice_by_output_error() -> None:
    """Channels with large means: taking the mean away wins by far, and the rule by J misses it."""
    x = RNG.standard_normal((128, 64)).astype(np.float32)
    x[:, [3, 40]] += np.array([120.0, -60.0], np.float32)
    w = RNG.standard_normal((32, 64)).astype(np.float32)
    tried = rotations.candidates(x, 32) | {"none": Recipe()}
    best, errors = rotations.choose(x, w, tried)
    assert best.startswith("centred")
    assert errors[best] < errors["hadamard"] / 4
    assert errors[best] < errors["none"] / 4
    assert best == min(errors, key=lambda n: errors[n])
