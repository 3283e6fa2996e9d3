"""Quantized attention in the interpreter: kernel, operands and operator equal the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from kdsl import layouts, masks
from kdsl.errors import InputError, SpecError, UnsupportedError
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.quantized.tunable import QuantizedTunable
from kdsl.layouts import AttentionLayout, Layout
from kdsl.layouts.codes import E4M3
from kdsl.runtime import build, codecache
from kdsl.runtime.program import Program
from kdsl.specs import Attention
from tests.devices import DEVICE, GPU, examples
from tests.interpreter.calls import configs, tensors
from tests.interpreter.strategies import BLOCKS, Case, cases
from tests.quantized import expected, made

HEAD_DIMS = (64, 96, 128)
WIDE = tuple(b for b in BLOCKS if b[1] >= 32)
"""Blocks that 8-bit products can take."""
LAYOUTS = [
    layouts.int8_qk(),
    layouts.int8_qk("thread"),
    layouts.int8_qk("block", 16, 32),
    layouts.int8_qk_int8_pv(),
    layouts.int8_qk_int8_pv("thread"),
    layouts.int8_qk_int8_pv("block", 32, 24, v_stored="lanes"),
    layouts.int8_qk_fp8_pv(v_stored="channels"),
    layouts.int8_qk_fp8_pv("thread"),
    layouts.int4_qk(),
    layouts.int4_qk("int4", "thread"),
    AttentionLayout(
        Layout("int8", (None, None)), Layout("int8", (1, None)), Layout("int8", (None, 1)),
        "int8", "channels",
    ),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def right_float8() -> Iterator[None]:
    """Triton 3.7's interpreter rounds 15.9 to e4m3 as 8: it drops the carry into the exponent, and
    what is below the smallest normal number is cut off."""
    from triton.runtime import interpreter

    theirs = interpreter._convert_float

    def convert(x: Any, source: Any, into: Any, rounding: Any) -> Any:
        if str(into) == "fp8e4nv" and DEVICE == "cpu":
            values = x.view(np.float32)
            codes = E4M3.encode(np.nan_to_num(values), clip=True).astype(np.uint8)
            return np.where(np.isnan(values), np.uint8(0x7F), codes)
        return theirs(x, source, into, rounding)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        yield


def in_stored_order(spec: Attention) -> Attention:
    """The spec with tensors in stored order, with a key head for each query head if need be."""
    return replace(spec, kv_heads=spec.kv_heads if spec.storable else spec.heads, stored=True)


def check(case: Case, layout: AttentionLayout, config: Config, strides: str) -> None:
    """Output and log-sum-exp are within the derived bound, and every element was written."""
    spec = replace(case.spec, layout=layout)
    note(f"{spec!r}\n{config}\n{strides}")
    op = build(spec, gpu=GPU, backend="triton", config=config.to_json())
    operands = made(spec, *tensors(case, strides))
    found = op(*operands, tables=case.tables)
    out, lse = found if spec.return_lse else (found, None)
    assert out.dtype == getattr(torch, spec.dtype)
    assert out.shape == operands[0].shape
    expected(spec, operands, case.tables, block_n=config.block_n).check(out, lse)
    if lse is not None:
        assert bool((out[lse.isneginf()] == 0).all())


@settings(max_examples=examples(24))
@given(
    case=cases(("float16",), HEAD_DIMS, WIDE),
    layout=st.sampled_from(LAYOUTS),
    data=st.data(),
)
def test_kernel_equals_reference(case: Case, layout: AttentionLayout, data: Any) -> None:
    """Any mask, stored order, ragged size, grouping, layout, head dimension and tile."""
    case.spec = in_stored_order(case.spec)
    found = configs(QuantizedTunable(replace(case.spec, layout=layout)))
    config = data.draw(st.sampled_from(found))
    check(case, layout, config, data.draw(st.sampled_from(("contiguous", "tokens first"))))


@given(
    layout=st.sampled_from(LAYOUTS),
    tokens=st.integers(0, 150),
    seed=st.integers(0, 2**31),
    special=st.sampled_from(("none", "zeros", "nan", "inf", "small")),
)
def test_operands_are_the_layouts(
    layout: AttentionLayout, tokens: int, seed: int, special: str
) -> None:
    """Torch makes the codes, scales and sums that NumPy defines, bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, tokens, 64, generator=generator).half() for _ in range(3))
    if tokens and special != "none":
        value = {"zeros": 0.0, "nan": float("nan"), "inf": float("inf"), "small": 6e-8}[special]
        for x in (q, k, v):
            x[0, 1, tokens // 2 :] = value
    found = made(Attention(tokens=tokens or 1, heads=2, head_dim=64, layout=layout), q, k, v)
    wanted = layout.quantize(q.numpy(), k.numpy(), v.numpy())
    shapes = layout.shapes(tuple(q.shape), tuple(k.shape), "float16")
    for x, y, (name, (shape, dtype)) in zip(found, wanted, shapes.items(), strict=True):
        assert (tuple(x.shape), str(x.dtype)) == (shape, f"torch.{dtype}"), name
        assert y.shape == shape
        bits = x.view(torch.uint8) if "float8" in dtype else x
        np.testing.assert_array_equal(bits.numpy(), y, err_msg=name)


def test_a_wrong_code_is_noticed() -> None:
    """The bound sees one key's codes off by one step, in each kind of product with v."""
    for layout in LAYOUTS[:8]:
        spec = Attention(tokens=130, heads=1, head_dim=64, dtype="float16", layout=layout)
        case = Case(spec, {}, 1, 3)
        operands = made(spec, *tensors(case, "contiguous"))
        right = expected(spec, operands, block_n=64)
        right.check(right.out, right.lse)
        changed = list(operands)
        changed[2] = operands[2].clone()
        changed[2][0, 0, 77] += 16
        wrong = expected(spec, tuple(changed), block_n=64)
        assert (np.abs(wrong.out - right.out) > right.out_error).any(), layout


SPEC = Attention(
    tokens=200, heads=4, kv_heads=2, head_dim=64, dtype="float16", mask=masks.causal(),
    block=(64, 64), return_lse=True, layout=layouts.int8_qk_int8_pv(),
)  # fmt: skip
CONFIG = {"block_m": 64, "block_n": 64, "num_warps": 4, "num_stages": 2, "loads": "pointer"}


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Gaussian q, k, v."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((1, 4, 200, 64), (1, 2, 200, 64), (1, 2, 200, 64))
    return tuple(torch.randn(s, generator=g).half().to(DEVICE) for s in shapes)


def test_one_operator_takes_either() -> None:
    """16-bit tensors are quantized on the way: the same bits as from operands made before; arrays
    go in and come out; a second call on remembered shapes gives the same."""
    op = build(SPEC, gpu=GPU, backend="triton", config=CONFIG)
    q, k, v = inputs()
    out, lse = op(q, k, v)
    for again in (op(*op.quantize(q, k, v)), op(q, k, v, check=True), op(q, k, v)):  # type: ignore[attr-defined]
        assert torch.equal(out, again[0])
        assert torch.equal(lse, again[1])
    arrays = op(*(x.cpu().numpy() for x in (q, k, v)))
    assert (type(arrays[0]), arrays[0].dtype) == (np.ndarray, np.float16)
    np.testing.assert_array_equal(arrays[0], out.cpu().numpy())
    operands = op.quantize(q, k, v)  # type: ignore[attr-defined]
    expected(SPEC, operands, block_n=64).check(out, lse)
    named = op.reference(q, k, v)
    np.testing.assert_array_equal(named[0], op.reference(*operands)[0])


def test_plans_of_a_call() -> None:
    """A map of blocks that comes with the call, as an array or as a tensor whose lists are made on
    the device, beside one that is bound: the same bits."""
    spec = replace(SPEC, mask=masks.blocks("plan", block=(64, 64)) & masks.causal())
    op = build(spec, gpu=GPU, backend="triton", config=CONFIG)
    plan = (np.random.default_rng(0).random((4, 4, 4)) < 0.6).astype(np.uint8)
    operands = op.quantize(*inputs())  # type: ignore[attr-defined]
    out, lse = op(*operands, tables={"plan": plan})
    expected(spec, operands, {"plan": plan}, block_n=64).check(out, lse)
    on_device = op(*operands, tables={"plan": torch.from_numpy(plan).to(DEVICE)})
    for again in (on_device, op.bind({"plan": plan})(*operands)):
        assert torch.equal(out, again[0])
        assert torch.equal(lse, again[1])
    with pytest.raises(InputError, match="table 'plan' has no values"):
        op(*operands)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_inside_compiled_graphs(backend: str) -> None:
    """One operation in a graph without breaks, quantized before it or in it: the same bits; another
    process makes the program of its name; fake tensors have the results' shapes and types."""
    options = {} if backend == "reference" else {"gpu": GPU, "config": CONFIG}
    op = build(SPEC, backend=backend, **options)  # type: ignore[arg-type]
    q, k, v = inputs()
    operands = op.quantize(q, k, v)  # type: ignore[attr-defined]
    out, lse = op(*operands)

    def call(*tensors_: torch.Tensor) -> Any:
        found, sums = op(*tensors_)
        return found + 0, sums

    with torch.no_grad():
        whole = torch.compile(call, fullgraph=True, backend="eager")
        for given_ in (operands, (q, k, v)):
            again = whole(*given_)
            assert torch.equal(out, again[0])
            assert torch.equal(lse, again[1])
    lists, tables, name = op.operands(None, 1, q.device, False)  # type: ignore[attr-defined]
    program = Program.from_name(name)
    assert program.spec == SPEC
    assert torch.equal(out, program.quantized(operands, lists, tables)[0])
    torch.library.opcheck(
        torch.ops.kdsl.attention_quantized.default, (list(operands), lists, tables, name),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[1], LAYOUTS[3], LAYOUTS[7]], ids=repr)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_nan_reaches_whom_the_reference_says(layout: AttentionLayout, which: int) -> None:
    """A NaN in q, k or v comes out where its group is used, and nowhere else changes a bit."""
    spec = replace(SPEC, layout=layout)
    op = build(spec, gpu=GPU, backend="triton", config=CONFIG)
    tensors_ = [x.clone() for x in inputs()]
    clean, _ = op(*tensors_)
    tensors_[which][0, 1, 70, 3] = float("nan")
    out, _ = op(*tensors_)
    spoilt = np.isnan(op.reference(*tensors_)[0])
    assert 0 < spoilt.sum() < spoilt.size, spoilt.mean()
    np.testing.assert_array_equal(out.isnan().cpu().numpy(), spoilt)
    assert torch.equal(out[~out.isnan()], clean[~out.isnan()])


