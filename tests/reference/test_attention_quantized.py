"""The reference of quantized attention: errors of the layouts, arithmetic that is spelled out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdsl import layouts, masks, orders
from kdsl.errors import SpecError
from kdsl.grid import Grid
from kdsl.layouts import AttentionLayout
from kdsl.layouts.codes import E4M3
from kdsl.reference.attention import attention
from kdsl.reference.attention_quantized import attention_quantized, rounded
from kdsl.specs import Attention

TOKENS = 1024


def inputs(spec: Attention, seed: int = 0) -> list[np.ndarray]:
    """Gaussian q, k, v."""
    rng = np.random.default_rng(seed)
    q = (1, spec.heads, spec.query_grid.tokens, spec.head_dim)
    k = (1, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
    return [rng.standard_normal(shape).astype(np.float32) for shape in (q, k, k)]


def error_of(layout: AttentionLayout, head_dim: int = 128) -> float:
    """Relative L2 error on Gaussian input, against the truth without a layout."""
    spec = Attention(tokens=TOKENS, heads=1, head_dim=head_dim, dtype="float16", layout=layout)
    tensors = inputs(spec)
    truth, _ = attention(replace(spec, layout=None), *tensors)
    found = attention_quantized(spec, layout.quantize(*tensors)).out
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("layout", "floor", "allowed"),
    [
        (layouts.int8_qk(), 0.010, 0.015),
        (layouts.int8_qk("thread"), 0.008, 0.015),
        (layouts.int8_qk_fp8_pv(), 0.030, 0.042),
        (layouts.int8_qk_int8_pv(), 0.015, 0.028),
        (layouts.int8_qk_int8_pv("thread", v_stored="lanes"), 0.015, 0.028),
        (layouts.int4_qk(), 0.18, 0.27),
    ],
    ids=["int8-16", "int8-16-thread", "int8-fp8", "int8-int8", "int8-int8-thread", "int4-16"],
)
def test_errors_on_gaussian_input(
    layout: AttentionLayout, floor: float, allowed: float, head_dim: int
) -> None:
    """Each layout's error is what its formats cost, and no less: nothing was left unrounded.

    INT8 scores: a step of 4 sigma / 127 on both sides is 0.013 of a score's deviation of 1; e4m3
    adds 0.026 for weights and for v each (a mantissa of 3 bits), INT8 v and weights 0.009 and 0.01;
    a step of 4 / 7 is 0.23.
    """
    assert floor < error_of(layout, head_dim) <= allowed


def test_errors_are_those_of_steps() -> None:
    """INT8 scores alone err by the quadratic mean of both sides' rounding, within a fifth."""
    spec = Attention(tokens=TOKENS, heads=1, head_dim=64, dtype="float16", layout=layouts.int8_qk())
    q, k, v = inputs(spec)
    steps = [
        layout.quantize(x)[1] for layout, x in ((layouts.int8_qk().q, q), (layouts.int8_qk().k, k))
    ]
    expected = np.sqrt(sum(float((s**2).mean()) / 12 for s in steps))
    found = attention_quantized(spec, layouts.int8_qk().quantize(q, k, v)).out
    truth, _ = attention(replace(spec, layout=None), q, k, v)
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert 0.8 * expected < error < 1.2 * expected


def test_more_bits_err_less() -> None:
    """Signed weights lose a bit against unsigned ones; a scale a thread is finer than a block's."""
    v = layouts.Layout("int8", (None, 1))
    plain = layouts.int8_qk()
    signed = AttentionLayout(plain.q, plain.k, v, "int8", "channels")
    assert error_of(layouts.int8_qk_int8_pv()) < 0.75 * error_of(signed)
    assert error_of(layouts.int8_qk("thread")) < error_of(plain)
    assert error_of(layouts.int4_qk(per="thread")) < error_of(layouts.int4_qk())


