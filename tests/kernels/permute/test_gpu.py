"""The permute kernels on a GPU: bit for bit, on poisoned results, whatever the strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdsl import layouts, orders
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.kernels.permute.config import Config, candidates, default
from kdsl.kernels.permute.launch import Runner, result_shapes
from kdsl.kernels.permute.runner import plain
from kdsl.kernels.permute.tunable import PermuteTunable
from kdsl.layouts import Layout
from kdsl.orders import Order, PerHead
from kdsl.reference.permute import permute
from kdsl.specs import DTYPES, Permute

pytest.importorskip("cupy")
torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

GRID = Grid(frames=5, height=9, width=11, text=7)
WAN = Grid(frames=21, height=30, width=52)
LAYOUTS = {
    "none": None,
    "token": layouts.int8("token"),
    "token, 16 channels": Layout("int8", (1, 16)),
    "block": layouts.int8("block", 64),
    "blocks of 128": layouts.int8("block", 128),
    "channel": layouts.int8("channel"),
    "tensor": layouts.int8("tensor"),
    "blocks of 100 x 16": Layout("int8", (100, 16)),
}
POISON = {"int8": -128, "float32": float("nan"), "bfloat16": float("nan"), "float16": float("nan")}


def spec_of(order: Order, layout: str, dtype: str = "bfloat16", head_dim: int = 128) -> Permute:
    heads = len(order.orders) if isinstance(order, PerHead) else 2
    return Permute(
        tokens=order.grid,
        heads=heads,
        head_dim=head_dim,
        order=order,
        dtype=dtype,
        layout=LAYOUTS[layout],
    )


def draw(spec: Permute, batch: int = 2, seed: int = 0) -> Any:
    """Numbers of very different sizes from row to row."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (batch, spec.heads, spec.grid.tokens, spec.head_dim)
    x = torch.randn(shape, device="cuda", generator=generator)
    x *= torch.randn((*shape[:-1], 1), device="cuda", generator=generator).exp()
    return x.to(getattr(torch, spec.dtype))


def poisoned(spec: Permute, batch: int) -> Any:
    """Results full of NaN, or of codes that no layout writes."""
    outs = [
        torch.full(shape, POISON[dtype], dtype=getattr(torch, dtype), device="cuda")
        for shape, dtype in result_shapes(spec, batch)
    ]
    return outs[0] if spec.layout is None else tuple(outs)


def check(
    spec: Permute, x: Any, config: Config | None = None, tables: dict[str, Any] | None = None
) -> None:
    """Results on poisoned memory equal the reference's, bit for bit (NaN by position)."""
    runner = Runner(spec, config or default(spec))
    found = runner(x, tables, out=poisoned(spec, x.shape[0]))
    want = permute(spec, x, tables)
    if spec.layout is None:
        assert torch.equal(bits(found.cpu()), bits(torch.from_numpy(want).to(found.dtype)))
    else:
        np.testing.assert_array_equal(found[0].cpu().numpy(), want[0])
        np.testing.assert_array_equal(found[1].cpu().numpy(), want[1])


def bits(x: Any) -> Any:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def truth(spec: Permute, x: Any) -> Any:
    """The same for large inputs, in plain torch on the GPU (exact: see test_runner.py)."""
    index = torch.from_numpy(spec.order.index()).cuda().expand(spec.heads, -1)
    rows = [[plain(spec, item[h], index[h]) for h in range(spec.heads)] for item in x]
    results = range(len(rows[0][0]))
    out = tuple(torch.stack([torch.stack([h[i] for h in item]) for item in rows]) for i in results)
    return out if spec.layout else out[0]


