"""The pre-pass's kernels equal the reference: in the interpreter here, and on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kdsl
from kdsl import Grid, layouts, masks, orders, targets
from kdsl.expr import table
from kdsl.kernels.prepass import arguments, launch
from kdsl.kernels.prepass.config import SPACE, Config, default, problem
from kdsl.runtime import codecache
from kdsl.runtime.builder import device_target
from kdsl.runtime.operator import Operator
from kdsl.runtime.prepass import Prepared
from kdsl.specs import Prepass
from tests.devices import DEVICE, GPU, examples
from tests.preparing import by_name, check, inputs, prepasses
from tests.quantized import expected

# The interpreter computes with NumPy, which warns of what a GPU does in silence.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
DTYPES = ("float16", "float32") if DEVICE == "cpu" else ("bfloat16", "float16", "float32")
TEXT = Grid(frames=3, height=5, width=7, text=9, text_at="end")
SPEC = Prepass(
    tokens=TEXT, heads=4, kv_heads=2, head_dim=64, dtype="float16",
    layout=layouts.int8_qk_fp8_pv(), norm="rms", rope="interleaved", smooth=True, pool=(64, 128),
    order=[orders.axes(TEXT, "HWF")] * 2 + [orders.cubes(TEXT, (2, 2, 3))] * 2,
)  # fmt: skip


def here() -> targets.Target:
    """What operators are built for."""
    found = device_target() if GPU is None else targets.get(GPU)
    assert found is not None
    return found


def built(spec: Prepass, config: Any = None) -> Operator:
    """The kernels of a spec on this device."""
    return kdsl.build(spec, gpu=GPU, config=config, backend="triton", mode="off")


@st.composite
def configs(draw: st.DrawFn, spec: Prepass) -> Config:
    """Any legal configuration: the default with some of its settings changed."""
    target = here()
    held = default(spec, target).to_json()
    for name in draw(st.lists(st.sampled_from(sorted(SPACE)), max_size=4)):
        changed = {**held, name: draw(st.sampled_from(SPACE[name]))}
        if problem(spec, Config.from_json(changed), target) is None:
            held = changed
    return Config.from_json(held)


@settings(max_examples=examples(5))
@given(data=st.data(), spec=prepasses(DTYPES), seed=st.integers(0, 2**16))
def test_kernels_equal_the_reference(data: st.DataObject, spec: Prepass, seed: int) -> None:
    """Any norm, rotation, order by head, group of heads, layout, pooling and legal configuration,
    on grids that no tile divides, of views of one projection, with narrow and wide tables."""
    config = data.draw(configs(spec))
    tensors = inputs(spec, data.draw(st.integers(1, 2)), seed, DEVICE, data.draw(st.booleans()))
    check(spec, built(spec, config.to_json())(*tensors.values()), tensors)


@settings(max_examples=examples(2))
@given(data=st.data(), spec=prepasses(("float16",), 200), seed=st.integers(0, 2**16))
def test_attention_of_what_was_made(data: st.DataObject, spec: Prepass, seed: int) -> None:
    """Pre-pass and quantized attention, one after the other, are the reference of quantized
    attention, log-sum-exps included."""
    assume(spec.layout.weights != "e4m3" or DEVICE == "cuda")
    assume(spec.head_dim != 80)  # 8-bit products take 32 channels at a time
    given_ = inputs(spec, 1, seed, DEVICE)
    took = spec.attention(return_lse=True, mask=masks.window(160))
    op = kdsl.build(took, gpu=GPU, backend="triton", mode="off")
    made = built(spec)(*given_.values())
    out, lse = op(*made.operands)
    operands = tuple(by_name(spec, made)[n] for n in spec.layout.operands)
    expected(took, operands, block_n=op.config["block_n"]).check(out, lse)


@pytest.mark.parametrize("layout", [layouts.int8_qk_fp8_pv(), layouts.int8_qk_int8_pv("thread")])
@pytest.mark.parametrize("norm", [None, "rms", "rms_token", "layer"])
def test_what_is_no_number(norm: str | None, layout: layouts.AttentionLayout) -> None:
    """NaN and infinities in q, k and v, tokens of zeros, a constant head of k: scales are NaN and 0
    where the reference's are, codes 0, and everything else is as near to it as ever."""
    spec = replace(SPEC, norm=norm, layout=layout)
    given_ = inputs(spec, 2, 5, DEVICE)
    given_ = {n: x.clone() for n, x in given_.items()}
    given_["q"][0, 0, 3, 2] = torch.nan
    given_["q"][0, 1, 70:90] = 0
    given_["q"][1, 2, 113, 63] = -torch.inf
    given_["k"][0, 0, 50, 1] = torch.inf
    given_["k"][1, 1] = 0.25
    given_["v"][0, 1, 8, 5] = torch.nan
    given_["v"][1, 0, :, 6] = 0
    given_["v"][1, 1, 111, 7] = torch.inf
    made = built(spec)(*given_.values())
    check(spec, made, given_)
    found = by_name(spec, made)
    assert found["k_scale"][0, 0].isnan().all()
    assert not found["k_scale"][0, 1].isnan().any()
    if norm is None and spec.rope is None:
        assert not found["k_scale"][1, 1].any()
    assert not found["v"][0, 1].view(torch.int8)[5].any()


