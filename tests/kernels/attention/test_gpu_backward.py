"""Gradients on a GPU: the interpreter's suites in bf16 and fp16, real shapes, graphs, inductor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import masks, orders, workloads
from kdsl.grid import Grid
from kdsl.kernels.attention.backward.tunable import PARTS, BackwardTunable
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import build, codecache
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.builder import device_target
from kdsl.specs import DTYPES, HEAD_DIMS, Attention
from tests.devices import DEVICE, examples, poisoned_memory
from tests.interpreter.attention.test_backward import *  # noqa: F403
from tests.interpreter.attention.test_backward import check
from tests.interpreter.attention.test_torch import *  # noqa: F403
from tests.interpreter.calls import STRIDES, configs
from tests.interpreter.strategies import Case, cases
from tests.tolerance import expected_gradients

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
    pytest.mark.filterwarnings("ignore:no CUDA GPU here"),
]
EXAMPLES = examples(4)
"""Of each dtype and head dimension: each one is compiled, forward and backward."""


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN: gradients too must be written to the last element."""
    with poisoned_memory():
        assert torch.empty(1000, device="cuda").isnan().all()
        yield


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_the_reference(dtype: str, head_dim: int) -> None:
    """Any mask, order, ragged size, grouping, tile and stride, by dtype and head dimension."""
    target = device_target()
    assert target is not None

    @settings(max_examples=EXAMPLES)
    @given(
        case=cases((dtype,), (head_dim,)).filter(lambda case: not case.spec.stored),
        data=st.data(),
    )
    def run(case: Case, data: Any) -> None:
        forward = AttentionTunable(case.spec)
        chosen = {
            part: data.draw(st.sampled_from(configs(BackwardTunable(forward, part), target)))
            for part in PARTS
        }
        check(case, chosen, data.draw(st.sampled_from(STRIDES)))

    run()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", workloads.names())
def test_real_shapes(name: str, part: Any) -> None:
    """Whole models of the catalogue: sampled lines against float64, for both kinds of inputs."""
    found, target = workloads.get(name), device_target()
    assert target is not None
    tunable = BackwardTunable(AttentionTunable(found.spec, found.sample()), part)
    runner = tunable.make_runner(torch.device("cuda"), codecache.load)
    for family in runner.families:
        runner.prepare(family, 1)
        runner.poison()
        assert not runner.check().right
        runner.run(tunable.default(target))
        done = runner.check()
        assert done.right, f"{family}: {done}"


def small(**fields: Any) -> tuple[Attention, AttentionOperator]:
    """Four heads on two, on a small ragged grid with text, each in an order of its own."""
    grid = Grid(frames=3, height=9, width=11, text=5)
    two = [orders.axes(grid, "HWF"), orders.cubes(grid, (2, 4, 5))]
    spec = Attention(
        tokens=grid,
        heads=4,
        kv_heads=2,
        head_dim=64,
        mask=masks.window(grid, (3, 5, 5)) | masks.text(grid),
        order=orders.per_head(two * 2),
        return_lse=True,
        **fields,
    )
    op = build(spec)
    assert isinstance(op, AttentionOperator)
    return spec, op


def draw(spec: Attention, seed: int) -> tuple[list[Any], Any, Any]:
    """q, k, v that want gradients, and gradients of output and log-sum-exp."""
    g = torch.Generator("cuda").manual_seed(seed)
    tokens, dtype = spec.query_grid.tokens, getattr(torch, spec.dtype)
    q, k, v, dout = (
        torch.randn((2, heads, tokens, spec.head_dim), generator=g, device="cuda", dtype=dtype)
        for heads in (spec.heads, spec.group_heads, spec.group_heads, spec.heads)
    )
    dlse = torch.randn(q.shape[:3], generator=g, device="cuda")
    return [x.requires_grad_() for x in (q, k, v)], dout, dlse


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_same_bits_again(dtype: str) -> None:
    """Repeated calls give the same bits: nothing depends on which program comes first."""
    spec, op = small(dtype=dtype)
    leaves, dout, dlse = draw(spec, 0)
    first = torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
    expected_gradients(spec, *leaves, dout, dlse=dlse).check(*first)
    for _ in range(100):
        again = torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
        assert all(map(torch.equal, first, again))


def test_graphs() -> None:
    """A captured forward and backward, replayed after the inputs changed, works on what they hold
    then."""
    spec, op = small()
    leaves, dout, dlse = draw(spec, 0)
    torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
    for seed in (1, 2):
        fresh, *grads = draw(spec, seed)
        for x, y in zip((*leaves, dout, dlse), (*fresh, *grads), strict=True):
            x.data.copy_(y)
        graph.replay()
        expected_gradients(spec, *leaves, dout, dlse=dlse).check(*found)


def test_calls_do_not_wait() -> None:
    """Forward and backward return while the GPU is still busy with what was queued before."""
    spec, op = small()
    leaves, dout, dlse = draw(spec, 0)
    torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    busy.record()
    torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
    assert not busy.query()
    torch.cuda.synchronize()


def test_inductor() -> None:
    """Compiled by inductor without a graph break, values and gradients are within the bounds."""
    spec, op = small()
    leaves, dout, dlse = draw(spec, 4)
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True)
    out, lse = compiled(*leaves)
    found = torch.autograd.grad((out, lse), leaves, (dout, dlse))
    expected_gradients(spec, *leaves, dout, dlse=dlse).check(*found)
    eager = torch.autograd.grad(op(*leaves), leaves, (dout, dlse))
    assert all(map(torch.equal, found, eager))
