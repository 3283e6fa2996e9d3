"""The expression tree: tracing, simplification, text, and what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.errors import InputError, SpecError
from kdsl.expr import Expr, Index, as_expr, const, maximum, minimum, table, where
from kdsl.expr.evaluate import evaluate
from kdsl.expr.nodes import make, var
from kdsl.grid import Grid
from tests.strategies import Scope, integer, scopes, truth

Q, K = Index("q", Grid(height=3, width=4, text=2)), Index("k", Grid(9))
SMALL = st.integers(-50, 50)


@given(SMALL, SMALL, st.integers(1, 20))
def test_operations_mean_what_python_means(a: int, b: int, n: int) -> None:
    """NumPy reads each operation as Python does: `//` and `%` round towards minus infinity."""
    q, k = var("q"), var("k")
    pairs: list[tuple[Expr, Any]] = [
        (q + k, a + b),
        (q - k, a - b),
        (3 - q, 3 - a),
        (-q, -a),
        (q * k, a * b),
        (q // n, a // n),
        (q % n, a % n),
        (abs(q), abs(a)),
        (minimum(q, k), min(a, b)),
        (maximum(q, 3), max(a, 3)),
        (where(q < k, q, k * 2), a if a < b else b * 2),
        (q < k, a < b),
        (q <= k, a <= b),
        (q > k, a > b),
        (q >= k, a >= b),
        (q == k, a == b),
        (q != k, a != b),
        (~((q < 3) & (k < 5)) | (q == k), not (a < 3 and b < 5) or a == b),
        ((q < 3) ^ (k < 5), (a < 3) != (b < 5)),
    ]
    for expr, wanted in pairs:
        assert evaluate(expr, {"q": a, "k": b}) == wanted, repr(expr)


@given(st.data(), scopes(40))
def test_simplification_keeps_values(data: st.DataObject, scope: Scope) -> None:
    """A tree whose variables became constants folds to the value that NumPy finds."""
    expr = truth(data.draw, scope, 2)
    at = {name: data.draw(st.integers(*b)) for name, b in scope.bounds().items()}
    value = bool(evaluate(expr, at, scope.values))
    folded = expr.replace({name: n for name, n in at.items() if name not in ("q", "k")})
    assert bool(evaluate(folded, at, scope.values)) == value
    if not any(n.op in ("table", "coord", "visual") for n in expr.walk()):
        assert expr.replace(at).value == value


@given(st.data(), scopes(40))
def test_text_evaluates_back(data: st.DataObject, scope: Scope) -> None:
    """The text of an expression, with its tables written out, is Python for the same tree."""
    names = {
        "where": where,
        "minimum": minimum,
        "maximum": maximum,
        "Table": __import__("kdsl.expr", fromlist=["Table"]).Table,
        **{n: var(n) for n in ("head", "batch", "qs", "ks")},
        "q": scope.q,
        "k": scope.k,
    }
    from kdsl.expr.text import to_text

    for expr in (truth(data.draw, scope, 3), integer(data.draw, scope, 3)):
        back = as_expr(eval(to_text(expr, source=True), {}, names))
        assert back.same(expr), to_text(expr)


def test_coordinates_of_every_grid_have_their_own_names() -> None:
    """Text speaks of frames, height and width as the grid names them, also on fewer axes."""
    for grid in (Grid(5), Grid(frames=2), Grid(frames=2, width=3), Grid(height=2, width=3)):
        q = Index("q", grid)
        for name in grid.axes or ("length",):
            assert repr(getattr(q, name)) == f"q.{name}"
    with pytest.raises(SpecError, match="has no coordinate 'frames'"):
        _ = Index("q", Grid(height=2, width=3)).frames


@given(scopes(60))
def test_text_tokens_read_coordinate_zero(scope: Scope) -> None:
    """Coordinates are those of the grid; text before or behind it reads 0 on every axis."""
    grid = scope.queries
    tokens = np.arange(grid.tokens)
    for i, name in enumerate(grid.axes or ("length",)):
        found = evaluate(getattr(scope.q, name), {"q": tokens})
        np.testing.assert_array_equal(found, grid.coordinates()[i])
    if grid.text:
        seen = evaluate(scope.q.visual, {"q": tokens})
        assert seen.sum() == grid.visual
        assert not seen[: grid.visual_start].any()


def test_values_are_identified_by_structure() -> None:
    """Equal trees have one key however they came about; another constant is another tree."""
    assert (Q + 3).same(Q + 1 + 2 - 0) is False
    assert (Q + 3).same(Q + 3)
    assert not (Q + 3).same(Q + 4)
    assert (as_expr(5) == Q).same(Q == 5)
    assert (Q == Q).value == 1
    assert (Q < Q).value == 0
    assert (Q - Q).same(const(0))
    assert (~~(Q < K)).same(Q < K)
    assert (Q * 0 + K // 1).same(K)


def test_numpy_integers_are_integers() -> None:
    """NumPy scalars take part from either side, as Python's integers do."""
    assert (np.int64(3) + Q).same(3 + Q)
    assert (np.int32(3) < Q).same(as_expr(3) < Q)
    assert ((Q < 3) & np.True_).same(Q < 3)