def test_a_constant_k_has_nothing_left() -> None:
    """Its mean is exact where numbers have few enough bits, and scales are 0."""
    spec = replace(SPEC, norm=None, rope=None)
    given_ = inputs(spec, 1, 0, DEVICE)
    given_["k"] = torch.full_like(given_["k"], 0.375)
    found = by_name(spec, built(spec)(*given_.values()))
    assert not found["k_scale"].any()
    assert not found["k"].any()
    assert (found["k_mean"] == 0.375).all()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("rope", ["interleaved", "half"])
def test_head_dims_and_ropes(head_dim: int, rope: str) -> None:
    """Channels beyond the last one of a power of two are nobody's."""
    for dtype in DTYPES:
        for norm in ("rms", "layer"):
            spec = replace(SPEC, head_dim=head_dim, rope=rope, dtype=dtype, norm=norm)
            given_ = inputs(spec, 1, head_dim, DEVICE, wide=dtype == "float32")
            check(spec, built(spec)(*given_.values()), given_)


def test_strides() -> None:
    """Heads side by side, tokens far apart, channels with steps, tables in other memory."""
    given_ = inputs(SPEC, 2, 1, DEVICE)
    op = built(SPEC)
    wide = {}
    for name in "qkv":
        shape, dtype = given_[name].shape, given_[name].dtype
        wide[name] = torch.zeros((*shape[:-1], 192), dtype=dtype, device=DEVICE)[..., 1::3]
        wide[name].copy_(given_[name])
    assert wide["q"].stride(-1) == 3
    turned = {**given_, **wide, "cos": given_["cos"].T.contiguous().T}
    check(SPEC, op(*turned.values()), given_)
    contiguous = {n: x.contiguous() for n, x in given_.items()}
    check(SPEC, op(*contiguous.values()), given_)


