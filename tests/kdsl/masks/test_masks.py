"""Masks as values: the laws of `&`, `|`, `~`, round trips, tracing and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdsl.expr as kx
from kdsl import masks, orders
from kdsl.errors import SpecError
from kdsl.expr import table, where
from kdsl.grid import Grid
from kdsl.masks import Mask
from tests.strategies import Scope, scopes, truth

VIDEO = Grid(frames=4, height=5, width=6)
NAMES: dict[str, Any] = {
    "masks": masks,
    "orders": orders,
    "Grid": Grid,
    "BlockMap": masks.BlockMap,
    **{n: getattr(kx, n) for n in ("Table", "minimum", "maximum", "where")},
}


def drawn(data: st.DataObject, scope: Scope) -> Mask:
    """A mask for all heads, or one for each of two."""
    count = data.draw(st.sampled_from((1, 1, 2)))
    variants = tuple(truth(data.draw, scope, 2) for _ in range(count))
    return Mask(variants, scope.queries, scope.keys)


@given(st.data(), scopes(40))
def test_boolean_laws(data: st.DataObject, scope: Scope) -> None:
    """De Morgan, `^`, double negation, absorption: masks combine as truth values do."""
    a, b = drawn(data, scope), drawn(data, scope)
    q, k = np.arange(scope.queries.tokens), np.arange(scope.keys.tokens)

    def dense(mask: Mask, head: int) -> np.ndarray:
        return mask.dense(q, k, head=head, batch=1, tables=scope.values)

    for h in range(2):
        x, y = dense(a, h), dense(b, h)
        for mask, wanted in (
            (a & b, x & y),
            (a | b, x | y),
            (~a, ~x),
            (a ^ b, x ^ y),
            (~(a & b), ~x | ~y),
            (~(a | b), ~x & ~y),
            (a & (a | b), x),
            (a & True, x),
            (a | True, x | True),
        ):
            np.testing.assert_array_equal(dense(mask, h), wanted)
    assert ~~a == a
    assert a & a == a


@given(st.data(), scopes(40))
def test_repr_evaluates_back(data: st.DataObject, scope: Scope) -> None:
    """The repr of a mask is code for an equal mask, tables by digest, one lambda a head."""
    mask = drawn(data, scope)
    assert eval(repr(mask), NAMES) == mask


def test_repr_of_builtins_evaluates_back() -> None:
    """Every built-in, and mixtures with block maps and orders, evaluate back from their repr."""
    order = orders.cubes(VIDEO, (2, 2, 3))
    for mask in (
        masks.causal(3),
        masks.window(VIDEO, (3, 3, 3)) | masks.text(VIDEO),
        masks.radial(VIDEO, 7),
        masks.tree([0, 0, 2], [3, 2, 3]),
        masks.same(table("doc", (2, 120))),
        masks.blocks("plan", order, (64, 128), shared=True) & masks.frame_band(VIDEO, 1),
        masks.per_head([masks.causal(), masks.everything()]),
        masks.nothing(),
    ):
        assert eval(repr(mask), NAMES) == mask
        assert hash(eval(repr(mask), NAMES)) == hash(mask)


def test_predicates_take_the_indices_they_name() -> None:
    """A predicate may speak of any of q, k, head, batch, in any order, and of coordinates."""
    assert str(masks.predicate(lambda k, q: k <= q)) == "k <= q"
    assert str(masks.predicate(lambda q, head: q % 4 == head)) == "(q % 4) == head"
    assert str(masks.predicate(lambda batch: batch < 2)) == "batch < 2"
    assert str(masks.predicate(lambda q, k: q.frames == k.frames, VIDEO)) == "q.frames == k.frames"
    assert masks.predicate(lambda: True) == masks.everything()
    other = Grid(height=9, width=9)
    cross = masks.predicate(lambda q, k: q.frames < k.height, VIDEO, other)
    assert (cross.queries, cross.keys) == (VIDEO, other)


def test_per_head_text_names_the_heads() -> None:
    """A mask for each head prints one line a head."""
    mask = masks.per_head([masks.causal(), masks.window(3)])
    assert str(mask) == "head 0: (k - q) <= 0\nhead 1: abs(q - k) < 3"
    assert str(mask | masks.sink(2)).count("k < 2") == 2


def test_grids_travel_through_combination() -> None:
    """Masks that speak of a grid keep it; those that speak of none join any."""
    mask = masks.causal() & masks.window(VIDEO, (3, 3, 3))
    assert (mask.queries, mask.keys) == (VIDEO, VIDEO)
    mask.check_grids(VIDEO, VIDEO)
    with pytest.raises(SpecError) as caught:
        mask.check_grids(VIDEO, Grid(120))
    assert str(caught.value).splitlines()[0] == (
        "the mask speaks of Grid(frames=4, height=5, width=6), the keys are Grid(length=120)"
    )


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "and": (
        lambda: masks.predicate(lambda q, k: q < 3 and k < 3),
        "an expression has no truth value while a mask is being described\n"
        "  in  q < 3\n"
        "  try `&`, `|`, `~` and `where(c, a, b)` instead of `and`, `or`, `not` and `if`",
    ),
    "or": (
        lambda: masks.predicate(lambda q, k: q < k or q == 0),
        "an expression has no truth value while a mask is being described\n"
        "  in  q < k\n"
        "  try `&`, `|`, `~` and `where(c, a, b)` instead of `and`, `or`, `not` and `if`",
    ),
    "if": (
        lambda: masks.predicate(lambda q, k: q if q < k else k),
        "an expression has no truth value while a mask is being described\n"
        "  in  q < k\n"
        "  try `&`, `|`, `~` and `where(c, a, b)` instead of `and`, `or`, `not` and `if`",
    ),
    "masks with and": (
        lambda: masks.causal() and masks.window(3),
        "a mask has no truth value\n  try `&`, `|`, `~`, not `and`, `or`, `not`",
    ),
    "parameter": (
        lambda: masks.predicate(lambda q, key: q < key),
        "predicate parameter 'key'\n  try any of q, k, head, batch",
    ),
    "integer": (
        lambda: masks.predicate(lambda q, k: q - k),
        "a mask is a truth value, this is an integer\n  in  q - k\n"
        "  try a comparison such as `q >= k`",
    ),
    "nothing returned": (
        lambda: masks.predicate(lambda q, k: None),
        "None is not an integer or a truth value\n  try integers and `//`",
    ),
    "coordinate without a grid": (
        lambda: masks.predicate(lambda q, k: q.frames == k.frames),
        "index 'q' has no coordinate 'frames'\n  try predicate(..., grid=grid)",
    ),
    "coordinate of another grid": (
        lambda: masks.predicate(lambda q, k: q.frames == 0, Grid(height=4, width=4)),
        "index 'q' has no coordinate 'frames'\n  try one of ('height', 'width')",
    ),
    "grids": (
        lambda: masks.text(VIDEO) & masks.text(Grid(height=5, width=6)),
        "the masks speak of different query grids\n"
        "  in  Grid(frames=4, height=5, width=6) and Grid(height=5, width=6)",
    ),
    "head counts": (
        lambda: masks.per_head([masks.causal()] * 2) & masks.per_head([masks.causal()] * 3),
        "masks for 2 and 3 heads do not combine",
    ),
    "nested heads": (
        lambda: masks.per_head([masks.per_head([masks.causal()] * 2)] * 2),
        "per_head takes one plain mask for each head",
    ),
    "no mask": (
        lambda: masks.causal() & 3,  # type: ignore[operator]
        "3 is not a mask\n  try masks.causal(), masks.predicate(lambda q, k: ...)",
    ),
    "window": (
        lambda: masks.window(0),
        "window(0, None)\n  try window(4096) or window(grid, (5, 9, 9))",
    ),
    "window axes": (
        lambda: masks.window(VIDEO, (3, 3)),
        "window extent (3, 3)\n  in  Grid(frames=4, height=5, width=6)\n"
        "  try 3 sizes of at least 1",
    ),
    "radial": (
        lambda: masks.radial(Grid(height=5, width=6), 4),
        "radial bands of width 4\n  in  Grid(height=5, width=6), Grid(height=5, width=6)\n"
        "  try a width of at least 1 over Grid(frames=..., height=..., width=...)",
    ),
    "band": (
        lambda: masks.frame_band(Grid(height=5, width=6), 1),
        "index 'q' has no coordinate 'frames'\n  try one of ('height', 'width')",
    ),
    "blocks": (
        lambda: masks.blocks("plan", block=(8, 128)),
        "blocks of (8, 128)\n  try at least 16 x 16",
    ),
    "where": (
        lambda: masks.predicate(lambda q, k: where(q < k, q < 3, k < 3)),
        "'where' takes an integer, got a truth value\n  in  q < 3\n  try `where(condition, 1, 0)`",
    ),
    "empty": (lambda: Mask(()), "a mask without expressions\n  try masks.nothing()"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    """What masks refuse, word for word."""
    act, wanted = MESSAGES[case]
    with pytest.raises(SpecError) as caught:
        act()
    assert str(caught.value) == wanted
