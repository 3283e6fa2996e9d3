"""The numbers of the CUDA template, built for the host: exact against NumPy."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdsl.expr import cuda_source
from kdsl.kernels.permute import generate
from kdsl.layouts import Layout

TINY = np.finfo(np.float32).tiny
LOOPS = """
extern "C" void float16s(const unsigned* from, float* to, long n) {
  for (long i = 0; i < n; ++i) to[i] = from_float16(from[i]);
}
extern "C" void bfloat16s(const unsigned* from, float* to, long n) {
  for (long i = 0; i < n; ++i) to[i] = from_bfloat16(from[i]);
}
extern "C" void scales(const unsigned* peaks, float* to, long n) {
  for (long i = 0; i < n; ++i) to[i] = scale_of(peaks[i]);
}
extern "C" void factors(const float* scales, float* to, long n) {
  for (long i = 0; i < n; ++i) to[i] = factor_of(scales[i]);
}
extern "C" void by_product(const float* x, const float* scale, signed char* to, long n) {
  for (long i = 0; i < n; ++i)
    to[i] = (signed char)code_by_product(x[i], scale[i], factor_of(scale[i]));
}
extern "C" void by_division(const float* x, const float* scale, signed char* to, long n) {
  for (long i = 0; i < n; ++i) to[i] = (signed char)code_by_division(x[i], scale[i]);
}
extern "C" void quantize(const float* x, float* scale, signed char* to, long n) {
  unsigned peak = 0;
  for (long i = 0; i < n; ++i) peak = larger(peak, magnitude(x[i]));
  *scale = scale_of(peak);
  const float factor = factor_of(*scale);
  for (long i = 0; i < n; ++i) {
    const unsigned code =
        factor > 0 ? code_by_product(x[i], *scale, factor) : code_by_division(x[i], *scale);
    to[i] = (signed char)low_bytes(code, 0, 0, 0);
  }
}
extern "C" unsigned pack(unsigned a, unsigned b, unsigned c, unsigned d) {
  return low_bytes(a, b, c, d);
}
"""


@pytest.fixture(scope="module")
def numbers(emulator: Any) -> ctypes.CDLL:
    """The header as a library of loops."""
    header = (Path(generate.FOLDER) / "numbers.cuh").read_text()
    library: ctypes.CDLL = emulator.library(cuda_source.HELPERS + header + LOOPS)
    return library


def call(function: Any, *arrays_in: npt.NDArray[Any], out: Any) -> npt.NDArray[Any]:
    """Run a loop over arrays of one length."""
    held = [np.ascontiguousarray(a) for a in arrays_in]
    to = np.empty(held[0].shape, out)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*held, to)]
    function(*pointers, ctypes.c_long(held[0].size))
    return to


def codes_of(x: npt.NDArray[Any], scale: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Codes as the layout defines them."""
    return np.rint(x / scale).astype(np.int8)


def test_every_float16_is_converted(numbers: ctypes.CDLL) -> None:
    """All 65,536 float16 numbers, NaN payloads too, come out as NumPy converts them."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    got = call(numbers.float16s, bits, out=np.float32)
    want = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    assert (np.signbit(got) == np.signbit(want)).all()


def test_every_bfloat16_is_converted(numbers: ctypes.CDLL) -> None:
    """All 65,536 bfloat16 numbers are the upper halves of their float32 bits."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    got = call(numbers.bfloat16s, bits, out=np.float32)
    np.testing.assert_array_equal(got.view(np.uint32), bits << 16)