def test_exact_numbers_are_exact() -> None:
    """Inputs that codes hold exactly: the truth comes out up to the weights' rounding, under masks,
    orders, groups and ragged ends; without rounding (one key a query) to the last bit."""
    grid = Grid(height=9, width=14, text=5)
    order = orders.axes(grid, "WH")
    base = Attention(
        tokens=grid, heads=4, kv_heads=2, head_dim=64, dtype="float16", order=order, stored=True,
        mask=masks.window(grid, (5, 5)) | masks.text(grid), block=(32, 64), return_lse=True,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    q, k, v = (rng.integers(-127, 128, x.shape).astype(np.float32) / 64 for x in inputs(base))
    for x, tokens in ((q, 64), (k, 128), (v, 131)):
        x[:, :, ::tokens] = 127 / 64
    v[:, :, 0] = 127 / 64
    truth, lse = attention(base, q, k, v)
    for layout in (layouts.int8_qk(), layouts.int8_qk_int8_pv(v_stored="lanes")):
        spec = replace(base, layout=layout)
        codes = layout.quantize(q, k, v)
        np.testing.assert_array_equal(codes[0].astype(np.float32) * codes[1].max(), q)
        found = attention_quantized(spec, codes)
        np.testing.assert_allclose(found.lse, lse, atol=1e-5)
        # At most half a code of each of 30 weights or so, one of which is one: 30 ** 0.5 / 510.
        assert np.linalg.norm(found.out - truth) < 0.011 * np.linalg.norm(truth)
        alone = replace(spec, mask=masks.same(np.arange(grid.tokens)))
        own, _ = attention(replace(alone, layout=None), q, k, v)
        np.testing.assert_allclose(attention_quantized(alone, codes).out, own, rtol=1e-6)


def test_steps_change_codes_and_nothing_else() -> None:
    """Narrower steps meet other running maxima: outputs differ by less than the format's error."""
    spec = Attention(
        tokens=300, heads=1, head_dim=64, dtype="float16", layout=layouts.int8_qk_int8_pv()
    )
    assert spec.layout is not None
    operands = spec.layout.quantize(*inputs(spec))
    wide, narrow = (attention_quantized(spec, operands, step=n) for n in (128, 32))
    np.testing.assert_allclose(wide.lse, narrow.lse, rtol=1e-12)
    difference = np.linalg.norm(wide.out - narrow.out) / np.linalg.norm(wide.out)
    assert 0 < difference < 0.02


def test_maxima_may_stay_behind() -> None:
    """Maxima that lag change codes, not what is computed: scores that grow from step to step, by
    less and by more than the lag, give the truth as well as maxima that follow."""
    spec = Attention(
        tokens=512, heads=1, head_dim=64, dtype="float16", layout=layouts.int8_qk_fp8_pv()
    )
    assert spec.layout is not None
    q, k, v = inputs(spec)
    k = k * np.repeat([0.5, 1.0, 2.0, 6.0], 128)[:, None].astype(np.float32)
    operands = spec.layout.quantize(q, k, v)
    truth, lse = attention(replace(spec, layout=None), q, k, v)
    errors = []
    for lag, coded in ((0.0, False), (4.0, False), (4.0, True)):
        found = attention_quantized(spec, operands, lag=lag, coded_sums=coded)
        # Sums of codes err as many codes of 3 bits do together.
        plain = attention_quantized(spec, operands).lse
        np.testing.assert_allclose(found.lse, plain, rtol=0.02 if coded else 1e-12)
        assert np.abs(found.lse - lse).max() < 0.2
        errors.append(np.linalg.norm(found.out - truth) / np.linalg.norm(truth))
    assert errors[0] != errors[1]
    assert max(errors[1:]) < 1.05 * errors[0]


def test_doubt_is_what_rounding_the_other_way_costs() -> None:
    """Without an error of the exponent there is none; it grows with it, and covers a shift of all
    scores by as much."""
    spec = Attention(
        tokens=200, heads=1, head_dim=64, dtype="float16", layout=layouts.int8_qk_int8_pv()
    )
    assert spec.layout is not None
    operands = list(spec.layout.quantize(*inputs(spec)))
    plain = attention_quantized(spec, tuple(operands))
    assert not plain.doubt.any()
    doubt = attention_quantized(spec, tuple(operands), exponent_error=1e-4).doubt
    less = attention_quantized(spec, tuple(operands), exponent_error=1e-6).doubt
    assert (less <= doubt).all()
    assert doubt.any()
    operands[1] = operands[1] * np.float32(1 + 2e-6)
    moved = attention_quantized(spec, tuple(operands))
    off = np.abs(moved.out - plain.out)
    allowed = attention_quantized(spec, tuple(operands), exponent_error=4e-6).doubt
    assert (off <= allowed + 1e-4 * np.abs(plain.out).max()).all()


def test_weights_round_as_their_codes_do() -> None:
    """Every code, the middle between neighbours, and the largest."""
    assert rounded(np.array([0.5 / 255, 1.0, 1.001]), "uint8", 1 / 255).tolist() == [1 / 255, 1, 1]
    x = np.random.default_rng(0).random(2000) * 2.0 ** np.arange(-12, 8).repeat(100)
    np.testing.assert_array_equal(E4M3.nearest(x), E4M3.decode(E4M3.encode(x)))
    np.testing.assert_array_equal(rounded(x, "float16", 1.0), x.astype(np.float16))
    assert E4M3.nearest([15.9, 500.0, 2.0**-10, -0.1]).tolist() == [16, 448, 0, -0.1015625]


def test_a_scale_of_nan_reaches_who_visits_it() -> None:
    """A NaN in q spoils its group of queries, in a channel of v that channel, in k who visits."""
    spec = Attention(
        tokens=256, heads=1, head_dim=64, dtype="float16", layout=layouts.int8_qk_int8_pv(),
        mask=masks.causal(), block=(64, 64),
    )  # fmt: skip
    assert spec.layout is not None
    tensors: list[Any] = inputs(spec)
    spoilt = []
    for i in range(3):
        changed = [x.copy() for x in tensors]
        changed[i][0, 0, 70, 3] = np.nan
        spoilt.append(np.isnan(attention_quantized(spec, spec.layout.quantize(*changed)).out[0, 0]))
    rows = np.arange(256)
    np.testing.assert_array_equal(spoilt[0].all(1), (rows >= 64) & (rows < 128))
    assert spoilt[1].all()  # one group of 128 keys, which every row visits a part of
    np.testing.assert_array_equal(spoilt[2].all(0), np.arange(64) == 3)


def test_without_a_layout() -> None:
    """A spec without a layout has no quantized arithmetic."""
    with pytest.raises(SpecError, match="no layout"):
        attention_quantized(Attention(tokens=4, heads=1, head_dim=64), ())