def test_permute_makes_operands() -> None:
    """What `Permute` writes with a layout of blocks is an operand as it is."""
    assert SPEC.layout is not None
    assert layouts.int8("block", 64) == SPEC.layout.q
    x = np.random.default_rng(1).standard_normal((1, 4, 200, 64)).astype(np.float16)
    codes, scale = SPEC.layout.q.quantize(x)
    operands = build(
        SPEC, gpu=GPU, backend="triton", config=CONFIG
    ).quantize(  # type: ignore[attr-defined]
        *(torch.from_numpy(y) for y in (x, x[:, :2], x[:, :2]))
    )
    np.testing.assert_array_equal(operands[0].numpy(), codes)
    np.testing.assert_array_equal(operands[1].numpy(), scale)


@pytest.mark.parametrize("layout", LAYOUTS[:9:2], ids=repr)
def test_runner_notices_what_is_wrong(layout: AttentionLayout) -> None:
    """A right kernel is within the runner's bound on both families of inputs; poison is not, and
    neither is a mask that is one key off."""
    spec = Attention(
        tokens=150, heads=2, head_dim=64, dtype="float16", mask=masks.causal(), block=(64, 64),
        layout=layout, return_lse=True,
    )  # fmt: skip
    other = QuantizedTunable(replace(spec, mask=masks.causal(-1)))
    runner = QuantizedTunable(spec).make_runner(torch.device(DEVICE), codecache.load)
    for family in runner.families:
        runner.prepare(family, 0)
        runner.poison()
        assert not runner.check().right
        runner.run(CONFIG)
        done = runner.check()
        assert done.right, f"{family}: {done}"
    wrong = other.make_runner(torch.device(DEVICE), codecache.load)
    wrong.samples = runner.samples
    wrong.prepare("pointed", 0)
    wrong.run(CONFIG)
    assert not wrong.check().right


