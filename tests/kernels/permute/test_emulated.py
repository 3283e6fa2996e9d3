"""The kernels themselves, run on the CPU thread by thread: bit for bit against the reference.

Results start as 0xFF bytes, so what is not written shows as NaN or -1; bytes around them and reads
outside the input are errors, and so are misaligned accesses and overflows (sanitizer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsl import layouts, orders
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.kernels.permute.config import Config, candidates, default, fitting, method
from kdsl.layouts import Layout
from kdsl.orders import Order
from kdsl.reference.permute import permute
from kdsl.specs import DTYPES, Permute

Array = npt.NDArray[Any]
Draw = Callable[..., tuple[Array, Array]]

GRID = Grid(frames=3, height=5, width=7, text=4)
LAYOUTS = {
    "none": None,
    "token": layouts.int8("token"),
    "token, 8 channels": Layout("int8", (1, 8)),
    "token, 24 channels": Layout("int8", (1, 24)),
    "block": layouts.int8("block", 32),
    "short last block": layouts.int8("block", 50),
    "channel": layouts.int8("channel"),
    "tensor": layouts.int8("tensor"),
    "blocks of 40 x 8": Layout("int8", (40, 8)),
    "one block": Layout("int8", (4096, 16)),
}


def bits(values: Array, dtype: str) -> Array:
    """Values as the kernel writes them: bfloat16 as its upper halves."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values


def check(
    emulator: Any,
    spec: Permute,
    config: Config,
    x: Array,
    values: Array,
    tables: dict[str, Array] | None = None,
    seed: int = 1,
) -> None:
    """The kernel's results equal the reference's, byte for byte."""
    found = emulator.run(spec, config, x, tables, seed)
    want = permute(spec, values, tables)
    if spec.layout is None:
        assert isinstance(want, np.ndarray)
        assert found[0].tobytes() == bits(want, spec.dtype).tobytes()
    else:
        np.testing.assert_array_equal(found[0], want[0])
        np.testing.assert_array_equal(found[1], want[1])


