"""Quantized attention on a GPU: the interpreter's suite in 16 bits, Hopper's template, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from kdsl import layouts, masks, orders, workloads
from kdsl.grid import Grid
from kdsl.kernels.attention.quantized.hopper.config import SLACK, SUMS_BY_PRODUCT
from kdsl.kernels.attention.quantized.tunable import QuantizedTunable
from kdsl.layouts import AttentionLayout
from kdsl.runtime import build, codecache
from kdsl.runtime.builder import device_target
from kdsl.specs import Attention
from kdsl.targets import Target
from tests.devices import DEVICE, poisoned_memory
from tests.interpreter.attention.test_quantized import *  # noqa: F403
from tests.interpreter.attention.test_quantized import LAYOUTS, WIDE, check, in_stored_order
from tests.interpreter.calls import configs, tensors
from tests.interpreter.strategies import Case, cases
from tests.quantized import expected, made

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]
HOPPER: dict[str, Any] = {"lag": SLACK, "coded_sums": SUMS_BY_PRODUCT}
"""What the Hopper template's arithmetic has of its own."""
ERRORS = [
    (layouts.int8_qk(), 0.015),
    (layouts.int8_qk_int8_pv(), 0.028),
    (layouts.int8_qk_fp8_pv(), 0.042),
    (layouts.int4_qk(), 0.27),
]
"""Layouts, and the error each may have on Gaussian input."""


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    with poisoned_memory():
        yield


def here() -> Target:
    """The GPU."""
    target = device_target()
    assert target is not None
    return target


def runs(layout: AttentionLayout) -> bool:
    """Whether the GPU has the products of a layout."""
    return layout.weights != "e4m3" or here().capability >= (8, 9)


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_kernel_equals_reference(layout: AttentionLayout) -> None:
    """Any mask, stored order, ragged size, grouping, head dimension, tile and stride."""
    if not runs(layout):
        pytest.skip("no products of e4m3 here")

    @settings(max_examples=10)
    @given(case=cases(("float16", "bfloat16"), (64, 96, 128), WIDE), data=st.data())
    def run(case: Case, data: Any) -> None:
        case.spec = in_stored_order(case.spec)
        found = configs(QuantizedTunable(replace(case.spec, layout=layout)), here())
        config = data.draw(st.sampled_from(found))
        check(case, layout, config, data.draw(st.sampled_from(("contiguous", "tokens first"))))

    run()


@pytest.mark.parametrize("head_dim", [64, 128])
def test_hopper_equals_reference(head_dim: int) -> None:
    """The Gluon template: masks, stored orders, ragged sizes, groups, tiles, empty rows, LSE."""
    if here().capability != (9, 0):
        pytest.skip("the template is for compute capability 9.0")
    block = ((128, 128), (64, 64), (64, 128), (128, 64))

    @settings(max_examples=30)
    @given(
        case=cases(("float16", "bfloat16"), (head_dim,), block, tokens=500),
        data=st.data(),
    )
    def run(case: Case, data: Any) -> None:
        layout = data.draw(
            st.sampled_from(
                (
                    layouts.int8_qk_fp8_pv(),
                    layouts.int8_qk_fp8_pv(block_q=16, block_k=256),
                    replace(layouts.int8_qk_fp8_pv(), q=layouts.int8_qk("thread").q),
                )
            )
        )
        case.spec = in_stored_order(case.spec)
        spec = replace(case.spec, layout=layout)
        tunable = QuantizedTunable(spec, templates=("hopper",))
        space = tunable.space(here())
        params = {name: data.draw(st.sampled_from(values)) for name, values in space.items()}
        if tunable.legal(params, here()) is not None:
            params = tunable.default(here())
        note(f"{spec!r}\n{params}")
        op = build(spec, backend="gluon", config=params)
        operands = made(spec, *tensors(case, "contiguous"))
        found = op(*operands, tables=case.tables)
        out, lse = found if spec.return_lse else (found, None)
        expected(spec, operands, case.tables, block_n=params["block_n"], **HOPPER).check(out, lse)

    run()


def gaussian(spec: Attention, seed: int, grow: bool = False) -> tuple[Any, ...]:
    """Gaussian q, k, v; keys that grow along the sequence if asked."""
    g = torch.Generator("cuda").manual_seed(seed)
    shapes = [
        (2, n, spec.key_grid.tokens, spec.head_dim) for n in (spec.heads, *[spec.group_heads] * 2)
    ]
    q, k, v = (torch.randn(s, generator=g, device="cuda") for s in shapes)
    if grow:
        k = k * torch.linspace(0.1, 8, k.shape[2], device="cuda")[:, None]
    dtype = getattr(torch, spec.dtype)
    return tuple(x.to(dtype) for x in (q, k, v))


