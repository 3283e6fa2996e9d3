"""Weights to codes in torch: NumPy's quantizer is the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import layouts
from kdsl.errors import InputError
from kdsl.layouts import Format, codebooks
from kdsl.layouts.codes import Int, Lut
from kdsl.layouts.format import Field

torch: Any = pytest.importorskip("torch")
from kdsl.nn import fitting  # noqa: E402


def uniform(group: int) -> Format:
    """Offset integers of four bits."""
    made = layouts.slog(4, None, group)
    return replace(made, level=replace(made.level, field=Field("code", Int(4, bias=-8))))


def nf(group: int) -> Format:
    """A codebook whose entries are not in order of their patterns."""
    made = layouts.slog(4, None, group)
    entries = codebooks.NF4[1::2] + codebooks.NF4[::2]
    return replace(made, level=replace(made.level, field=Field("code", Lut(entries))))


FORMATS = (
    layouts.w8(), layouts.slog(4, None, 32), layouts.slog(3, None, 64), uniform(32), nf(64),
    layouts.compressed_tensors(4, 32), layouts.slog(4, None, None, "e4m3"),
)  # fmt: skip
MATRICES = st.integers(0, 2**32 - 1)


def matrix(seed: int) -> Any:
    """Rows of different sizes, with zeros, ties and groups of zeros among them."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rng.integers(1, 9), 128)) * np.exp(rng.standard_normal(128))
    w = np.where(rng.random(w.shape) < 0.1, 0, w)
    w[0, :64] = 0
    return np.where(rng.random(w.shape) < 0.2, np.round(w), w).astype(np.float32)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@given(seed=MATRICES)
def test_patterns_are_numpys(fmt: Format, seed: int) -> None:
    """Every code and scale, bit for bit; the formats are fitted in torch."""
    assert fitting.in_torch(fmt)
    w = matrix(seed)
    found, wanted = fitting.fit(fmt, torch.from_numpy(w)), layouts.quantize(fmt, w)
    assert set(found) == set(wanted)
    for name, patterns in wanted.items():
        np.testing.assert_array_equal(found[name], patterns)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@given(seed=MATRICES, weighed=st.booleans())
def test_a_search_is_as_good(fmt: Format, seed: int, weighed: bool) -> None:
    """Squared errors of a clip search are those of NumPy's: sums differ in their order alone."""
    w, rng = matrix(seed), np.random.default_rng(seed)
    weights = rng.random(128) if weighed else None
    clips = (1.0, 0.9, 0.8, 0.6)
    errors = []
    for fields in (
        fitting.fit(fmt, torch.from_numpy(w), clips=clips, importance=weights),
        layouts.quantize(fmt, w, clips=clips, weights=weights),
    ):
        off = (fmt.decode(fields, w.shape) - w.astype(np.float64)) ** 2
        errors.append(float(np.sum(off if weights is None else off * weights)))
    assert errors[0] == pytest.approx(errors[1], rel=1e-12)


def test_rows_are_taken_in_parts(monkeypatch: Any) -> None:
    """The same patterns where a matrix is worked on a few rows at a time."""
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 128)).astype(np.float32))
    fmt = layouts.slog(4, None, 32)
    whole = fitting.fit(fmt, w, clips=(1.0, 0.9))
    monkeypatch.setattr(fitting, "AT_ONCE", 256)
    for name, patterns in fitting.fit(fmt, w, clips=(1.0, 0.9)).items():
        np.testing.assert_array_equal(patterns, whole[name])


def test_other_formats_are_numpys() -> None:
    """Zero points, nested scales and small floats go to the quantizer itself."""
    w = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    for fmt in (layouts.gptq(4), layouts.q6_k(), layouts.w8("channel", "fp8")):
        assert not fitting.in_torch(fmt)
        found, wanted = fitting.fit(fmt, torch.from_numpy(w)), layouts.quantize(fmt, w)
        assert all(np.array_equal(found[n], wanted[n]) for n in wanted)


def test_bad_input() -> None:
    """Values, factors and weights of the error that are none."""
    fmt, w = layouts.w8(), torch.ones(2, 16)
    for said, given_w, options in (
        ("not finite", torch.full((2, 16), float("nan")), {}),
        ("clips", w, {"clips": (1.5,)}),
        ("importance of shape", w, {"importance": np.ones(3)}),
        ("weights of the error", w, {"importance": -np.ones(16), "clips": (1.0, 0.5)}),
    ):
        with pytest.raises(InputError, match=said):
            fitting.fit(fmt, given_w, **options)