def test_scales_are_ieee_quotients(numbers: ctypes.CDLL) -> None:
    """Largest magnitudes over the whole range give max / 127, at least the least normal number."""
    edges = [0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000]
    random = np.random.default_rng(0).integers(0, 0x7F800000, 200_000)
    peaks = np.concatenate([edges, random]).astype(np.uint32)
    got = call(numbers.scales, peaks, out=np.float32)
    with np.errstate(invalid="ignore"):
        largest = peaks.view(np.float32)
        want = np.maximum(largest / np.float32(127), TINY)
    want = np.where(peaks == 0, 0, np.where(peaks < 0x7F800000, want, np.nan)).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    assert (got.view(np.uint32)[peaks >= 0x7F800000] == 0x7FC00000).all()


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_products_are_quotients_for_all_16_bit_numbers(
    numbers: ctypes.CDLL, dtype: str, digits: int
) -> None:
    """Every significand of a value over every significand of a maximum, where codes are not 0.

    Quotients only depend on significands and the difference of exponents, so this is all of them.
    """
    first = 1 << (digits - 1)
    significands = np.arange(first, 2 * first, dtype=np.float32)
    scale = significands / np.float32(127)
    for shift in range(9):
        x = significands * np.float32(2.0**-shift)
        for part in np.array_split(scale, max(first // 128, 1)):
            values, spread = (np.ravel(a) for a in np.broadcast_arrays(x[:, None], part[None]))
            inside = values <= spread * np.float32(127.4)
            got = call(numbers.by_product, values[inside], spread[inside], out=np.int8)
            np.testing.assert_array_equal(got, codes_of(values[inside], spread[inside]))


def test_products_are_quotients_next_to_ties(numbers: ctypes.CDLL) -> None:
    """float32 values at and around (n + 1/2) * scale, a million of them, scales of all sizes."""
    rng = np.random.default_rng(1)
    n = 1_000_000
    exponent = rng.integers(-100, 121, n)
    scale = np.ldexp(rng.uniform(1, 2, n).astype(np.float32), exponent)
    ties = (rng.integers(0, 127, n) + 0.5) * scale.astype(np.float64)
    x = ties.astype(np.float32)
    steps = rng.integers(-2, 3, n).astype(np.int32)
    x = (x.view(np.int32) + steps).view(np.float32) * rng.choice([-1, 1], n).astype(np.float32)
    got = call(numbers.by_product, x, scale, out=np.int8)
    want = codes_of(x, scale)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(call(numbers.by_division, x, scale, out=np.int8), want)


def hard_pairs(nearest: int) -> npt.NDArray[np.float32]:
    """Every (value, scale) whose quotient all but hits the middle next to some n + 1/2.

    In significands ``A * 2**s = M * B + K`` for a middle M of 25 bits and ``0 < |K| <= nearest``: M
    is odd, so B follows from K modulo ``2**s``.  Other exponents only scale these pairs.
    """
    pairs = []
    for n in range(128):
        exponent = (2 * n + 1).bit_length() - 2
        tie = (2 * n + 1) << (22 - exponent)
        above = (2 * tie + 1, exponent)
        below = (2 * tie - 1, exponent) if tie > 1 << 23 else (4 * tie - 1, exponent - 1)
        for middle, unit in (above, below):
            for s in (24, 25):
                inverse = pow(middle, -1, 1 << s)
                for k in range(-nearest, nearest + 1):
                    scale = -k * inverse % (1 << s)
                    value = (middle * scale + k) >> s
                    if k and 1 << 23 <= scale < 1 << 24 and 1 << 23 <= value < 1 << 24:
                        pairs.append((np.ldexp(value, s + unit - 24), scale))
    out = np.array(pairs, np.float64).astype(np.float32)
    assert (out == np.array(pairs)).all()
    return out


def test_products_are_quotients_in_every_hard_case(numbers: ctypes.CDLL) -> None:
    """All pairs of float32 significands for which one correction could round the other way.

    With u = 2**-24 the product is within 2 units in the last place of the quotient.  The correction
    leaves u times that before it rounds, and 2u more where the remainder takes 25 bits; the middle
    at K is at least K * u / 2 away.  So |K| up to 8 is all there is, and 64 is far beyond.
    """
    value, scale = hard_pairs(64).T
    assert value.size > 8000
    close = np.abs(value.astype(np.float64) / scale % 1 - 0.5)
    assert (close < 2.0**-16).all()
    assert (np.rint(value * (np.float32(1) / scale)) != np.rint(value / scale)).any(), (
        "none is hard"
    )
    for sign in (1, -1):
        got = call(numbers.by_product, sign * value, scale, out=np.int8)
        np.testing.assert_array_equal(got, codes_of(sign * value, scale))


def test_small_scales_go_by_division(numbers: ctypes.CDLL) -> None:
    """Below 2**-100 remainders could underflow: the factor is 0, and division codes exactly."""
    rng = np.random.default_rng(2)
    n = 100_000
    scale = np.ldexp(rng.uniform(1, 2, n).astype(np.float32), rng.integers(-126, -100, n))
    assert (call(numbers.factors, scale, out=np.float32) == 0).all()
    x = (rng.uniform(-127, 127, scale.size) * scale.astype(np.float64)).astype(np.float32)
    got = call(numbers.by_division, x, scale, out=np.int8)
    np.testing.assert_array_equal(got, codes_of(x, scale))


def test_factors_are_rounded_reciprocals(numbers: ctypes.CDLL) -> None:
    """1 / scale from 2**-100 up, 1 for a group of zeros, 0 for a group without a scale."""
    scale = np.ldexp(np.linspace(1, 2, 222, endpoint=False, dtype=np.float32), range(-100, 122))
    got = call(numbers.factors, np.append(scale, np.float32([0, np.nan])), out=np.float32)
    np.testing.assert_array_equal(got, [*(np.float32(1) / scale), 1, 0])


def quantized(numbers: ctypes.CDLL, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], np.float32]:
    scale = np.empty(1, np.float32)
    codes = np.empty(x.shape, np.int8)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, scale, codes)]
    numbers.quantize(*pointers, ctypes.c_long(x.size))
    return codes, scale[0]


ELEMENTS = st.one_of(
    st.floats(width=32),
    st.floats(-(2.0**-118), 2.0**-118, width=32),
    st.integers(-300, 300).map(lambda n: float(np.ldexp(np.float32(n), -149))),
    st.sampled_from([0.0, -0.0, float(TINY), -float(TINY)]),
)


@settings(max_examples=400, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 24), elements=ELEMENTS))
@example(x=np.array([190, -95, 1], np.float32) * np.float32(2.0**-149))
@example(x=np.array([1, np.nan, -np.inf], np.float32))
@example(x=np.array([np.finfo(np.float32).max, -1], np.float32))
def test_groups_are_quantized_as_the_layout_says(numbers: ctypes.CDLL, x: npt.NDArray[Any]) -> None:
    """Any group, NaN, infinities and zeros included, has the codes and the scale of the layout."""
    codes, scale = quantized(numbers, x)
    want, scales = Layout("int8", (None, None)).quantize(x[None])
    np.testing.assert_array_equal(codes, want[0])
    np.testing.assert_array_equal(scale, scales[0, 0])


def test_low_bytes_are_packed_in_order(numbers: ctypes.CDLL) -> None:
    """The first word's byte is the lowest, whatever the words hold above."""
    assert numbers.pack(0x12345601, 0xFFFFFF02, 3, 0x80000004) == 0x04030201