@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("layout", "allowed"), ERRORS, ids=["int8", "int8-8", "fp8", "int4"])
def test_errors_on_gaussian_input(
    layout: AttentionLayout, allowed: float, head_dim: int, backend: str
) -> None:
    """Against float32 attention: below each layout's bound, and within 1.03 of the reference's."""
    spec = Attention(
        tokens=1024, heads=2, head_dim=head_dim, dtype="float16", layout=layout, return_lse=True
    )
    tunable = QuantizedTunable(spec, templates=("hopper",) if backend == "gluon" else ("portable",))
    if not runs(layout) or all(tunable.legal(c, here()) for c in (_default(tunable),)):
        pytest.skip("not on this GPU")
    op = build(spec, backend=backend)
    tensors_ = gaussian(spec, 0)
    q, k, v = (x.float() for x in tensors_)
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    out, lse = op(*tensors_)
    error = float((out.float() - truth).norm() / truth.norm())
    assert error <= allowed
    reference = torch.from_numpy(op.reference(*tensors_)[0]).cuda()
    floor = float((reference - truth).norm() / truth.norm())
    assert error <= 1.03 * floor + 2.0**-11
    wanted = torch.logsumexp((q @ k.mT) * head_dim**-0.5, -1)
    assert float((lse - wanted).abs().max()) < 0.2


def _default(tunable: QuantizedTunable) -> dict[str, Any]:
    from kdsl.errors import ConfigError

    try:
        return tunable.default(here())
    except ConfigError:
        return {}


def test_maxima_that_stay_behind() -> None:
    """Scores that grow along the keys: the branch that rescales the output is taken again and
    again, and the result is the reference's."""
    if here().capability != (9, 0):
        pytest.skip("the template is for compute capability 9.0")
    for head_dim in (64, 128):
        spec = Attention(
            tokens=1000, heads=2, head_dim=head_dim, layout=layouts.int8_qk_fp8_pv(),
            return_lse=True,
        )  # fmt: skip
        op = build(spec, backend="gluon")
        operands = made(spec, *gaussian(spec, 1, grow=True))
        expected(spec, operands, block_n=op.config["block_n"], **HOPPER).check(*op(*operands))


@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize("layout", [LAYOUTS[3], layouts.int8_qk_fp8_pv()], ids=["int8", "fp8"])
def test_real_shapes(layout: AttentionLayout, backend: str) -> None:
    """A model of the catalogue, stored in order: sampled rows on both families of inputs."""
    name = workloads.names()[0]
    found = workloads.get(name)
    moved = found.spec.order is not None or found.spec.key_order is not None
    spec = replace(found.spec, layout=layout, stored=moved or found.spec.stored)
    templates = ("hopper",) if backend == "gluon" else ("portable",)
    tunable = QuantizedTunable(spec, found.sample(), templates=templates)
    params = _default(tunable)
    if not runs(layout) or not params:
        pytest.skip("not on this GPU")
    runner = tunable.make_runner(torch.device("cuda"), codecache.load)
    for family in runner.families:
        runner.prepare(family, 1)
        runner.poison()
        assert not runner.check().right
        runner.run(params)
        done = runner.check()
        assert done.right, f"{family}: {done}"


@pytest.mark.parametrize("backend", ["triton", "gluon"])
def test_graphs_and_the_same_bits(backend: str) -> None:
    """A captured call, replayed after its operands changed, works on what they hold then; repeated
    calls give the same bits."""
    grid = Grid(frames=3, height=9, width=11, text=5)
    order = orders.per_head([orders.axes(grid, "HWF"), orders.cubes(grid, (2, 4, 5))])
    spec = Attention(
        tokens=grid, heads=2, head_dim=64, order=order, stored=True, return_lse=True,
        mask=masks.window(grid, (3, 5, 5)) | masks.text(grid), layout=layouts.int8_qk_fp8_pv(),
    )  # fmt: skip
    if not runs(spec.layout) or (backend == "gluon" and here().capability != (9, 0)):  # type: ignore[arg-type]
        pytest.skip("not on this GPU")
    op = build(spec, backend=backend)
    held = made(spec, *gaussian(spec, 0))
    first = op(*held)
    assert all(torch.equal(x, y) for _ in range(10) for x, y in zip(first, op(*held), strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = op(*held)
    how = HOPPER if backend == "gluon" else {}
    for seed in (1, 2):
        for x, fresh in zip(held, made(spec, *gaussian(spec, seed)), strict=True):
            x.copy_(fresh)
        graph.replay()
        expected(spec, held, block_n=op.config["block_n"], **how).check(out, lse)