@pytest.mark.parametrize("tokens", [1, 33, 60, 64, 65, 129, 190])
def test_nothing_is_written_beside_the_outputs(tokens: int) -> None:
    """Around every output, and in what launches leave to each other, memory stays as it was: where
    padded v has more tiles than there are tokens for too."""
    for block in (32, 64, 128):
        spec = Prepass(
            tokens=tokens, heads=2, head_dim=64, dtype="float16", smooth=True, pool=(16, 32),
            layout=layouts.int8_qk_int8_pv("block", min(block, 64), block), norm="rms_token",
        )  # fmt: skip
        given_ = inputs(spec, 1, 0, DEVICE)
        config = Config.from_json({**default(spec, here()).to_json(), "block": block})
        config = replace(config, num_warps=max(block // 16, 2))
        assert problem(spec, config, here()) is None
        out, around = {}, {}
        for name, x in launch.outputs(spec, given_).items():
            wide = torch.full((x.nbytes + 8192,), 0x5A, dtype=torch.uint8, device=DEVICE)
            out[name] = wide[4096:-4096].view(x.dtype).view(x.shape)
            around[name] = wide
        module = codecache.load(arguments.source())
        launch.Launcher(module, spec, config)(given_, {}, out)
        for name, wide in around.items():
            assert (wide[:4096] == 0x5A).all(), name
            assert (wide[-4096:] == 0x5A).all(), name
        found = [out[n] for n in spec.layout.operands]
        beside = (out[n] for n in ("k_mean", "q_pool", "k_pool"))
        check(spec, Prepared(tuple(found), *beside), given_)


def test_orders_that_move_nothing() -> None:
    """Of different forms, head by head: no part has more heads than there are."""
    still = [~orders.axes(TEXT, "FHW"), orders.cubes(TEXT, (1, 1, 9))]
    assert not replace(SPEC, order=[*still[:1] * 2, *still[1:] * 2]).moves
    spec = replace(SPEC, order=[*still[:1] * 2, *still[1:] * 2])
    config = default(spec, here())
    assert sum(count for _, count, _ in arguments.parts(spec, config, "q")) == 4
    held = arguments.numbers(spec, config, "prepass_codes", {})
    assert (held["q_parts"] * held["q_each"], held["k_parts"] * held["k_each"]) == (4, 2)
    given_ = inputs(spec, 1, 0, DEVICE)
    check(spec, built(spec)(*given_.values()), given_)


def test_an_order_that_comes_with_the_call() -> None:
    """A list of tokens as a table: bound, given at the call, and given otherwise at the next."""
    rng = np.random.default_rng(0)
    late = orders.table(table("late", TEXT.tokens))
    spec = replace(SPEC, order=late)
    given_ = inputs(spec, 1, 2, DEVICE)
    op = built(spec)
    for _ in range(2):
        tables = {"late": rng.permutation(TEXT.tokens).astype(np.int32)}
        check(spec, op(*given_.values(), tables=tables), given_, tables)
        check(spec, op.bind(tables)(*given_.values()), given_, tables)
    with pytest.raises(kdsl.errors.InputError, match="has no values"):
        op(*given_.values())


def test_nothing_to_do() -> None:
    """No batch items, and a grid without tokens: outputs of nothing, padding of zeros."""
    given_ = inputs(SPEC, 2, 0, DEVICE)
    none = {n: x[:0] if n in "qkv" else x for n, x in given_.items()}
    made = by_name(SPEC, built(SPEC)(*none.values()))
    assert {n: tuple(x.shape) for n, x in made.items()} == {
        n: shape for n, (shape, _) in SPEC.shapes(0).items()
    }


def test_v_that_stays_is_not_copied() -> None:
    """16-bit v in its own order is the tensor that came in; in another one it is moved."""
    spec = replace(SPEC, layout=layouts.int8_qk(), order=None)
    given_ = inputs(spec, 1, 0, DEVICE)
    assert built(spec)(*given_.values()).operands[-1] is given_["v"]
    moved = replace(SPEC, layout=layouts.int8_qk())
    check(moved, built(moved)(*given_.values()), given_)


def test_arrays_come_back_as_arrays() -> None:
    """NumPy in, NumPy out, through the kernels; e4m3 as its bits."""
    given_ = inputs(SPEC, 1, 0)
    arrays = [x.numpy() for x in given_.values()]
    made, wanted = built(SPEC)(*arrays), built(SPEC).reference(*arrays)
    assert all(isinstance(x, np.ndarray) for x in made.operands)
    assert made.operands[4].dtype == np.uint8
    differ = sum(int((a != b).sum()) for a, b in zip(made.operands, wanted.operands, strict=True))
    assert differ <= 1e-2 * sum(x.size for x in made.operands)