def same(found: Any, want: Any) -> bool:
    """Whether results of two calls are equal."""
    if isinstance(found, tuple):
        return all(map(torch.equal, found, want))
    return bool(torch.equal(found, want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(layout: str, dtype: str) -> None:
    """Each kernel on ragged cubes with text, two batches, two heads."""
    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout, dtype)
    check(spec, draw(spec))


@pytest.mark.parametrize("layout", ["none", "block"])
@pytest.mark.parametrize("name", ["identity", "inverse", "listed", "named", "chain", "per_head"])
def test_every_kind_of_order(
    every_order: Callable[..., dict[str, Order]], name: str, layout: str
) -> None:
    """Tables as operands from both sides, and heads that differ."""
    spec = spec_of(every_order(GRID)[name], layout, "float16", 64)
    codes = np.random.default_rng(1).permutation(GRID.tokens)
    check(spec, draw(spec), tables={"codes": codes})


def test_tables_on_the_gpu() -> None:
    """An open list that is a tensor on the GPU is taken as it lies, of any integer dtype."""
    order = orders.table(Table("plan", GRID.tokens), GRID)
    spec = spec_of(order, "token")
    x, plan = draw(spec), torch.randperm(GRID.tokens, device="cuda")
    runner = Runner(spec, default(spec))
    want = permute(spec, x, {"plan": plan.cpu().numpy()})
    for held in (plan, plan.int()):
        found = runner(x, {"plan": held}, out=poisoned(spec, 2))
        np.testing.assert_array_equal(found[0].cpu().numpy(), want[0])


@pytest.mark.parametrize("head_dim", [8, 33, 72, 80, 256, 1024])
@pytest.mark.parametrize("layout", ["none", "token", "channel"])
def test_head_dimensions(layout: str, head_dim: int) -> None:
    """Wide loads, narrow ones, one element at a time, rows longer than a warp."""
    spec = spec_of(orders.axes(GRID, "WHF"), layout, "bfloat16", head_dim)
    check(spec, draw(spec))


@pytest.mark.parametrize("layout", ["none", "token", "block", "channel", "tensor"])
def test_any_strides(layout: str) -> None:
    """[batch, tokens, heads, head_dim] in memory, expanded heads, slices off alignment."""
    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout, "float16", 64)
    x = draw(spec)
    check(spec, x.transpose(1, 2).contiguous().transpose(1, 2))
    check(spec, x[:1, :1].expand(3, 2, -1, -1))
    check(spec, x[:, :, :1].expand(-1, -1, GRID.tokens, -1))
    for start in (1, 2, 4):
        wide = torch.zeros(2, 2, GRID.tokens, 64 + start, dtype=x.dtype, device="cuda")
        wide[..., start:] = x
        check(spec, wide[..., start:])


