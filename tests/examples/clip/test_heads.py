"""q, k and v of the example's heads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.clip import heads
from examples.clip.heads import Head, Projected
from examples.clip.video import Clip
from kdsl.errors import InputError
from kdsl.grid import Grid

COORDINATE = st.tuples(*[st.integers(-40, 40)] * 3)


def _turned(x: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    where = np.array(place, np.int32)[:, None]
    return np.asarray(heads.rope(x[None], heads.angles(where))[0], np.float64)


@settings(deadline=None)
@given(a=COORDINATE, b=COORDINATE, shift=COORDINATE, seed=st.integers(0, 99))
def test_rope_sees_distances_only(
    a: tuple[int, ...], b: tuple[int, ...], shift: tuple[int, ...], seed: int
) -> None:
    """The product of two turned vectors does not change when both places move together."""
    x, y = np.random.default_rng(seed).standard_normal((2, 64)).astype(np.float32)
    here = _turned(x, a) @ _turned(y, b)
    there = _turned(x, tuple(np.add(a, shift))) @ _turned(y, tuple(np.add(b, shift)))
    assert abs(here - there) < 1e-4 * np.linalg.norm(x) * np.linalg.norm(y)


@settings(deadline=None)
@given(place=COORDINATE, seed=st.integers(0, 99))
def test_rope_keeps_lengths(place: tuple[int, ...], seed: int) -> None:
    """A rotation changes no norm."""
    x = np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(_turned(x, place)), np.linalg.norm(x), rtol=1e-5)


def test_each_section_turns_with_its_axis() -> None:
    """The first 16 dims follow frames, the next 24 height, the last 24 width, and no other axis."""
    x = np.ones(64, np.float32)
    for axis, (low, high) in enumerate([(0, 16), (16, 40), (40, 64)]):
        moved = np.flatnonzero(_turned(x, tuple(3 * (i == axis) for i in range(3))) != x)
        assert moved.min() == low
        assert moved.max() < high


def test_shapes_and_types(made: Projected, clip: Clip) -> None:
    """q, k, v are float32 [1, heads, tokens, 64], finite, as an operator wants them."""
    for part in (made.q, made.k, made.v):
        assert part.shape == (1, len(heads.HEADS), clip.grid.tokens, 64)
        assert part.dtype == np.float32
        assert np.isfinite(part).all()


def test_seeds_decide(small_clip: Clip) -> None:
    """The same seed gives the same numbers, another seed others: a run can be repeated."""
    first, again, other = (
        heads.project(small_clip.features, small_clip.grid, seed=seed).q for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_head_without_content_prefers_its_own_place_on_a_near_axis(axis: int) -> None:
    """``near`` on one axis alone: the logit falls away along it and is level along the others."""
    grid = Grid(frames=5, height=5, width=5)
    near = tuple(8.0 * (i == axis) for i in range(3))
    head = Head("probe", near=(near[0], near[1], near[2]), content=0.0)
    made = heads.project(np.ones((125, 3), np.float32), grid, (head,))
    logits = (made.q[0, 0, 62] @ made.k[0, 0].T / 8).reshape(5, 5, 5)
    along = np.moveaxis(logits, axis, 0)
    np.testing.assert_allclose(along.max(), 8.0, rtol=1e-4)
    assert (along[2] > along[1]).all()
    assert (along[1] > along[0]).all()
    np.testing.assert_allclose(along, along[:, :1, :1] * np.ones((5, 5, 5)), atol=1e-3)


def test_ahead_moves_the_centre() -> None:
    """``ahead=(-1, 0, 0)`` looks at the frame before, not at its own and not at the next."""
    grid = Grid(frames=7, height=1, width=1)
    head = Head("probe", near=(8.0, 0.0, 0.0), content=0.0, ahead=(-1.0, 0.0, 0.0))
    made = heads.project(np.ones((7, 3), np.float32), grid, (head,))
    logits = made.q[0, 0] @ made.k[0, 0].T
    assert logits[1:].argmax(1).tolist() == [0, 1, 2, 3, 4, 5]


def test_content_is_a_logit_of_about_its_name(clip: Clip) -> None:
    """Without positions and with one shared projection, a token scores itself about ``content``."""
    head = Head("probe", near=(0.0, 0.0, 0.0), content=5.0, shared=1.0)
    made = heads.project(clip.features, clip.grid, (head,))
    own = (made.q[0, 0] * made.k[0, 0]).sum(1) / 8
    assert abs(own.mean() - 5.0) < 1.0


def test_what_does_not_fit_is_refused(small_clip: Clip) -> None:
    """Features of another grid and sections that leave dims over are named, not broadcast."""
    with pytest.raises(InputError, match="210 feature rows for 8 tokens"):
        heads.project(small_clip.features, Grid(frames=2, height=2, width=2))
    with pytest.raises(InputError, match=r"sections=\(16, 24, 20\)"):
        heads.project(small_clip.features, small_clip.grid, sections=(16, 24, 20))
    with pytest.raises(InputError, match="even parts"):
        heads.project(small_clip.features, small_clip.grid, sections=(15, 25, 24))
