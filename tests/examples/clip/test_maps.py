"""Orders of a clip's grid, and the softmax of its heads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.clip import maps
from examples.clip.axis_orders import ORDERS, stored_to_original
from kdsl.errors import SpecError
from kdsl.grid import Grid

SIZES = st.integers(1, 5)


@settings(deadline=None)
@given(frames=SIZES, height=SIZES, width=SIZES, order=st.sampled_from(ORDERS))
def test_an_order_walks_its_axes(frames: int, height: int, width: int, order: str) -> None:
    """An order names every token once, and its last axis moves fastest, its first slowest."""
    grid = Grid(frames=frames, height=height, width=width)
    index = stored_to_original(grid, order)
    assert sorted(index) == list(range(grid.tokens))
    stored = grid.coordinates()[[grid.axis(letter) for letter in order]][:, index]
    assert [tuple(c) for c in stored.T] == sorted(tuple(c) for c in stored.T)


@pytest.mark.parametrize("order", ["FH", "FFW", "LHW", "FHWF"])
def test_what_is_no_order_is_refused(order: str) -> None:
    """A missing, doubled or unknown axis is an error that names what is wanted."""
    with pytest.raises(SpecError, match="each axis once"):
        stored_to_original(Grid(frames=2, height=2, width=2), order)


def test_a_row_that_sees_nothing_is_zero() -> None:
    """Softmax over -inf alone gives zeros, not NaN."""
    np.testing.assert_array_equal(maps.softmax(np.full((2, 3), -np.inf, np.float32)), 0)
