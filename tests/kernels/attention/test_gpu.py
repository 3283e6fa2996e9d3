"""The attention kernel on a GPU: the interpreter's suites in bf16 and fp16, and real shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import masks, orders, workloads
from kdsl.grid import Grid
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import build, codecache
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.builder import device_target
from kdsl.specs import DTYPES, HEAD_DIMS, Attention
from tests.devices import DEVICE, poisoned_memory
from tests.interpreter.attention.test_edges import *  # noqa: F403
from tests.interpreter.attention.test_property import STRIDES, check, configs
from tests.interpreter.strategies import Case, cases
from tests.tolerance import expected

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]
EXAMPLES = {"bfloat16": 12, "float16": 12, "float32": 4}
"""Of each head dimension: each one is compiled, and float32's unrolled products take seconds."""


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    with poisoned_memory():
        assert torch.empty(1000, device="cuda").isnan().all()
        yield


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_equals_reference(dtype: str, head_dim: int) -> None:
    """Any mask, order, ragged size, grouping, tile and stride, by dtype and head dimension."""
    target = device_target()
    assert target is not None

    @settings(max_examples=EXAMPLES[dtype])
    @given(case=cases((dtype,), (head_dim,)), data=st.data())
    def run(case: Case, data: Any) -> None:
        config = data.draw(st.sampled_from(configs(case.spec, target)))
        check(case, config, data.draw(st.sampled_from(STRIDES)))

    run()


@pytest.mark.parametrize("name", workloads.names())
def test_real_shapes(name: str) -> None:
    """Whole models of the catalogue: sampled rows against float64, for both kinds of inputs."""
    found, target = workloads.get(name), device_target()
    assert target is not None
    tunable = AttentionTunable(found.spec, found.sample())
    runner = tunable.make_runner(torch.device("cuda"), codecache.load)
    for family in runner.families:
        runner.prepare(family, 1)
        runner.poison()
        assert not runner.check().right
        runner.run(tunable.default(target))
        done = runner.check()
        assert done.right, f"{family}: {done}"


def small(**fields: Any) -> tuple[Attention, AttentionOperator]:
    """Two heads on a small ragged grid with text, each in an order of its own."""
    grid = Grid(frames=3, height=9, width=11, text=5)
    order = orders.per_head([orders.axes(grid, "HWF"), orders.cubes(grid, (2, 4, 5))])
    mask = masks.window(grid, (3, 5, 5)) | masks.text(grid)
    spec = Attention(
        tokens=grid, heads=2, head_dim=64, mask=mask, order=order, return_lse=True, **fields
    )
    op = build(spec)
    assert isinstance(op, AttentionOperator)
    return spec, op


def draw(spec: Attention, seed: int) -> tuple[Any, Any, Any]:
    """Gaussian q, k, v."""
    g = torch.Generator("cuda").manual_seed(seed)
    shape = (2, spec.heads, spec.query_grid.tokens, spec.head_dim)
    dtype = getattr(torch, spec.dtype)
    q, k, v = (torch.randn(shape, generator=g, device="cuda", dtype=dtype) for _ in range(3))
    return q, k, v


def test_graphs() -> None:
    """A captured call, replayed after its inputs changed, works on what they hold then."""
    spec, op = small()
    tensors = draw(spec, 0)
    op(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = op(*tensors)
    for seed in (1, 2):
        for x, fresh in zip(tensors, draw(spec, seed), strict=True):
            x.copy_(fresh)
        graph.replay()
        expected(spec, *tensors).check(out, lse)


def test_streams() -> None:
    """Work goes to torch's current stream: it waits for what was queued there before."""
    spec, op = small()
    tensors, later = draw(spec, 0), draw(spec, 3)
    op(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for x, fresh in zip(tensors, later, strict=True):
            x.copy_(fresh)
        out, lse = op(*tensors)
    torch.cuda.current_stream().wait_stream(stream)
    expected(spec, *later).check(out, lse)


def test_calls_do_not_wait() -> None:
    """A call returns while the GPU is still busy with what was queued before it."""
    spec, op = small()
    tensors = draw(spec, 0)
    op(*tensors)
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    busy.record()
    op(*tensors)
    assert not busy.query()
    torch.cuda.synchronize()


def test_the_same_bits_again() -> None:
    """Repeated calls give the same bits: nothing depends on which program comes first."""
    spec, op = small(dtype="float16")
    tensors = draw(spec, 0)
    out, lse = op(*tensors)
    for _ in range(20):
        again, lse_again = op(*tensors)
        assert torch.equal(out, again)
        assert torch.equal(lse, lse_again)


def test_a_given_block_plan_needs_no_new_build() -> None:
    """One operator, several plans: each call works on the plan it was given."""
    spec = Attention(tokens=640, heads=2, head_dim=128, mask=masks.blocks("plan"))
    op = build(spec)
    tensors = tuple(x[:1] for x in draw(spec, 0))
    for seed in range(3):
        kept = np.random.default_rng(seed).random((2, 5, 5)) < 0.5
        tables = {"plan": kept.astype(np.uint8)}
        expected(spec, *tensors, tables).check(op(*tensors, tables=tables))
