"""Quantization, conversion, codebooks and twin-log: laws and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import layouts
from kdsl.errors import InputError, SpecError
from kdsl.layouts.codes import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    F16,
    F32,
    Code,
    Float,
    Int,
    Lut,
    code_from_json,
    code_to_json,
)
from kdsl.layouts.quantizer import CLIPS
from tests.kdsl.layouts.cases import CASES, buffers

SMALL = (E2M1, E2M3, E3M2, E4M3, E5M2)
CODES = (*SMALL, Int(3), Int(4, bias=-8), Int(8, signed=True), Int(6, negated=True),
         layouts.shifted_log(3), layouts.shifted_log(4, exact="e4m3"))  # fmt: skip
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_codes_are_nearest(code: Code) -> None:
    """Each pattern's value encodes to itself, and any value to one of least distance."""
    patterns = np.arange(1 << code.bits)
    values = code.decode(patterns).astype(np.float64)
    finite = np.isfinite(values)
    again = code.decode(code.encode(values[finite]))
    np.testing.assert_array_equal(again, values[finite])
    low, high = code.ends
    x = RNG.uniform(low, high, 500)
    got = code.decode(code.encode(x)).astype(np.float64)
    least = np.abs(values[finite][None] - x[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(got - x), least, atol=1e-12)
    assert code_from_json(code_to_json(code)) == code
    for beyond in (high * 4 + 9, np.nan):
        with pytest.raises(InputError):
            code.encode(np.array([beyond]))


@pytest.mark.parametrize(("code", "dtype"), [(F16, np.float16), (F32, np.float32)])
def test_floats_are_numpys(code: Float, dtype: Any) -> None:
    """Half and single precision agree with NumPy on all (sampled) patterns and roundings."""
    kind = np.dtype(f"u{np.dtype(dtype).itemsize}")
    patterns = RNG.integers(0, 1 << code.bits, 20000)
    wanted = patterns.astype(kind).view(dtype).astype(np.float32)
    np.testing.assert_array_equal(code.decode(patterns), wanted)
    x = RNG.standard_normal(20000) * 10.0 ** RNG.integers(-7, 4, 20000)
    np.testing.assert_array_equal(code.encode(x), x.astype(dtype).view(kind))


def test_torchs_small_floats() -> None:
    """e4m3, e5m2 and bfloat16 decode and round as torch has them."""
    torch = pytest.importorskip("torch")
    x = RNG.standard_normal(5000).astype(np.float32) * 20
    for code, dtype, word in (
        (E4M3, torch.float8_e4m3fn, torch.uint8),
        (E5M2, torch.float8_e5m2, torch.uint8),
        (BF16, torch.bfloat16, torch.int16),
    ):
        cast = torch.from_numpy(x).to(dtype)
        bits = cast.view(word).to(torch.int64).numpy() & ((1 << code.bits) - 1)
        np.testing.assert_array_equal(code.encode(x), bits)
        np.testing.assert_array_equal(code.decode(bits), cast.float().numpy())


EVENLY = (layouts.w8(), layouts.compressed_tensors(4, 32), layouts.awq(32), layouts.gptq(4, 32),
          layouts.hqq(32), layouts.slog(4, group=32))  # fmt: skip


@given(st.sampled_from(EVENLY), st.integers(0, 2**32 - 1), st.floats(-20, 3), st.booleans())
@settings(deadline=None, max_examples=40)
def test_error_bound(fmt: layouts.Format, seed: int, log_size: float, zeros: bool) -> None:
    """No value is off by more than its code's widest half step, in units of the stored scale.

    Zero points and float16 scales may each add half a step and 2**-10 of the range.
    """
    rng = np.random.default_rng(seed)
    shape = (32, 64)
    x = (rng.standard_normal(shape) * 2.0**log_size).astype(np.float32)
    if zeros:
        x[3] = 0
    fields = layouts.quantize(fmt, x)
    assert fmt.level.scale is not None
    got = fmt.decode(fields, shape)
    scale_field = fmt.level.scale.field
    groups = x.reshape(32, -1, 32) if fmt.name != "int8-channel" else x.reshape(32, 1, 64)
    largest = np.abs(groups).max(axis=-1)
    code = fmt.level.field.code
    values = np.sort(code.decode(np.arange(1 << code.bits)).astype(np.float64))
    widest = np.diff(values).max() / 2
    span = 2 * largest if scale_field.fit == "range" else largest
    unit = span / (code.limit if scale_field.fit == "largest" else values[-1] - values[0])
    # A float16 scale is off by 2**-11 of itself or half its least step, over the whole code.
    off = unit * (widest + (0.5 if fmt.level.zero else 0)) + span * 2.0**-10
    off = off + np.abs(values).max() * 2.0**-25 * (scale_field.code == F16) + 1e-30
    error = np.abs(got.astype(np.float64) - x).reshape(groups.shape).max(axis=-1)
    assert (error <= off).all()
    if zeros:
        assert (got[3] == 0).all()


@given(st.sampled_from(sorted(CASES)), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_round_trip(name: str, seed: int) -> None:
    """Random patterns survive packing; their matrix survives being copied to its own format."""
    case = CASES[name]
    held = buffers(case, seed)
    again = layouts.convert(held, case.fmt, case.fmt, case.shape)
    np.testing.assert_array_equal(
        case.fmt.dequantize(again, case.shape), case.fmt.dequantize(held, case.shape)
    )


@given(
    st.sampled_from(
        [
            (layouts.compressed_tensors(4, 64), layouts.marlin(32)),
            (layouts.compressed_tensors(4, 64), layouts.q4_0()),
            (layouts.compressed_tensors(4, 64), layouts.compressed_tensors(8, 64)),
            (layouts.marlin(64), layouts.compressed_tensors(4, 64)),
            (layouts.awq(32), layouts.gptq(8, 32)),
            (layouts.nf4(64, nested=False), layouts.nf4(64, nested=False)),
            (layouts.mx(E2M1, swizzled=True), layouts.mx(E2M1)),
            (layouts.mx(E2M1), layouts.mx(E4M3)),
        ]
    ),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=25)
def test_conversions(pair: tuple[layouts.Format, layouts.Format], seed: int) -> None:
    """Another format of the same numbers holds exactly the same matrix."""
    source, target = pair
    shape = (128, 128)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    fields = layouts.quantize(source, x)
    if source.name == "awq":
        fields["zero"] = np.maximum(fields["zero"], 1)  # GPTQ stores zero points from 1
    held = source.pack(fields, shape)
    moved = layouts.convert(held, source, target, shape)
    np.testing.assert_array_equal(target.dequantize(moved, shape), source.dequantize(held, shape))


def test_conversions_that_would_lose() -> None:
    """Coarser groups, narrower codes and missing scales are refused, not rounded."""
    x = RNG.standard_normal((64, 128)).astype(np.float32)
    fine, wide = layouts.compressed_tensors(4, 32), layouts.compressed_tensors(8, 32)
    held = fine.pack(layouts.quantize(fine, x), x.shape)
    with pytest.raises(InputError, match="cannot hold these values"):
        layouts.convert(held, fine, layouts.compressed_tensors(4, 64), x.shape)
    held = wide.pack(layouts.quantize(wide, x), x.shape)
    with pytest.raises(InputError, match="does not fit the code"):
        layouts.convert(held, wide, fine, x.shape)
    nested = layouts.nf4()
    held = nested.pack(layouts.quantize(nested, x), x.shape)
    with pytest.raises(SpecError, match="no place for 'absmax2'"):
        layouts.convert(held, nested, layouts.nf4(nested=False), x.shape)


def test_clip_search_helps() -> None:
    """A searched scale never does worse than the plain one, by group, and on Gaussians better."""
    x = RNG.standard_normal((32, 256)).astype(np.float32)
    fmt = layouts.slog(3, group=64)

    def errors(weights: Any = None, clips: Any = (1.0,)) -> Any:
        got = fmt.decode(layouts.quantize(fmt, x, clips=clips, weights=weights), x.shape)
        return (got - x).astype(np.float64) ** 2

    plain, searched = (errors(clips=c).reshape(32, 4, 64).sum(-1) for c in ((1.0,), CLIPS))
    assert (searched <= plain + 1e-9).all()
    assert searched.sum() < 0.95 * plain.sum()
    weights = RNG.uniform(0, 1, 256) ** 8
    aware = errors(weights, CLIPS) * weights
    assert aware.sum() < (errors(clips=CLIPS) * weights).sum()


def test_bad_values() -> None:
    """NaN, infinities, scales beyond their code, a missing table: errors that say where."""
    fmt = layouts.awq(32)
    x = np.ones((8, 32), np.float32)
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="row 2, column 3"):
            layouts.quantize(fmt, np.where(np.arange(256).reshape(8, 32) == 67, bad, x))
    with pytest.raises(InputError, match="does not fit the code"):
        layouts.quantize(fmt, x * 3e6)
    with pytest.raises(InputError, match="'g_idx' is not given"):
        layouts.quantize(layouts.gptq(4, 32, act_order=True), np.ones((32, 32)))
    with pytest.raises(InputError, match=r"groups 0\.\.7"):
        layouts.quantize(
            layouts.gptq(4, 32, act_order=True), np.ones((32, 32)),
            given={"g_idx": np.arange(32)[None] % 8},
        )  # fmt: skip
    with pytest.raises(InputError, match="shape"):
        layouts.quantize(fmt, np.ones(3))
    with pytest.raises(InputError, match="clips"):
        layouts.quantize(fmt, x, clips=(1.5,))
    with pytest.raises(SpecError, match="fit_tlq"):
        layouts.quantize(layouts.tlq(3), x)
    fields = layouts.quantize(fmt, x)
    with pytest.raises(InputError, match="beyond 4 bits"):
        fmt.pack({**fields, "code": fields["code"] + 16}, x.shape)


def test_shifted_log() -> None:
    """2**b entries, symmetric, none zero, the published int8 entries, e4m3 entries exact."""
    assert layouts.shifted_log(3, 0.3).values[:4] == (13, 43, 81, 127)
    assert layouts.shifted_log(4, 0.2).values[:8] == (5, 16, 29, 43, 60, 79, 102, 127)
    for bits in (2, 3, 4, 5):
        for exact in ("int8", "e4m3", "float32"):
            values = np.array(layouts.shifted_log(bits, 0.2, exact).values)
            half = len(values) // 2
            assert len(values) == 2**bits
            np.testing.assert_array_equal(values[:half], -values[half:])
            if exact == "e4m3":
                np.testing.assert_array_equal(E4M3.decode(E4M3.encode(values)), values)
    with pytest.raises(SpecError, match="rounds two entries"):
        layouts.shifted_log(6, 0.4)
    with pytest.raises(SpecError, match="entries must be"):
        Lut((0.1, 1.0))


def test_normal_float() -> None:
    """The formula of the paper gives the published table to float32's rounding."""
    from kdsl.layouts.codebooks import NF4, normal_float

    np.testing.assert_allclose(normal_float(4), NF4, atol=2e-7)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_tlq(variant: str) -> None:
    """Packed twin-log weights decode to the formula, written out again here."""
    x = (0.3 * RNG.standard_normal((6, 96))).astype(np.float32)
    x[0, :3] = 0
    x[2] = np.abs(x[2])
    fmt = layouts.tlq(3, variant)
    fields = layouts.fit_tlq(fmt, x, shifts=(0.0, 0.25), quantiles=(0.99,))
    got = fmt.dequantize(fmt.pack(fields, x.shape), x.shape)
    held = {
        n: np.array(p, np.int64).astype(np.uint32).view(np.float32)
        for n, p in fields.items() if n != "code"
    }  # fmt: skip
    n = 4
    for (row, col), pattern in np.ndenumerate(fields["code"]):
        if variant == "paper":
            sign, q = (1, pattern) if pattern < n else (-1, pattern - n)
        elif pattern == 0:
            sign, q = 0, 0
        else:
            sign, q = (1, pattern - 1) if pattern <= n else (-1, pattern - n - 1)
        side = "minus" if sign < 0 else "plus"
        grid = (np.float32(q) + held[f"zero_{side}"][row, 0]) * held[f"delta_{side}"][row, 0]
        wanted = np.float32(sign) * (np.exp2(grid) - held["eta"][row, 0])
        assert got[row, col] == np.float32(wanted)
    assert fmt.level.field.code.bits == (3 if variant == "paper" else 4)
    assert (np.sign(got[1]) == np.sign(x[1])).mean() > 0.8
    with pytest.raises(InputError, match="finite"):
        layouts.fit_tlq(fmt, np.full((2, 4), np.nan))
