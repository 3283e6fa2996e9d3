"""Grids: coordinates, names, round trips, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given

from kdsl.errors import SpecError
from kdsl.grid import Grid, as_grid
from tests.strategies import grids


@given(grids())
def test_coordinates_number_the_tokens(grid: Grid) -> None:
    """Coordinates times strides give back each visual token's number; text reads 0."""
    coordinates = grid.coordinates()
    at = slice(grid.visual_start, grid.visual_start + grid.visual)
    number = (coordinates[:, at] * np.array(grid.strides)[:, None]).sum(0)
    np.testing.assert_array_equal(number, np.arange(grid.visual))
    text = np.ones(grid.tokens, bool)
    text[at] = False
    assert not coordinates[:, text].any()
    assert text.sum() == grid.text


@given(grids())
def test_round_trips(grid: Grid) -> None:
    """A grid comes back equal from its JSON form and from its repr."""
    assert Grid.from_json(grid.to_json()) == grid
    assert eval(repr(grid), {"Grid": Grid}) == grid


def test_without_text_its_place_does_not_matter() -> None:
    """A grid without text is one value, wherever text would have stood."""
    assert Grid(5, text_at="end") == Grid(5)


def test_axes_by_name_and_letter() -> None:
    """Axes go by name or first letter, slowest first."""
    grid = Grid(frames=2, height=3, width=4)
    assert [grid.axis(a) for a in ("frames", "H", "width")] == [0, 1, 2]
    assert (grid.letters, Grid(7).letters) == ("FHW", "L")
    assert (grid.strides, grid.tokens) == ((12, 4, 1), 24)


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "nothing": (
        lambda: Grid(),
        "a grid has either a length or named axes\n  in  Grid(text_at='start')\n"
        "  try Grid(4096), Grid(height=64, width=64), Grid(frames=21, height=30, width=52)",
    ),
    "negative": (
        lambda: Grid(frames=-1, height=2),
        "frames=-1 is not a token count\n  in  Grid(frames=-1, height=2, text_at='start')\n"
        "  try a Python int of at least 0",
    ),
    "text": (
        lambda: Grid(4, text=True),
        "text=True is not a token count\n  in  Grid(length=4, text=True, text_at='start')\n"
        "  try a Python int of at least 0",
    ),
    "text_at": (
        lambda: Grid(4, text=1, text_at="middle"),  # type: ignore[arg-type]
        "text_at='middle'\n  in  Grid(length=4, text=1, text_at='middle')\n"
        '  try "start" or "end"',
    ),
    "axis": (
        lambda: Grid(height=2, width=3).axis("frames"),
        "axis 'frames' is not on this grid\n  in  Grid(height=2, width=3)\n"
        "  try 'height' or 'width'",
    ),
    "tokens": (
        lambda: as_grid(2.5),  # type: ignore[arg-type]
        "tokens=2.5\n  try tokens=4096 or tokens=Grid(frames=..., height=..., width=...)",
    ),
    "json": (
        lambda: Grid.from_json({"depth": 3}),
        "malformed grid: TypeError: Grid.__init__() got an unexpected keyword argument 'depth'",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    """What grids refuse, word for word."""
    act, wanted = MESSAGES[case]
    with pytest.raises(SpecError) as caught:
        act()
    assert str(caught.value) == wanted
