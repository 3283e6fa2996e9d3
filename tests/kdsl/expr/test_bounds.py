"""Ranges of expressions: sound over random boxes, and the checks that stand on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.errors import SpecError
from kdsl.expr import Index, maximum, table, where
from kdsl.expr.bounds import bounds, check_int32, check_tables
from kdsl.expr.evaluate import evaluate
from kdsl.expr.lower import lower
from kdsl.expr.nodes import var
from kdsl.grid import Grid
from tests.strategies import Scope, integer, scopes, truth


def some_box(draw: st.DrawFn, scope: Scope) -> dict[str, tuple[int, int]]:
    """A random part of the indices' ranges, single values among them."""
    box = {}
    for name, (_, last) in scope.bounds().items():
        low = draw(st.integers(0, last))
        box[name] = (low, draw(st.integers(low, last)))
    return box


def points(box: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Corners of a box and 200 points inside."""
    rng = np.random.default_rng(0)
    ends = np.indices((2,) * len(box)).reshape(len(box), -1)
    return {
        name: np.concatenate([np.array([a, b])[ends[i]], rng.integers(a, b + 1, 200)])
        for i, (name, (a, b)) in enumerate(box.items())
    }


@given(st.data(), scopes())
def test_bounds_hold_at_every_node(data: st.DataObject, scope: Scope) -> None:
    """No value of any node, over points of a random box, lies outside the range found for it."""
    box = some_box(data.draw, scope)
    for expr in (integer(data.draw, scope, 3), truth(data.draw, scope, 3)):
        found, at = bounds(expr, box), points(box)
        for node in expr.walk():
            values = evaluate(node, at, scope.values).astype(np.int64)
            low, high = found[node.key]
            assert low <= values.min(), repr(node)
            assert values.max() <= high, repr(node)


@given(st.data(), scopes())
def test_lowering_keeps_values(data: st.DataObject, scope: Scope) -> None:
    """What printers print instead has the same values over the box it was made for."""
    box = some_box(data.draw, scope)
    for expr in (integer(data.draw, scope, 3), truth(data.draw, scope, 3)):
        plain, at = lower(expr, box), points(box)
        assert not any(n.op in ("coord", "visual") for n in plain.walk())
        np.testing.assert_array_equal(
            evaluate(plain, at, scope.values), evaluate(expr, at, scope.values)
        )


@given(scopes())
def test_coordinates_are_bounded_by_their_axes(scope: Scope) -> None:
    """Over all tokens a coordinate runs from 0 to its axis's end exactly, text at either end."""
    grid = scope.queries
    for name, size in zip(grid.axes or ("length",), grid.shape, strict=True):
        node = getattr(scope.q, name)
        assert bounds(node, scope.bounds())[node.key] == (0, size - 1)


def test_lowering_drops_idle_steps() -> None:
    """Coordinates come out as one division or remainder where the ranges allow."""
    q = Index("q", Grid(frames=3, height=4, width=5))
    box = {"q": (0, 59)}
    assert repr(lower(q.frames, box)) == "q // 20"
    assert repr(lower(q.height, box)) == "(q // 5) % 4"
    assert repr(lower(q.width, box)) == "q % 5"
    behind = Index("q", Grid(height=4, width=5, text=3))
    assert repr(lower(behind.height, {"q": (0, 22)})) == "maximum(q - 3, 0) // 5"
    before = Index("q", Grid(height=4, width=5, text=3, text_at="end"))
    assert repr(lower(before.width, {"q": (0, 22)})) == "where(q < 20, q, 0) % 5"
    assert repr(lower(before.visual, {"q": (0, 22)})) == "q < 20"


def test_what_may_leave_32_bits_is_refused() -> None:
    """Leaves compute in 32 bits: a node that may leave them is named, with how far it may go."""
    q, k = var("q"), var("k")
    box = {"q": (0, 2**20 - 1), "k": (0, 2**20 - 1)}
    check_int32(q * 2047 + k, box)
    with pytest.raises(SpecError) as caught:
        check_int32(q * k < 5, box)
    assert str(caught.value) == (
        "q * k may reach 1099509530625, beyond 32 bits\n"
        "  in  (q * k) < 5\n"
        "  try smaller constants, or low= and high= on its tables"
    )
    with pytest.raises(SpecError, match="may reach -2147483649"):
        check_int32(q - (2**31 - 1) - 2, box)


def test_divisors_must_be_positive() -> None:
    """A divisor that may be zero is refused; `maximum(d, 1)` and a table's low=1 are accepted."""
    q, k = var("q"), var("k")
    box = {"q": (0, 9), "k": (0, 9)}
    with pytest.raises(SpecError) as caught:
        bounds(q // k, box)
    assert str(caught.value) == (
        "divisor k may be 0\n  in  q // k\n  try maximum(divisor, 1), or a table with low=1"
    )
    bounds(q // maximum(k, 1), box)
    bounds(q % table("d", 10, low=1, high=9)[k], box)


def test_lookups_must_stay_inside() -> None:
    """An index that may leave its table is refused before any kernel is made."""
    doc = table("doc", 8)
    check_tables(doc[var("q")] == 1, {"q": (0, 7)})
    with pytest.raises(SpecError) as caught:
        check_tables(doc[var("q")] == 1, {"q": (0, 9)})
    assert str(caught.value) == (
        "index q of table 'doc' runs from 0 to 9, the table from 0 to 7\n"
        "  in  doc[q]\n"
        "  try a table as long as its index, or minimum(maximum(index, 0), 7)"
    )


def test_unknown_indices_are_named() -> None:
    """An index without a range is an error that lists the known ones."""
    with pytest.raises(SpecError, match="index 's' has no meaning here"):
        bounds(var("s") + 1, {"q": (0, 3)})


def test_decided_conditions_narrow_a_choice() -> None:
    """`where` takes the range of the branch that its condition picks."""
    q = var("q")
    node = where(q < 10, q, 1000)
    assert bounds(node, {"q": (0, 9)})[node.key] == (0, 9)
    assert bounds(node, {"q": (0, 10)})[node.key] == (0, 1000)
