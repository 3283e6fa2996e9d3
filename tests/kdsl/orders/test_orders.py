"""Orders are bijections that keep text in place and obey the laws of composition."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import orders
from kdsl.errors import InputError, SpecError
from kdsl.expr import table
from kdsl.expr.bounds import bounds, check_int32
from kdsl.expr.evaluate import evaluate
from kdsl.grid import Grid
from kdsl.orders import Order
from tests.strategies import grids, late_orders, order_of

VIDEO = Grid(frames=4, height=5, width=6)


def drawn(data: st.DataObject) -> tuple[Grid, Order]:
    """A grid and an order over it."""
    grid = data.draw(grids())
    return grid, data.draw(order_of(grid))


@given(st.data())
def test_bijections_with_inverses(data: st.DataObject) -> None:
    """Every order lists each token once; its inverse undoes it, from either side."""
    grid, order = drawn(data)
    index, back = order.index(), order.inverse_index()
    np.testing.assert_array_equal(np.sort(index), np.arange(grid.tokens))
    np.testing.assert_array_equal(back[index], np.arange(grid.tokens))
    np.testing.assert_array_equal((~order).index(), back)
    np.testing.assert_array_equal((~order).inverse_index(), index)
    assert ~~order == order


@given(st.data())
def test_expressions_say_what_the_index_says(data: st.DataObject) -> None:
    """The closed forms, which kernels compute, give the index and its inverse at every position.

    They fit 32 bits and divide nothing that may be negative: no floor helper on the device.
    """
    grid, order = drawn(data)
    box = {"s": (0, grid.tokens - 1)}
    for expr, wanted in (
        (order.expr, order.index()),
        (order.inverse_expr, order.inverse_index()),
    ):
        check_int32(expr, box)
        np.testing.assert_array_equal(evaluate(expr, {"s": np.arange(grid.tokens)}), wanted)
        ranges = bounds(expr, box)
        for node in expr.walk():
            if node.op in ("floordiv", "mod"):
                assert ranges[node.args[0].key][0] >= 0, repr(expr)


@given(st.data())
def test_composition(data: st.DataObject) -> None:
    """`(a @ b).apply(x)` is `a.apply(b.apply(x))`; a chain with its inverse is the identity."""
    grid, a = drawn(data)
    b, c = data.draw(order_of(grid)), data.draw(order_of(grid))
    x = np.arange(grid.tokens * 2).reshape(grid.tokens, 2)
    np.testing.assert_array_equal((a @ b).apply(x), a.apply(b.apply(x)))
    np.testing.assert_array_equal(((a @ b) @ c).index(), (a @ (b @ c)).index())
    np.testing.assert_array_equal((~(a @ b)).index(), (~b @ ~a).index())
    assert (a @ ~a).is_identity
    assert (~a @ a).is_identity
    assert orders.identity(grid) @ a == a
    assert ((a @ b) @ ~b) == a or a.is_identity or b.is_identity


@given(st.data())
def test_known_only_at_the_call(data: st.DataObject) -> None:
    """Orders whose list comes with the call follow the same laws once it is there."""
    grid, values = data.draw(grids()), {}
    order = data.draw(late_orders(grid, values, "late"))
    index = order.index(values)
    np.testing.assert_array_equal(np.sort(index), np.arange(grid.tokens))
    np.testing.assert_array_equal((~order).index(values)[index], np.arange(grid.tokens))
    x = np.arange(grid.tokens)
    np.testing.assert_array_equal((~order).apply(order.apply(x, 0, values), 0, values), x)
    with pytest.raises(InputError, match="table 'late' has no values"):
        order.index()


@given(st.data())
def test_text_stays_in_place(data: st.DataObject) -> None:
    """Closed orders move visual tokens only; text stands where it stood."""
    grid = data.draw(grids())
    order = data.draw(order_of(grid).filter(lambda o: "table" not in repr(o)))
    index = order.index()
    at = np.ones(grid.tokens, bool)
    at[grid.visual_start : grid.visual_start + grid.visual] = False
    np.testing.assert_array_equal(index[at], np.flatnonzero(at))


@given(st.data())
def test_axes_are_transposes(data: st.DataObject) -> None:
    """An axis order stores what a NumPy transpose would."""
    grid = data.draw(grids())
    letters = "".join(data.draw(st.permutations(grid.letters)))
    order = orders.axes(grid, letters)
    number = np.arange(grid.visual).reshape(grid.shape).transpose(order.permutation)
    start = grid.visual_start
    stored = order.index()[start : start + grid.visual]
    np.testing.assert_array_equal(stored, number.reshape(-1) + start)


@given(st.data())
def test_cubes_are_sorted_by_cube_then_place(data: st.DataObject) -> None:
    """Cubes equal a plain sort of tokens by (cube, place inside), ragged far edges included."""
    grid = data.draw(grids())
    cube = [data.draw(st.integers(1, n + 2)) for n in grid.shape]
    at = np.indices(grid.shape).reshape(len(cube), -1)
    sides = np.array(cube)[:, None]
    keys = np.concatenate([at // sides, at % sides])
    start = grid.visual_start
    stored = orders.cubes(grid, cube).index()[start : start + grid.visual]
    np.testing.assert_array_equal(stored, np.lexsort(keys[::-1]) + start)


@given(st.data())
def test_json_and_repr_round_trips(data: st.DataObject) -> None:
    """Orders come back equal from JSON text and, written in code, from their repr."""
    grid, order = drawn(data)
    each = orders.per_head([order, data.draw(order_of(grid, False))])
    for one in (order, each, ~each):
        text = json.dumps(orders.to_json(one))
        assert orders.from_json(json.loads(text)) == one
        names = {"orders": orders, "Grid": Grid, "Table": type(table([0]))}
        assert eval(repr(one), names) == one
        assert hash(orders.from_json(json.loads(text))) == hash(one)


def test_windows_are_flat_cubes() -> None:
    """Windows tile the last axes, one frame after the other."""
    assert orders.windows(VIDEO, (2, 3)) == orders.cubes(VIDEO, (1, 2, 3))


def test_structure_shows_identities() -> None:
    """Orders that move nothing say so, so that nothing is generated for them."""
    for order in (
        orders.axes(VIDEO, "FHW"),
        orders.cubes(VIDEO, (1, 1, 4)),
        orders.cubes(VIDEO, (2, 5, 6)),
        orders.per_head([orders.identity(VIDEO)] * 2),
    ):
        assert order.is_identity
    assert not orders.cubes(VIDEO, (2, 5, 3)).is_identity


@pytest.mark.parametrize("grid", [Grid(0), Grid(frames=0, height=2, width=2, text=3), Grid(1)])
def test_grids_without_visual_tokens(grid: Grid) -> None:
    """Orders of no visual tokens are the identity on what text there is."""
    for order in (
        orders.axes(grid, grid.letters[::-1]),
        orders.cubes(grid, (2,) * len(grid.shape)),
        orders.table(np.arange(grid.tokens), grid),
    ):
        np.testing.assert_array_equal(order.index(), np.arange(grid.tokens))
        np.testing.assert_array_equal(order.inverse_index(), np.arange(grid.tokens))


def test_apply_to_tensors_by_head() -> None:
    """Arrays and torch tensors take the same order; one order a head moves each head's tokens."""
    torch = pytest.importorskip("torch")
    each = orders.per_head([orders.axes(VIDEO, "HWF"), orders.cubes(VIDEO, (2, 2, 3))])
    x = np.random.default_rng(0).normal(size=(2, 2, 120, 3)).astype(np.float32)
    found = each.apply(x)
    for h, order in enumerate(each.parts):
        np.testing.assert_array_equal(found[:, h], x[:, h][:, order.index()])
    np.testing.assert_array_equal(each.apply(torch.from_numpy(x)).numpy(), found)
    np.testing.assert_array_equal((~each).apply(found), x)
    np.testing.assert_array_equal(
        each.parts[0].apply(torch.from_numpy(x[0, 0]), 0).numpy(), each.parts[0].apply(x[0, 0], 0)
    )


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "axes": (
        lambda: orders.axes(VIDEO, "HHW"),
        "order 'HHW' does not name each axis once\n  in  Grid(frames=4, height=5, width=6)\n"
        "  try a permutation of 'FHW'",
    ),
    "no grid": (
        lambda: orders.axes(120, "HWF"),  # type: ignore[arg-type]
        'axes(120, ...)\n  try axes(grid, "HWF") with the grid first',
    ),
    "cube": (
        lambda: orders.cubes(VIDEO, (2, 0, 1)),
        "cube (2, 0, 1) does not fit the grid's axes\n  in  Grid(frames=4, height=5, width=6)\n"
        "  try 3 sizes of at least 1",
    ),
    "twice": (
        lambda: orders.table([0, 3, 1, 3, 2]),
        "the listed order is no bijection: token 3 stands at positions 1 and 3\n"
        "  try every token from 0 to 4 once",
    ),
    "outside": (
        lambda: orders.table([0, 1, 5]),
        "the listed order is no bijection: position 2 holds token 5\n"
        "  try every token from 0 to 2 once",
    ),
    "length": (
        lambda: orders.table([1, 0], Grid(3)),
        "the order lists 2 tokens, the grid has 3",
    ),
    "named": (
        lambda: orders.table("late"),
        "order table 'late' needs its length\n  try orders.table(kdsl.table(\"late\", tokens))",
    ),
    "chain": (
        lambda: orders.identity(VIDEO) @ orders.identity(Grid(120)),
        "the orders speak of different grids\n"
        "  in  Grid(frames=4, height=5, width=6) and Grid(length=120)",
    ),
    "chain of heads": (
        lambda: orders.per_head([orders.identity(VIDEO)]) @ orders.identity(VIDEO),
        "orders per head do not compose as one\n  try compose head by head",
    ),
    "no heads": (
        lambda: orders.per_head([]),
        "per_head([]) has no heads\n  try one order for each head",
    ),
    "not orders": (
        lambda: orders.per_head(["HWF"]),  # type: ignore[list-item]
        "per_head holds 'HWF'\n  try orders such as axes(grid, 'HWF')",
    ),
    "mixed grids": (
        lambda: orders.per_head([orders.identity(VIDEO), orders.identity(Grid(2))]),
        "per_head mixes grids\n  in  Grid(frames=4, height=5, width=6) and Grid(length=2)",
    ),
    "late inverse": (
        lambda: (~orders.table(table("late", 4))).expr,
        "order 'late' is known only at the call\n"
        "  try inverse_index(tables), or an order from values",
    ),
    "unknown": (
        lambda: orders.from_json(["hilbert", {"length": 4}]),
        "unknown order 'hilbert'\n  try axes, cubes, table, inverse, chain, per_head",
    ),
    "malformed": (
        lambda: orders.from_json(["cubes", {"length": 4}]),
        "malformed order: IndexError: list index out of range",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    """What orders refuse, word for word; the first duplicate of a bad list is named."""
    act, wanted = MESSAGES[case]
    with pytest.raises(SpecError) as caught:
        act()
    assert str(caught.value) == wanted


def test_apply_checks_its_input() -> None:
    """A tensor of another length is refused with the length that fits."""
    with pytest.raises(InputError, match="axis -2 holds 7 tokens"):
        orders.identity(VIDEO).apply(np.zeros((7, 2)))
    each = orders.per_head([orders.identity(VIDEO)] * 2)
    with pytest.raises(InputError, match="orders for 2 heads take"):
        each.apply(np.zeros((3, 120, 2)))
    late = orders.table(table("late", 4))
    with pytest.raises(SpecError, match="token 1 stands at positions 0 and 1"):
        late.index({"late": np.array([1, 1, 2, 3])})
