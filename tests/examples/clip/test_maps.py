"""Block statistics of attention maps, a block row at a time, against the whole map."""

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


def _map(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    scores = q.astype(np.float64) @ k.T.astype(np.float64) / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


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


@settings(deadline=None)
@given(
    tokens=st.integers(1, 300),
    block=st.integers(1, 40),
    picked=st.sets(st.integers(0, 299)),
    seed=st.integers(0, 99),
)
def test_streaming_gives_the_rows_of_the_map(
    tokens: int, block: int, picked: set[int], seed: int
) -> None:
    """Whatever block rows are asked for come back under their number, the ragged last one too."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, tokens, 8)).astype(np.float32)
    whole = _map(q, k)
    rows = sorted(row for row in picked if row < maps.blocks_in(tokens, block)) if picked else None
    seen = list(maps.stream(q, k, block, rows))
    assert [row for row, _ in seen] == (
        rows if rows is not None else list(range(maps.blocks_in(tokens, block)))
    )
    for row, p in seen:
        np.testing.assert_allclose(p, whole[row * block : (row + 1) * block], atol=1e-5)


@settings(deadline=None)
@given(
    rows=st.integers(1, 20), tokens=st.integers(1, 90), block=st.integers(1, 40), seed=st.integers()
)
def test_block_statistics_are_those_of_the_blocks(
    rows: int, tokens: int, block: int, seed: int
) -> None:
    """Mass, share below eps and incoherence equal what each block, cut out, says of itself."""
    rng = np.random.default_rng(abs(seed))
    p = (rng.random((rows, tokens)) ** 4).astype(np.float32)
    p[:, tokens // 2 :][:, :block] = 0  # sometimes a block of nothing
    p[0, 0] = 1
    found = maps.row_blocks(p, block, eps=0.1)
    for column, start in enumerate(range(0, tokens, block)):
        cut = p[:, start : start + block].astype(np.float64)
        assert found.mass[column] == pytest.approx(cut.sum() / p.sum(dtype=np.float64), rel=1e-4)
        assert found.below[column] == pytest.approx((cut < np.float32(0.1)).mean())
        expected = cut.max() / cut.mean() if cut.any() else 1.0
        assert found.incoherence[column] == pytest.approx(expected, rel=1e-4)


def test_a_row_that_sees_nothing_is_zero() -> None:
    """Softmax over -inf alone gives zeros, not NaN."""
    np.testing.assert_array_equal(maps.softmax(np.full((2, 3), -np.inf, np.float32)), 0)
