"""The pre-pass's reference, each step against an independent formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdsl
from kdsl import Grid, layouts, orders
from kdsl.reference import prepass as reference
from kdsl.reference.attention import attention
from kdsl.reference.attention_quantized import attention_quantized
from kdsl.specs import Prepass
from tests.devices import examples
from tests.preparing import check_truths, index_of, inputs, prepasses

VIDEO = Grid(frames=3, height=4, width=5, text=7)
SPEC = Prepass(
    tokens=VIDEO, heads=4, kv_heads=2, head_dim=64, dtype="float32",
    layout=layouts.int8_qk_fp8_pv(),
)  # fmt: skip


def stored(spec: Prepass, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Inputs, and q and k before they are quantized."""
    given = inputs(spec, 2, seed)
    return given, reference.stored(spec, given)


def test_rms_of_a_head_and_of_a_token() -> None:
    """torch's own RMS norm, over a head's channels, and over those of all heads as Wan has it."""
    given, found = stored(replace(SPEC, norm="rms"))
    for name in "qk":
        x, weight = given[name].double(), given[f"{name}_weight"].double()
        wanted = torch.nn.functional.rms_norm(x, (64,), weight, SPEC.eps)
        np.testing.assert_allclose(found[name], wanted, 1e-12)
    given, found = stored(replace(SPEC, norm="rms_token"))
    for name in "qk":
        x = given[name].double().transpose(1, 2).flatten(2)
        weight = given[f"{name}_weight"].double()
        assert weight.numel() == x.shape[-1]
        wanted = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, SPEC.eps)
        np.testing.assert_allclose(
            found[name], wanted.unflatten(2, (-1, 64)).transpose(1, 2), 1e-12
        )


def test_layer_norm() -> None:
    """torch's own, with weight and bias."""
    given, found = stored(replace(SPEC, norm="layer"))
    for name in "qk":
        parts = (given[f"{name}_{part}"].double() for part in ("weight", "bias"))
        wanted = torch.nn.functional.layer_norm(given[name].double(), (64,), *parts, SPEC.eps)
        np.testing.assert_allclose(found[name], wanted, 1e-9, 1e-12)


def test_rotations_are_products_of_complex_numbers() -> None:
    """Interleaved as Wan multiplies complex numbers, halves as x cos + rotate(x) sin; narrow and
    wide tables mean the same; text stays."""
    for rope in ("interleaved", "half"):
        spec = replace(SPEC, rope=rope)
        given, found = stored(spec)
        x = given["q"].double()
        visual = x[..., 7:, :]
        angle = torch.complex(given["cos"].double(), given["sin"].double())
        if rope == "interleaved":
            pairs = torch.view_as_complex(visual.unflatten(-1, (-1, 2)).contiguous())
            wanted = torch.view_as_real(pairs * angle).flatten(-2)
        else:
            cos, sin = (torch.cat([given[n], given[n]], -1).double() for n in ("cos", "sin"))
            a, b = visual.chunk(2, -1)
            wanted = visual * cos + torch.cat([-b, a], -1) * sin
        np.testing.assert_allclose(found["q"][..., 7:, :], wanted, 1e-12, 1e-12)
        np.testing.assert_array_equal(found["q"][..., :7, :], x[..., :7, :])
        wide = inputs(spec, 2, 0, wide=True)
        assert wide["cos"].shape == (60, 64)
        np.testing.assert_array_equal(reference.stored(spec, wide)["q"], found["q"])


