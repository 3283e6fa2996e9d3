"""Each built-in mask against a definition written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks
from kdsl.grid import Grid
from tests.strategies import grids

VIDEO = Grid(frames=4, height=5, width=6, text=3)


def apart(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Distances along each axis ``[axes, q, k]``, and which pairs are both visual."""
    at = grid.coordinates()
    visual = np.zeros(grid.tokens, bool)
    visual[grid.visual_start : grid.visual_start + grid.visual] = True
    return at[:, :, None] - at[:, None, :], visual[:, None] & visual[None, :]


def dense(mask: masks.Mask, grid: Grid) -> np.ndarray:
    """A mask over all original tokens."""
    tokens = np.arange(grid.tokens)
    return mask.dense(tokens, tokens)


@given(st.integers(1, 40), st.integers(-9, 9), st.integers(1, 50))
def test_sequences(tokens: int, offset: int, size: int) -> None:
    """Causal, window, sink and prefix over plain token numbers."""
    grid = Grid(tokens)
    q, k = np.arange(tokens)[:, None], np.arange(tokens)[None, :]
    np.testing.assert_array_equal(dense(masks.causal(offset), grid), k <= q + offset)
    np.testing.assert_array_equal(dense(masks.window(size), grid), abs(q - k) < size)
    sink = np.broadcast_to(k < size, (tokens, tokens))
    np.testing.assert_array_equal(dense(masks.sink(size), grid), sink)
    np.testing.assert_array_equal(dense(masks.prefix(size), grid), (q < size) & (k < size))


@given(st.data(), grids())
def test_windows(data: st.DataObject, grid: Grid) -> None:
    """A window reaches half its extent along each axis, between visual tokens; dilated skips."""
    extent = [data.draw(st.integers(1, 9)) for _ in grid.shape]
    step = [data.draw(st.integers(1, 3)) for _ in grid.shape]
    away, visual = apart(grid)
    near, skipping = visual.copy(), visual.copy()
    for d, e, s in zip(away, extent, step, strict=True):
        near &= abs(d) <= e // 2
        skipping &= (abs(d) <= e // 2 * s) & (abs(d) % s == 0)
    np.testing.assert_array_equal(dense(masks.window(grid, extent), grid), near)
    np.testing.assert_array_equal(dense(masks.dilated(grid, extent, step), grid), skipping)
    np.testing.assert_array_equal(dense(masks.text(grid), grid), ~visual)


@pytest.mark.parametrize("width", [1, 4, 9, 40])
def test_frames(width: int) -> None:
    """Bands of frames, and radial bands that halve as the distance in frames doubles."""
    away, visual = apart(VIDEO)
    np.testing.assert_array_equal(
        dense(masks.frame_band(VIDEO, 1), VIDEO), visual & (abs(away[0]) <= 1)
    )
    flat = abs(away[1] * VIDEO.shape[2] + away[2])
    frames = abs(away[0])
    level = np.floor(np.log2(np.maximum(frames, 1))).astype(int)
    reach = np.maximum(width >> level, 1)
    np.testing.assert_array_equal(
        dense(masks.radial(VIDEO, width), VIDEO), visual & (flat <= reach)
    )


def test_ranges() -> None:
    """A query sees the keys of its own range, by batch item where the tables are."""
    first, end = np.array([0, 1, 1, 3]), np.array([2, 1, 4, 9])
    at = np.arange(4)
    wanted = (first[:, None] <= at) & (at < end[:, None])
    np.testing.assert_array_equal(masks.ranges(first, end).dense(at, at), wanted)
    both = masks.ranges(np.stack([end * 0, first]), np.stack([end * 0, end]))
    assert not both.dense(at, at, batch=0).any()
    np.testing.assert_array_equal(both.dense(at, at, batch=1), wanted)


def test_segments_and_trees() -> None:
    """Tokens see their own segment; in a tree they see themselves and their ancestors."""
    ids = np.array([0, 0, 1, 1, 1, 2])
    grid = Grid(6)
    np.testing.assert_array_equal(dense(masks.same(ids), grid), ids[:, None] == ids[None, :])
    assert masks.segments is masks.same
    # A trunk of two tokens with two branches, of which the first has a branch of its own.
    parent = [-1, 0, 1, 2, 1, 4]
    start, end = [0, 1, 2, 3, 4, 5], [6, 6, 4, 4, 6, 6]
    wanted = np.zeros((6, 6), bool)
    for token in range(6):
        up = token
        while up >= 0:
            wanted[token, up] = True
            up = parent[up]
    np.testing.assert_array_equal(dense(masks.tree(start, end), grid), wanted)


def test_batches_of_segments() -> None:
    """Ids ``[batch, tokens]`` give each item its own segments."""
    ids = np.array([[0, 0, 1], [0, 1, 1]])
    mask = masks.same(ids)
    for b in range(2):
        found = mask.dense(np.arange(3), np.arange(3), batch=b)
        np.testing.assert_array_equal(found, ids[b][:, None] == ids[b][None, :])


@pytest.mark.parametrize("shared", [False, True])
def test_block_maps(shared: bool) -> None:
    """A map of blocks keeps all pairs of a block, by stored position, for each head or for all."""
    kept = np.random.default_rng(0).integers(0, 2, (1 if shared else 2, 3, 2))
    mask = masks.blocks("plan", block=(16, 32), shared=shared).resolve(2, 40, 50)
    at = np.arange(40), np.arange(50)
    for h in range(2):
        found = mask.dense(*at, head=h, tables={"plan": kept}, stored=at)
        wanted = kept[0 if shared else h].repeat(16, 0).repeat(32, 1)[:40, :50] == 1
        np.testing.assert_array_equal(found, wanted)
