"""The truth about quantize, held against plain arithmetic written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdsl import layouts
from kdsl.errors import InputError, UnsupportedError
from kdsl.layouts import Outline, rotations
from kdsl.layouts.hadamard import hadamard
from kdsl.reference.quantize import quantize, transformed
from kdsl.specs import Quantize
from tests.quantizing import values

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((6, 64)) * np.exp(RNG.standard_normal((6, 1)))).astype(np.float32)


def spec_of(fmt: Any = None, **changes: Any) -> Quantize:
    fmt = layouts.activations() if fmt is None else fmt
    return Quantize(rows=6, columns=64, format=fmt, dtype="float32", **changes)


def test_steps_in_their_order() -> None:
    """A layer norm, modulated, less a mean, permuted, signed, rotated: line by line."""
    steps = (("mean", 0), ("channels", 0), ("signs", 0), ("hadamard", 16))
    spec = spec_of(recipe=Outline(steps), norm="layer", modulate=True, eps=1e-3)
    tables = values(spec)
    scale, shift = RNG.standard_normal((2, 64))
    y = X.astype(np.float64)
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-3)
    y = y * (1 + scale) + shift
    y = (y - tables["mean_0"])[:, tables["channels_1"]] * tables["signs_2"]
    y = (y.reshape(6, 4, 16) @ hadamard(16) / 4).reshape(6, 64)
    np.testing.assert_allclose(transformed(spec, X, scale, shift, tables), y, rtol=1e-12)
    found = quantize(spec, X, scale, shift, tables)
    unit = np.abs(y).max(1, keepdims=True) / 127
    np.testing.assert_allclose(found["scales"], unit, rtol=1e-6)
    assert (np.abs(found["codes"] - y / unit) <= 0.5 + 1e-4).all()


def test_activations_are_those_of_torch() -> None:
    """GELU in its tanh form and SiLU, as torch defines them."""
    torch: Any = pytest.importorskip("torch")
    x = torch.from_numpy(X).double()
    for name, fn in (
        ("gelu_tanh", lambda t: torch.nn.functional.gelu(t, approximate="tanh")),
        ("silu", torch.nn.functional.silu),
    ):
        found = transformed(spec_of(activation=name), X)
        np.testing.assert_allclose(found, fn(x).numpy(), rtol=1e-9, atol=1e-12)


def test_buffers_are_the_formats() -> None:
    """Any format with a scale, also those that no kernel writes: what comes back is near."""
    for fmt in (
        layouts.activations("fp8", 16),
        layouts.activations("int4", 32, True),
        layouts.q4_0(),
        layouts.nf4(64, nested=False),
        layouts.mx(layouts.codes.E4M3),
    ):
        spec = spec_of(fmt)
        held = quantize(spec, X)
        assert {n: (v.shape, str(v.dtype)) for n, v in held.items()} == spec.buffers()
        off = np.abs(fmt.dequantize(held, (6, 64)) - X).max(1) / np.abs(X).max(1)
        assert (off < 0.16).all(), fmt.name


def test_a_batch_is_its_items() -> None:
    """Each item with its own scale and shift."""
    spec = spec_of(norm="rms", modulate=True)
    x, scale = RNG.standard_normal((3, 6, 64)), RNG.standard_normal((3, 64))
    whole = quantize(spec, x, scale, -scale)
    for i in range(3):
        one = quantize(spec, x[i], scale[i], -scale[i])
        for name, value in one.items():
            np.testing.assert_array_equal(whole[name][i], value)
    assert quantize(spec, x[:0], scale[:0], scale[:0])["codes"].shape == (0, 6, 64)


def test_groups_that_are_no_numbers() -> None:
    """NaN for a scale and zeros for codes in that group alone; a group of zeros has scale 0; one
    next to zero counts as zeros; and a scale beyond float16 is no number."""
    x = X.copy()
    x[0, 3], x[1, 40], x[2], x[3] = np.nan, np.inf, 0, 1e-39
    for fmt in (layouts.activations("int8", 32), layouts.activations("int4", 32, True)):
        held = quantize(spec_of(fmt), x)
        np.testing.assert_array_equal(
            np.argwhere(np.isnan(held["scales"])), [[0, 0], [1, 1]], fmt.name
        )
        assert not held["scales"][2:4].any()
        back = fmt.dequantize(held, (6, 64))
        assert np.isnan(back[0, :32]).all()
        assert np.isfinite(back[0, 32:]).all()
        assert not back[2:4].any()
    x[4, 0] = 7e6
    held = quantize(spec_of(layouts.compressed_tensors(4, 32)), x)
    assert np.isnan(held["weight_scale"][4, 0])
    assert np.isfinite(held["weight_scale"][4, 1])


def test_rotations_of_float16_overflow() -> None:
    """What a rotation multiplies is float16 there: beyond it is infinity, as it is in bfloat16's
    range not."""
    recipe = Outline((("smooth", 0), ("hadamard", 16)))
    x = np.ones((6, 64))
    x[0, 0] = 6e4
    tables = {"smooth_0": np.full(64, 0.5)}
    for dtype, lost in (("float16", True), ("bfloat16", False)):
        spec = Quantize(
            rows=6, columns=64, format=layouts.activations("int8", 16), recipe=recipe, dtype=dtype
        )
        found = quantize(spec, x, tables=tables)["scales"]
        assert np.isnan(found[0, 0]) == lost
        assert np.isfinite(found[0, 1:]).all()


def test_bad_inputs_are_refused() -> None:
    """Other shapes, no scale, scales that hold no NaN, values that are missing."""
    spec = spec_of(norm="rms", modulate=True)
    for x in (X[:, :63], X[:5], X[None, None]):
        with pytest.raises(InputError, match="x has shape"):
            quantize(spec, x, X[0], X[0])
    with pytest.raises(InputError, match="no scale"):
        quantize(spec, X)
    with pytest.raises(InputError, match="shift has shape"):
        quantize(spec, X, X[0], X[0, :3])
    with pytest.raises(InputError, match="'signs_0' has no values"):
        quantize(spec_of(recipe=Outline((("signs", 0),))), X)
    x = X.copy()
    x[0, 0] = np.nan
    with pytest.raises(UnsupportedError, match="1 groups hold NaN"):
        quantize(spec_of(layouts.nvfp4()), x)


def test_a_rotation_spreads_what_stands_out() -> None:
    """What it is for: with one column a hundred times the others, four bits by token lose less
    after a Hadamard rotation than before."""
    x = RNG.standard_normal((6, 64)).astype(np.float32)
    x[:, 5] *= 100
    recipe = rotations.candidates(x, 64)["hadamard"]
    errors = []
    for steps, tables in ((Outline(), {}), (Outline.of(recipe), layouts.tables(recipe))):
        spec = spec_of(layouts.activations("int4"), recipe=steps)
        back = spec.format.dequantize(quantize(spec, x, tables=tables), (6, 64))
        wanted = transformed(spec, x, tables=tables)
        errors.append(np.median(np.abs(back - wanted)) / np.median(np.abs(x)))
    assert errors[1] < errors[0]
