"""Quantization layouts: error bounds, groups, special values, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdsl.errors import InputError, SpecError
from kdsl.layouts import Layout, int8

LAYOUTS = [int8("token"), int8("channel"), int8("block", 4), int8("tensor"), Layout("int8", (3, 2))]
EPS = 2.0**-23


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """``[heads, tokens, channels]`` of finite float32, zeros and denormals among them."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 13)), 2 * draw(st.integers(1, 6)))
    scale = draw(st.sampled_from((1e-44, 1e-38, 1e-6, 1.0, 1e30)))
    values = draw(hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
    return values * np.float32(scale)


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
@given(x=tensors())
def test_error_is_at_most_half_a_step(layout: Layout, x: np.ndarray) -> None:
    """Every value comes back within half its group's scale, up to the rounding of float32."""
    codes, scale = layout.quantize(x)
    back = layout.dequantize(codes, scale)
    assert (codes.dtype, scale.dtype, back.dtype) == (np.int8, np.float32, np.float32)
    assert codes.min() >= -127
    rows, columns = layout.scale_shape(*x.shape[-2:])
    assert scale.shape == (x.shape[0], rows, columns)
    g, c = (n or s for n, s in zip(layout.group, x.shape[-2:], strict=True))
    step = scale.repeat(g, 1)[:, : x.shape[1]].repeat(c, 2).astype(np.float64)
    # x / scale and code * scale each round once, relative to x.
    slack = np.abs(x).astype(np.float64) * 1.01 * EPS
    assert (np.abs(x.astype(np.float64) - back) <= step / 2 + slack).all()
    largest = np.abs(codes.astype(int)).max((1, 2))
    assert (largest[np.abs(x).max((1, 2)) > 1.5e-36] == 127).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_groups_share_a_scale_and_nothing_else(layout: Layout) -> None:
    """Changing one value moves the codes and scale of its own group only."""
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    codes, scale = layout.quantize(x)
    x[4, 3] = 100.0
    changed, new = layout.quantize(x)
    g, c = (n or s for n, s in zip(layout.group, x.shape, strict=True))
    outside = np.ones(x.shape, bool)
    outside[4 // g * g : (4 // g + 1) * g, 3 // c * c : (3 // c + 1) * c] = False
    np.testing.assert_array_equal(changed[outside], codes[outside])
    assert (new != scale).sum() == 1


def test_zero_groups_have_scale_zero() -> None:
    """A group of zeros has scale 0 and comes back as zeros."""
    x = np.array([[0, 0], [1, -3]], np.float32)
    codes, scale = int8("token").quantize(x)
    assert scale[0, 0] == 0
    assert codes.tolist() == [[0, 0], [42, -127]]
    assert int8("token").dequantize(codes, scale)[0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_special_values_spoil_their_group_alone(bad: float) -> None:
    """NaN and infinities give codes 0 and a NaN scale in their group; others are untouched."""
    x = np.array([[1.0, bad], [1.0, 2.0]], np.float32)
    codes, scale = int8("token").quantize(x)
    assert codes[0].tolist() == [0, 0]
    assert np.isnan(scale[0, 0])
    back = int8("token").dequantize(codes, scale)
    assert np.isnan(back[0]).all()
    assert np.isfinite(back[1]).all()


def test_ties_round_to_even() -> None:
    """Halves round to the even code, as devices' `rint` does."""
    x = np.array([[127.0, 0.5, 1.5, -2.5]], np.float32)
    assert int8("token").quantize(x)[0].tolist() == [[127, 0, 2, -2]]


def test_least_scale_is_a_normal_number() -> None:
    """Values so small that their scale would be denormal keep codes in range."""
    x = np.array([[190 * 2.0**-149, 2.0**-149]], np.float32)
    codes, scale = int8("token").quantize(x)
    assert scale[0, 0] == np.float32(2.0**-126)
    assert codes.tolist() == [[0, 0]]


def test_larger_inputs_are_taken_as_float32() -> None:
    """Float64 beyond float32's range reads as infinity there, without a warning."""
    codes, scale = int8("tensor").quantize(np.array([[1e300, 1.0]]))
    assert np.isnan(scale).all()
    assert not codes.any()


@pytest.mark.parametrize(
    ("layout", "nbytes"),
    [
        (int8("token"), 2 * (100 * 64 + 4 * 100)),
        (int8("channel"), 2 * (100 * 64 + 4 * 64)),
        (int8("block", 64), 2 * (100 * 64 + 4 * 2)),
        (int8("tensor"), 2 * (100 * 64 + 4)),
        (Layout("int8", (32, 16)), 2 * (100 * 64 + 4 * 4 * 4)),
    ],
    ids=repr,
)
def test_bytes(layout: Layout, nbytes: int) -> None:
    """Byte size counts one byte a code and four a scale, ragged groups included."""
    assert layout.nbytes((2, 100, 64)) == nbytes
    codes, scale = layout.quantize(np.ones((2, 100, 64)))
    assert codes.nbytes + scale.nbytes == nbytes


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_empty_tensors(layout: Layout) -> None:
    """Tensors without tokens have the shapes that `scale_shape` says."""
    codes, scale = layout.quantize(np.zeros((2, 0, 4)))
    assert codes.shape == (2, 0, 4)
    assert scale.shape == (2, *layout.scale_shape(0, 4))
    assert layout.dequantize(codes, scale).shape == (2, 0, 4)


def test_round_trip() -> None:
    """Layouts come back equal from JSON and repr."""
    for layout in LAYOUTS:
        assert Layout.from_json(layout.to_json()) == layout
        assert eval(repr(layout), {"Layout": Layout}) == layout


def test_messages() -> None:
    """What layouts refuse, word for word."""
    for act, error, wanted in (
        (
            lambda: int8("row"),
            SpecError,
            "int8(per='row')\n  try 'token' or 'channel' or 'block' or 'tensor'",
        ),
        (lambda: Layout("int3", (1, None)), SpecError, "code 'int3'\n  try int8 or int4 or e4m3"),
        (
            lambda: int8("block", 0),
            SpecError,
            "scale group (0, None)\n  try sizes of at least 1, or None",
        ),
        (
            lambda: Layout("int8", (1, 48)).check(128),
            SpecError,
            "groups of 48 channels do not divide 128\n"
            "  in  Layout(code='int8', group=(1, 48), scale_dtype='float32')\n"
            "  try 16, 32, 64, 128",
        ),
        (
            lambda: int8().quantize(np.ones(3)),
            InputError,
            "shape (3,)\n  try [..., tokens, channels]",
        ),
        (
            lambda: Layout.from_json({"code": "int8"}),
            SpecError,
            "malformed layout: KeyError: 'group'",
        ),
    ):
        with pytest.raises(error) as caught:
            act()
        assert str(caught.value) == wanted
