"""Generated sources: complete, small, and with an index function that equals the order."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import layouts, orders
from kdsl.errors import SpecError
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.kernels.permute import generate
from kdsl.kernels.permute.config import default
from kdsl.orders import Order
from kdsl.specs import Permute

GRIDS = [
    Grid(frames=3, height=5, width=7),
    Grid(frames=4, height=4, width=6, text=11),
    Grid(frames=3, height=7, width=5, text=9, text_at="end"),
    Grid(height=9, width=10, text=1),
    Grid(71),
]


def spec_of(order: Order, **options: Any) -> Permute:
    heads = len(order.orders) if isinstance(order, orders.PerHead) else 2
    return Permute(tokens=order.grid, heads=heads, head_dim=64, order=order, **options)


def leaf_values(emulator: Any, specs: list[Permute], tables: dict[str, Any]) -> list[Any]:
    """``index`` of every spec for all heads and positions, by the host's compiler, in one go."""
    parts = []
    for i, spec in enumerate(specs):
        leaf = generate.index_leaf(spec).replace(" index(", f" index_{i}(")
        held = ", ".join(f"(const {c_type(t)}*)tables[{n}]" for n, t in enumerate(spec.tables))
        call = f"index_{i}(s, head{', ' if held else ''}{held})"
        parts.append(f"""{leaf}
extern "C" void fill_{i}(int* out, int heads, int tokens, const void* const* tables) {{
  for (int head = 0; head < heads; ++head)
    for (int s = 0; s < tokens; ++s) *out++ = {call};
}}
""")
    library = emulator.library(generate.cuda_source.HELPERS + "\n".join(parts))
    results = []
    for i, spec in enumerate(specs):
        out = np.empty((spec.heads, spec.grid.tokens), np.int32)
        held = [
            np.ascontiguousarray(tables[t.name] if t.values is None else t.values, t.dtype)
            for t in spec.tables
        ]
        pointers = (ctypes.c_void_p * max(len(held), 1))(*[a.ctypes.data for a in held])
        getattr(library, f"fill_{i}")(
            out.ctypes.data_as(ctypes.c_void_p), spec.heads, spec.grid.tokens, pointers
        )
        results.append(out)
    return results


def c_type(table: Table) -> str:
    return generate.cuda_source.C_TYPES[table.dtype]


def check(emulator: Any, specs: list[Permute], tables: dict[str, Any]) -> None:
    for spec, got in zip(specs, leaf_values(emulator, specs, tables), strict=True):
        want = np.broadcast_to(spec.order.index(tables), got.shape)
        np.testing.assert_array_equal(got, want, err_msg=repr(spec.order))


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_index_functions_equal_their_orders(
    emulator: Any, every_order: Callable[..., dict[str, Order]], grid: Grid
) -> None:
    """Every kind of order, ragged cubes, text at either end, tables, heads that differ."""
    codes = np.random.default_rng(3).permutation(grid.tokens)
    check(emulator, [spec_of(o) for o in every_order(grid).values()], {"codes": codes})


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_index_functions_of_drawn_orders(emulator: Any, data: st.DataObject) -> None:
    """Drawn grids and orders, a batch to a compiler run: printed C equals the order's index."""
    specs = []
    for _ in range(8):
        shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
        text, at = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(["start", "end"]))
        grid = Grid(frames=shape[0], height=shape[1], width=shape[2], text=text, text_at=at)
        cube = st.tuples(*[st.integers(1, 10)] * 3).map(lambda c, g=grid: orders.cubes(g, c))
        axes = st.permutations("FHW").map(lambda p, g=grid: orders.axes(g, "".join(p)))
        one = st.one_of(cube, axes)
        either = st.one_of(
            one, one.map(lambda o: ~o), st.tuples(one, one).map(lambda p: p[0] @ p[1])
        )
        drawn = data.draw(st.lists(either, min_size=1, max_size=4))
        specs.append(spec_of(orders.per_head(drawn) if len(drawn) > 1 else drawn[0]))
    check(emulator, specs, {})


def test_heads_with_one_order_share_a_case() -> None:
    """Equal orders print once, and the most common one needs no test."""
    grid = Grid(height=8, width=6)
    turned, cubes = orders.axes(grid, "WH"), orders.cubes(grid, (2, 3))
    order = orders.per_head([turned, cubes, cubes, turned, cubes])
    leaf = generate.index_leaf(spec_of(order))
    assert leaf.count("case") == 2
    assert leaf.count("default:") == 1


def test_sources_are_complete() -> None:
    """No include, no stand-in is left, and constants are the spec's."""
    spec = spec_of(orders.identity(Grid(100)), dtype="float16", layout=layouts.int8("block", 32))
    text = generate.source(spec, default(spec))
    assert "#include" not in text
    assert "stand-in: replaced" not in text
    for line in ("METHOD BLOCKS", "ITEM 2", "FROM_BITS from_float16", "GROUP_TOKENS 32"):
        assert re.search(rf"^#define {line}$", text, re.MULTILINE), line


def test_tables_have_names_of_their_own() -> None:
    """A table called like a word of C, or of the template, does no harm."""
    for name in ("double", "held", "ROWS", "s"):
        order = orders.table(Table(name, 50), Grid(50))
        spec = spec_of(order)
        text = generate.source(spec, default(spec))
        assert "#define TABLE_PARAMETERS , const int* __restrict__ table_0\n" in text
        assert f"__restrict__ {name}" not in text


def test_one_source_for_equal_specs() -> None:
    """Equal specs print equal sources, in any process: nothing depends on hashes or identities."""
    grid = Grid(height=8, width=6)
    texts = {
        generate.source(s, default(s))
        for s in (spec_of(orders.cubes(grid, (2, 3))), spec_of(orders.cubes(grid, (2, 3))))
    }
    assert len(texts) == 1


def test_too_many_tokens_are_refused() -> None:
    """Positions beyond 32 bits are an error when the spec is written."""
    with pytest.raises(SpecError, match="1073741825 tokens"):
        spec_of(orders.identity(Grid(2**30 + 1)))


def test_the_inverse_of_an_open_list_is_refused() -> None:
    """A list known only at the call has no inverse to print; the error says what would work."""
    order = ~orders.table(Table("plan", 50), Grid(50))
    with pytest.raises(SpecError, match="known only at the call"):
        generate.index_leaf(spec_of(order))