def test_angles_belong_to_original_tokens() -> None:
    """An order moves turned tokens: each head by its own, a key head by that of its group."""
    several = [orders.axes(VIDEO, "HWF")] * 2 + [orders.cubes(VIDEO, (2, 2, 2))] * 2
    plain = replace(SPEC, rope="half", norm="rms")
    given, there = stored(plain)
    _, moved = stored(replace(plain, order=several))
    for head, order in enumerate(several):
        np.testing.assert_array_equal(moved["q"][:, head], there["q"][:, head][:, order.index()])
        wanted = there["k"][:, head // 2][:, order.index()]
        np.testing.assert_array_equal(moved["k"][:, head // 2], wanted)
    out = reference.prepass(replace(plain, order=several), given)
    codes = plain.layout.restored(out["v"], VIDEO.tokens)
    wanted = reference.prepass(plain, given)
    held = plain.layout.restored(wanted["v"], VIDEO.tokens)
    for head in range(2):
        at = several[2 * head].index()
        np.testing.assert_array_equal(codes[:, head], held[:, head][:, at])


def test_smoothing_moves_all_scores_of_a_query_alike() -> None:
    """Attention on k less its mean has the same output; its log-sum-exp lacks the product of query
    and mean, as the docs say how to put it back."""
    plain = replace(SPEC, norm="rms", kv_heads=4)
    given, there = stored(plain)
    _, smooth = stored(replace(plain, smooth=True))
    spec = kdsl.Attention(tokens=VIDEO, heads=4, head_dim=64, dtype="float32", return_lse=True)
    v = given["v"].double().numpy()
    out, lse = attention(spec, there["q"], there["k"], v)
    again, less = attention(spec, smooth["q"], smooth["k"], v)
    np.testing.assert_allclose(again, out, 1e-9, 1e-12)
    back = spec.softmax_scale * np.einsum("bhnd,bhd->bhn", smooth["q"], smooth["k_mean"])
    np.testing.assert_allclose(less + back, lse, 1e-9)
    np.testing.assert_allclose(smooth["k"].mean(-2), 0, atol=1e-12)


def test_pooled_blocks_are_means_of_stored_tokens() -> None:
    """Block by block, the last one of fewer tokens."""
    spec = replace(SPEC, order=orders.axes(VIDEO, "WHF"), pool=(16, 32), smooth=True)
    given, found = stored(spec)
    out = reference.prepass(spec, given)
    for name, size in (("q", 16), ("k", 32)):
        pooled = out[f"{name}_pool"]
        assert pooled.shape[2] == -(-67 // size)
        for block in range(pooled.shape[2]):
            part = found[name][:, :, block * size : (block + 1) * size]
            np.testing.assert_allclose(pooled[:, :, block], part.mean(2), 1e-5, 1e-6)


def test_a_constant_k_has_scales_of_zero() -> None:
    """What smoothing leaves of it is nothing."""
    given = inputs(replace(SPEC, smooth=True), 1, 0)
    given["k"] = torch.full_like(given["k"], 0.5)
    out = reference.prepass(replace(SPEC, smooth=True), given)
    assert not out["k_scale"].any()
    assert not out["k"].any()
    np.testing.assert_array_equal(out["k_mean"], 0.5)


def test_no_numbers_spoil_what_they_belong_to() -> None:
    """A NaN in q its group of tokens; in k, once its mean is taken off, its whole head; in v its
    channel, and what comes of all others is as without it."""
    spec = replace(SPEC, smooth=True, rope="interleaved")
    given = inputs(spec, 1, 3)
    clean = reference.prepass(spec, given)
    given = {n: x.clone() for n, x in given.items()}
    given["q"][0, 1, 66, 5] = torch.nan
    given["k"][0, 0, 20, 8] = torch.inf
    given["v"][0, 1, 9, 3] = torch.nan
    out = reference.prepass(spec, given)
    q, k, v = (np.isnan(out[f"{n}_scale"]) for n in "qkv")
    np.testing.assert_array_equal(np.argwhere(q[..., 0]), [[0, 1, 1]])
    np.testing.assert_array_equal(k[..., 0], [[[True], [False]]])
    np.testing.assert_array_equal(np.argwhere(v[:, :, 0]), [[0, 1, 3]])
    assert not out["q"][0, 1, 64:].any()
    assert not out["k"][0, 0].any()
    assert not out["v"][0, 1, 3].any()
    np.testing.assert_array_equal(out["q"][0, 0], clean["q"][0, 0])
    np.testing.assert_array_equal(out["k"][0, 1], clean["k"][0, 1])
    np.testing.assert_array_equal(out["v"][0, 0], clean["v"][0, 0])


@settings(max_examples=examples(20))
@given(spec=prepasses(("float16", "float32"), 120), seed=st.integers(0, 2**16))
def test_both_truths_agree(spec: Prepass, seed: int) -> None:
    """NumPy's reference and torch's bounded truth, written apart, are one number."""
    check_truths(spec, inputs(spec, 1, seed))


@settings(max_examples=examples(20))
@given(spec=prepasses(("float16",), 120), seed=st.integers(0, 2**16))
def test_codes_are_the_layouts(spec: Prepass, seed: int) -> None:
    """What comes out is what the layout makes of the turned tensors brought into stored order."""
    given = inputs(spec, 2, seed)
    out = reference.prepass(spec, given)
    numbers = reference.stored(replace(spec, order=None), given)
    q, k, v = numbers["q"], numbers["k"], given["v"].numpy()
    if spec.moves:
        q = spec.stored_order.apply(q)
        held = spec.key_orders
        held = held if len(held) > 1 else held * spec.group_heads
        k, v = (np.stack([o.apply(x[:, h]) for h, o in enumerate(held)], 1) for x in (k, v))
    wanted = spec.layout.quantize(q.astype(np.float32), k.astype(np.float32), v)
    for name, x in zip(spec.layout.operands, wanted, strict=True):
        np.testing.assert_array_equal(out[name], x)


@pytest.mark.parametrize(
    ("layout", "limit"),
    [
        (layouts.int8_qk(), 0.015),
        (layouts.int8_qk_fp8_pv("thread"), 0.042),
        (layouts.int8_qk_int8_pv(), 0.028),
        (layouts.int4_qk("e4m3"), 0.27),
    ],
)
def test_attention_takes_them(layout: layouts.AttentionLayout, limit: float) -> None:
    """Quantized attention of the operands, in the model's order whatever order tokens are stored
    in, is as near to exact attention as codes of Gaussian numbers are known to be."""
    grid = Grid(frames=4, height=8, width=15, text=20)
    spec = Prepass(
        tokens=grid, heads=2, head_dim=64, dtype="float16", layout=layout, rope="interleaved",
        order=[orders.axes(grid, "HWF"), orders.cubes(grid, (2, 4, 5))], smooth=True,
    )  # fmt: skip
    given = inputs(spec, 1, 0)
    rng = np.random.default_rng(0)
    for name in "qkv":
        given[name] = torch.from_numpy(rng.standard_normal(given[name].shape)).half()
    out = reference.prepass(spec, given)
    operands = tuple(out[n] for n in layout.operands)
    found = attention_quantized(spec.attention(), operands).out
    numbers = reference.stored(replace(spec, order=None), given)
    plain = kdsl.Attention(tokens=grid, heads=2, head_dim=64, dtype="float16")
    exact, _ = attention(plain, numbers["q"], numbers["k"], given["v"].double().numpy())
    assert np.linalg.norm(found - exact) <= limit * np.linalg.norm(exact)


def test_text_and_table_rows_are_counted() -> None:
    """Tables of all tokens where some are text are refused."""
    spec = replace(SPEC, rope="half")
    given = inputs(spec, 1, 0)
    given["cos"] = torch.ones((67, 32))
    with pytest.raises(kdsl.errors.InputError, match="cos has shape"):
        reference.prepass(spec, given)
    assert index_of(spec) is None