def test_nodes_travel_between_processes() -> None:
    """Pickled expressions come back with the same structure."""
    expr = where(Q.height < table("doc", 14)[Q], Q.width, K)
    assert pickle.loads(pickle.dumps(expr)).same(expr)
    assert pickle.loads(pickle.dumps(Q)).width.same(Q.width)


def test_nodes_never_change() -> None:
    """Assigning to a node is refused."""
    with pytest.raises(AttributeError, match="never change"):
        Q.op = "const"


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "and": (
        lambda: Q < 3 and K < 3,
        "an expression has no truth value while a mask is being described\n"
        "  in  q < 3\n"
        "  try `&`, `|`, `~` and `where(c, a, b)` instead of `and`, `or`, `not` and `if`",
    ),
    "chained": (
        lambda: 0 < Q < 3,
        "an expression has no truth value while a mask is being described\n"
        "  in  0 < q\n"
        "  try `&`, `|`, `~` and `where(c, a, b)` instead of `and`, `or`, `not` and `if`",
    ),
    "true division": (lambda: Q / 2, "`/` gives fractions, and indices are integers\n  try `//`"),
    "zero": (lambda: Q // 0, "division by 0\n  in  q\n  try a positive divisor"),
    "negative": (lambda: Q % -3, "division by -3\n  in  q\n  try a positive divisor"),
    "float": (
        lambda: Q + 0.5,
        "0.5 is not an integer or a truth value\n  try integers and `//`",
    ),
    "array": (
        lambda: Q + np.arange(2),
        "array([0, 1]) is not an integer or a truth value\n  try kdsl.table(values)[q]",
    ),
    "integer as truth": (
        lambda: (Q < 3) & K,
        "'and' takes a truth value, got an integer\n  in  k\n  try compare it first, e.g. `x == 0`",
    ),
    "truth as integer": (
        lambda: (Q < 3) + 1,
        "'add' takes an integer, got a truth value\n  in  q < 3\n  try `where(condition, 1, 0)`",
    ),
    "where": (
        lambda: where(Q, 1, 2),
        "'where' takes a truth value, got an integer\n  in  q\n"
        "  try compare it first, e.g. `x == 0`",
    ),
    "arity": (lambda: make("add", (Q,)), "'add' takes 2 arguments, got 1"),
    "variable": (
        lambda: var("x"),
        "unknown index 'x'\n  try q, k, qs, ks, head, batch, s, row, col",
    ),
    "table rank": (
        lambda: table("doc", (2, 3))[Q],
        "table 'doc' has 2 axes, got 1 indices",
    ),
    "table shape": (lambda: table("doc"), "table 'doc' needs a shape\n  try table('doc', 4096)"),
    "table name": (
        lambda: table("2; drop", 4),
        "table name '2; drop'\n  try a plain identifier such as \"doc\"",
    ),
    "table dtype": (
        lambda: table("doc", 4, "int64"),
        "table 'doc' of int64\n  try int32, int16, uint8, int8",
    ),
    "table range": (
        lambda: table("doc", 4, "uint8", low=-1),
        "table 'doc' of uint8 with low=-1, high=255\n  try 0 <= low <= high <= 255",
    ),
    "table floats": (
        lambda: table([0.5]),
        "a table holds integers, got float64\n  try values.astype(numpy.int32)",
    ),
    "large values": (
        lambda: table([2**40]),
        "table 't_10c01b61c6' of int32 with low=1099511627776, high=1099511627776\n"
        "  try -2147483648 <= low <= high <= 2147483647",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    """What tracing refuses, word for word: what, where, and what would work."""
    act, wanted = MESSAGES[case]
    with pytest.raises(SpecError) as caught:
        act()
    assert str(caught.value) == wanted


def test_table_values_are_kept_and_checked() -> None:
    """Values given with a table are copied, read-only, and known by digest."""
    mine = np.array([3, 1, 2], np.int32)
    held = table(mine)
    mine[0] = 7
    assert held.values is not None
    assert held.values.tolist() == [3, 1, 2]
    assert not held.values.flags.writeable
    assert (held.low, held.high) == (1, 3)
    again = type(held).from_json(held.to_json())
    assert again.values is None
    assert again.key == held.key
    assert again.checked([3, 1, 2]).tolist() == [3, 1, 2]
    with pytest.raises(InputError, match="holds other values than the spec was made with"):
        again.checked([3, 2, 1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1], "table 'doc' has shape (3,), got (2,)"),
        ([0, 1, 9], "table 'doc' holds 0..9"),
        ([0.0, 1.0, 2.0], "table 'doc' holds integers, got float64"),
    ],
)
def test_table_values_at_the_call(values: list[float], message: str) -> None:
    """Values that do not fit their table are refused by name."""
    with pytest.raises(InputError) as caught:
        table("doc", 3, low=0, high=5).checked(values)
    assert str(caught.value).startswith(message)


def test_lookups_outside_a_table_are_errors() -> None:
    """Dense evaluation never wraps a negative index and never reads past the end."""
    doc = table("doc", 4)
    for at in (-1, 4):
        with pytest.raises(InputError, match=f"index {at} is outside table 'doc'"):
            evaluate(doc[var("q")], {"q": at}, {"doc": np.arange(4)})
    with pytest.raises(InputError, match="index 'k' is needed here"):
        evaluate(var("k") + 1, {"q": 0})