def spec_of(order: Order, layout: str, dtype: str, head_dim: int) -> Permute:
    heads = len(order.orders) if isinstance(order, orders.PerHead) else 2
    return Permute(
        tokens=order.grid,
        heads=heads,
        head_dim=head_dim,
        order=order,
        dtype=dtype,
        layout=LAYOUTS[layout],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(emulator: Any, draw: Draw, layout: str, dtype: str) -> None:
    """Each kernel on ragged cubes with text, two batches, two heads."""
    spec = spec_of(orders.cubes(GRID, (2, 3, 4)), layout, dtype, 48)
    x, values = draw(np.random.default_rng(0), (2, 2, GRID.tokens, 48), dtype)
    check(emulator, spec, default(spec), x, values)


@pytest.mark.parametrize("name", ["axes", "listed", "named", "chain", "per_head"])
def test_every_kind_of_order(
    emulator: Any, draw: Draw, every_order: Callable[..., dict[str, Order]], name: str
) -> None:
    """Tables as operands and heads that differ, with scales in stored order."""
    order = every_order(GRID)[name]
    spec = spec_of(order, "block", "float16", 32)
    tables = {"codes": np.random.default_rng(3).permutation(GRID.tokens)}
    x, values = draw(np.random.default_rng(1), (1, spec.heads, GRID.tokens, 32), "float16")
    check(emulator, spec, default(spec), x, values, tables)


@pytest.mark.parametrize("head_dim", [8, 20, 33, 64, 80, 96, 256])
@pytest.mark.parametrize("layout", ["none", "token", "channel"])
def test_head_dimensions(emulator: Any, draw: Draw, layout: str, head_dim: int) -> None:
    """Wide loads, narrow ones, and one element at a time."""
    spec = spec_of(orders.axes(GRID, "WHF"), layout, "bfloat16", head_dim)
    x, values = draw(np.random.default_rng(2), (1, 2, GRID.tokens, head_dim), "bfloat16")
    check(emulator, spec, default(spec), x, values)


@pytest.mark.parametrize("layout", ["none", "token", "block", "channel", "tensor"])
def test_any_strides(emulator: Any, draw: Draw, layout: str) -> None:
    """[batch, tokens, heads, head_dim] in memory, an expanded batch, and a slice off alignment."""
    spec = spec_of(orders.cubes(GRID, (2, 3, 4)), layout, "float16", 32)
    rng = np.random.default_rng(4)
    shape = (2, GRID.tokens, 2, 32)
    turned, values = (a.transpose(0, 2, 1, 3) for a in draw(rng, shape, "float16"))
    check(emulator, spec, default(spec), turned, values)
    one, _ = draw(rng, (1, 2, GRID.tokens, 32), "float16")
    expanded = np.broadcast_to(one, (3, 2, GRID.tokens, 32))
    check(emulator, spec, default(spec), expanded, expanded)
    wide, _ = draw(rng, (1, 2, GRID.tokens, 37), "float16")
    part = wide[..., 3:35]
    narrow = fitting(spec, default(spec), 2)
    assert narrow.vector == 2
    check(emulator, spec, narrow, part, part)


@pytest.mark.parametrize("layout", ["token", "block", "channel", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_that_are_not_finite(emulator: Any, draw: Draw, layout: str, dtype: str) -> None:
    """A NaN, infinities, a group of zeros, subnormal numbers: the layout's codes and scales."""
    spec = spec_of(orders.axes(GRID, "HWF"), layout, dtype, 16)
    x, _ = draw(np.random.default_rng(5), (2, 2, GRID.tokens, 16), dtype)
    special = {"bfloat16": (0x7FC1, 0xFF80, 1), "float16": (0x7E01, 0xFC00, 1)}
    nan, infinity, least = special.get(dtype, (0x7FC00001, 0xFF800000, 1))
    held = x.view(np.uint32 if dtype == "float32" else np.uint16)
    held[0, 0, 17, 3], held[0, 1, 20, 5] = nan, infinity
    held[1, 0] = 0
    held[1, 1] = least * np.arange(GRID.tokens)[:, None]
    held[1, 1, :, 7] = 0
    wide = held.astype(np.uint32) << 16 if dtype == "bfloat16" else held
    values = wide.view(np.float32) if dtype == "bfloat16" else x
    check(emulator, spec, default(spec), x, values)


def test_nan_and_infinity_travel_unchanged(emulator: Any) -> None:
    """Without a layout every bit pattern arrives as it was."""
    grid = Grid(height=16, width=16)
    spec = spec_of(orders.axes(grid, "WH"), "none", "bfloat16", 128)
    x = np.arange(2 * 2 * 256 * 128).astype(np.uint16).reshape(2, 2, 256, 128)
    found = emulator.run(spec, default(spec), x)
    np.testing.assert_array_equal(found[0], np.take(x, spec.order.index(), axis=2))


@pytest.mark.parametrize("layout", ["none", "token", "block", "channel", "blocks of 40 x 8"])
def test_any_configuration_and_any_schedule(emulator: Any, draw: Draw, layout: str) -> None:
    """A sample of the space, each with its threads and blocks in another order."""
    spec = spec_of(orders.cubes(GRID, (2, 3, 4)), layout, "bfloat16", 48)
    x, values = draw(np.random.default_rng(6), (2, 2, GRID.tokens, 48), "bfloat16")
    found = candidates(spec)
    sample = np.random.default_rng(7).choice(len(found), min(8, len(found)), replace=False)
    for seed, i in enumerate(sample):
        check(emulator, spec, found[int(i)], x, values, seed=seed)


def test_codes_wait_for_nothing_that_has_not_started(emulator: Any, draw: Draw) -> None:
    """Every lag, and thread blocks started in shuffled orders: tickets keep the phases apart."""
    spec = spec_of(orders.axes(GRID, "WHF"), "channel", "float32", 16)
    x, values = draw(np.random.default_rng(8), (3, 2, GRID.tokens, 16), "float32")
    for lag in (1, 2, 4, 8):
        config = Config(warps=2, rows=2, lanes=4, vector=16, lag=lag)
        for seed in range(3):
            check(emulator, spec, config, x, values, seed=seed)


def test_lists_out_of_range_stay_inside_the_tensor(emulator: Any, draw: Draw) -> None:
    """A list given at the call is not inspected; what it holds never leads outside the input."""
    grid = Grid(100)
    spec = spec_of(orders.table(Table("plan", 100), grid), "none", "float16", 32)
    x, _ = draw(np.random.default_rng(9), (1, 2, 100, 32), "float16")
    plan = np.arange(100, dtype=np.int32)
    plan[[3, 50]] = -(2**31), 2**31 - 1
    found = emulator.run(spec, default(spec), x, {"plan": plan})
    np.testing.assert_array_equal(found[0][:, :, 3], x[:, :, 0])
    np.testing.assert_array_equal(found[0][:, :, 50], x[:, :, 99])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_drawn_specs(emulator: Any, draw: Draw, data: st.DataObject) -> None:
    """Grids x orders x layouts x dtypes x head dimensions x configurations."""
    grid = Grid(
        height=data.draw(st.integers(1, 12)),
        width=data.draw(st.integers(1, 12)),
        text=data.draw(st.integers(0, 3)),
        text_at=data.draw(st.sampled_from(["start", "end"])),
    )
    head_dim = data.draw(st.sampled_from([8, 16, 24, 40, 64]))
    order = data.draw(
        st.one_of(
            st.sampled_from(["HW", "WH"]).map(lambda a: orders.axes(grid, a)),
            st.tuples(*[st.integers(1, 13)] * 2).map(lambda c: orders.cubes(grid, c)),
            st.permutations(range(grid.tokens)).map(lambda p: orders.table(p, grid)),
        )
    )
    tokens = st.one_of(st.none(), st.integers(1, 160))
    channels = st.sampled_from([None, 1, head_dim, head_dim // 2, head_dim // 4])
    layout = data.draw(
        st.one_of(st.none(), st.tuples(tokens, channels).map(lambda g: Layout("int8", g)))
    )
    dtype = data.draw(st.sampled_from(DTYPES))
    spec = Permute(tokens=grid, heads=2, head_dim=head_dim, order=order, dtype=dtype, layout=layout)
    found = candidates(spec)
    config = found[data.draw(st.integers(0, len(found) - 1), label=f"of {method(spec)}")]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, values = draw(rng, (2, 2, grid.tokens, head_dim), dtype)
    check(emulator, spec, config, x, values, seed=data.draw(st.integers(0, 9)))