@pytest.mark.parametrize("layout", ["token", "block", "channel", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_that_are_not_finite(layout: str, dtype: str) -> None:
    """A NaN, infinities, groups of zeros, subnormal numbers: the layout's codes and scales."""
    spec = spec_of(orders.axes(GRID, "HWF"), layout, dtype, 64)
    x = draw(spec)
    x[0, 0, 17, 3], x[0, 1, 20, 5] = float("nan"), float("-inf")
    x[1, 0] = 0
    small = torch.arange(GRID.tokens * 64, device="cuda").reshape(GRID.tokens, 64) % 1000
    bits(x)[1, 1] = small.to(bits(x).dtype)
    check(spec, x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["none", "token"])
def test_every_16_bit_number(layout: str, dtype: str) -> None:
    """All 65,536 bit patterns go through: the conversions of the device are exact."""
    grid = Grid(height=64, width=128)
    spec = spec_of(orders.axes(grid, "WH"), layout, dtype, 8)
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).reshape(1, 1, -1, 8)
    x = patterns.cuda().view(getattr(torch, dtype)).expand(1, 2, -1, -1)
    if layout == "token":
        return check(spec, x)
    found = Runner(spec, default(spec))(x)
    assert torch.equal(bits(found), bits(x)[:, :, torch.from_numpy(spec.order.index()).cuda()])
    return None


@pytest.mark.parametrize("layout", ["none", "token", "block", "channel"])
def test_any_configuration(layout: str) -> None:
    """A sample of the space gives the results of the default."""
    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout)
    found = candidates(spec)
    for i in np.random.default_rng(2).choice(len(found), 3, replace=False):
        check(spec, draw(spec), found[int(i)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_model(layout: str) -> None:
    """12 heads of 32,760 tokens, bf16, orders per head, again and again: never a different bit."""
    order = orders.per_head(
        [orders.cubes(WAN, (3, 5, 4)), orders.axes(WAN, "HWF"), orders.identity(WAN)] * 4
    )
    spec = spec_of(order, layout)
    x = draw(spec, 1)
    want = truth(spec, x)
    runner = Runner(spec, default(spec))
    for _ in range(5):
        assert same(runner(x, out=poisoned(spec, 1)), want)


def test_many_units_that_wait_for_each_other() -> None:
    """Scales over all tokens for 200 short heads, every lag: no code is written too early."""
    grid = Grid(height=40, width=50)
    spec = Permute(
        tokens=grid,
        heads=100,
        head_dim=64,
        order=orders.axes(grid, "WH"),
        layout=LAYOUTS["channel"],
    )
    x = draw(spec)
    want = truth(spec, x)
    for lag in (1, 2, 8):
        runner = Runner(spec, Config(warps=4, rows=4, lanes=8, vector=16, lag=lag))
        for _ in range(20):
            assert same(runner(x, out=poisoned(spec, 2)), want)


@pytest.mark.parametrize("layout", ["none", "token"])
def test_more_elements_than_32_bits_count(layout: str) -> None:
    """Offsets beyond 2**31 elements, into the input and into the results."""
    grid = Grid(height=4097, width=4099)
    spec = Permute(
        tokens=grid,
        heads=1,
        head_dim=128,
        order=orders.axes(grid, "WH"),
        layout=LAYOUTS[layout],
    )
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    x = torch.empty(1, 1, grid.tokens, 128, dtype=torch.bfloat16, device="cuda")
    assert x.numel() > 2**31
    x.normal_()
    found = Runner(spec, default(spec))(x, out=poisoned(spec, 1))
    by_row = x.view(4097, 4099, 128)
    for left in (0, 2048, 4090):
        part = by_row[:, left : left + 9].transpose(0, 1).reshape(1, 1, -1, 128)
        rows = slice(left * 4097, left * 4097 + part.shape[2])
        if layout == "none":
            assert torch.equal(found[:, :, rows], part)
            continue
        line = Grid(part.shape[2])
        one = Permute(
            tokens=line, heads=1, head_dim=128, order=orders.identity(line), layout=spec.layout
        )
        assert same(tuple(f[:, :, rows] for f in found), truth(one, part))


@pytest.mark.parametrize("layout", ["none", "token", "block", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_tuner_drives(layout: str, dtype: str) -> None:
    """Both families of inputs pass its check on poisoned results, and what is not written fails."""
    order = orders.per_head([orders.cubes(GRID, (2, 4, 5)), orders.axes(GRID, "WHF")])
    tunable = PermuteTunable(spec_of(order, layout, dtype), batch=2)
    runner = tunable.make_runner(torch.device("cuda"), lambda text: text)
    for family in runner.families:
        runner.prepare(family, 1)
        runner.poison()
        assert not runner.check().right
        runner.run(default(tunable.spec).to_json())
        assert runner.check().right


@pytest.mark.parametrize("layout", ["none", "token", "block", "channel"])
def test_graphs(layout: str) -> None:
    """A captured call, replayed after its input changed, works on what the input holds then."""
    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout)
    x, out = draw(spec), poisoned(spec, 2)
    runner = Runner(spec, default(spec))
    runner.prepare(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runner(x, out=out)
        fresh = runner(x)
    for seed in (3, 4):
        x.copy_(draw(spec, seed=seed))
        graph.replay()
        want = truth(spec, x)
        assert same(out, want)
        assert same(fresh, want)


@pytest.mark.parametrize("layout", ["none", "channel"])
def test_streams(layout: str) -> None:
    """Work goes to torch's current stream: it waits for what was queued there before."""
    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout)
    x, later = draw(spec), draw(spec, seed=5)
    want = truth(spec, later)
    runner = Runner(spec, default(spec))
    runner(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(later)
        found = runner(x)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(found, want)


@pytest.mark.parametrize("layout", ["none", "token", "channel"])
def test_calls_do_not_wait(layout: str) -> None:
    """A call returns while the GPU is still busy with what was queued before it."""
    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout)
    x = draw(spec)
    runner = Runner(spec, default(spec))
    runner(x)
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    busy.record()
    runner(x)
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("layout", ["none", "token", "channel"])
def test_cupy_arrays(layout: str) -> None:
    """CuPy arrays in, CuPy arrays out, on CuPy's current stream."""
    import cupy

    spec = spec_of(orders.cubes(GRID, (2, 4, 5)), layout, "float16", 64)
    values = draw(spec).cpu().numpy()
    want = permute(spec, values)
    runner = Runner(spec, default(spec))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found = runner(cupy.asarray(values))
        stream.synchronize()
    for a, b in zip(*((found, want) if spec.layout else ((found,), (want,))), strict=True):
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_array_equal(a.get(), b)