def test_what_a_call_refuses() -> None:
    """Operands that do not fit are named, with what would; gradients are refused, not dropped."""
    op = build(SPEC, gpu=GPU, backend="triton", config=CONFIG)
    operands = list(op.quantize(*inputs()))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="takes q, k, v or q, q_scale, k"):
        op(*operands[:4])
    short = operands.copy()
    short[4] = operands[4][..., :200]
    with pytest.raises(InputError, match=r"v has shape \(1, 2, 64, 200\)"):
        op(*short)
    wrong = operands.copy()
    wrong[1] = operands[1].double()
    with pytest.raises(InputError, match="q_scale is float64"):
        op(*wrong)
    wide = operands.copy()
    wide[3] = operands[3].repeat_interleave(2, 2)[:, :, ::2]
    with pytest.raises(InputError, match="k_scale is not contiguous"):
        op(*wide)
    q, k, v = inputs()
    with pytest.raises(UnsupportedError, match="no gradient"):
        op(q.requires_grad_(), k, v)
    with torch.no_grad():
        op(q, k, v)


def test_a_layout_needs_stored_tokens() -> None:
    """Scales of blocks mean stored blocks: an order without stored=True is refused when written."""
    from kdsl import orders
    from kdsl.grid import Grid

    grid = Grid(height=10, width=20)
    with pytest.raises(SpecError, match="stored=True"):
        replace(SPEC, queries=grid, keys=grid, order=orders.axes(grid, "WH"))
