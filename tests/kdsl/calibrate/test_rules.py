"""Rules for masks: no smaller mask holds as much, no other one of that size holds more."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.calibrate import block_sum, dense_text, held, keep_heads, keep_rows, row_weights
from kdsl.calibrate.rules import largest, under_budget
from kdsl.errors import InputError
from kdsl.grid import Grid

MASSES = st.lists(st.integers(0, 20), min_size=1, max_size=7).filter(any)


@st.composite
def layers(draw: st.DrawFn, most: int = 2) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Masses of some layers (rows sum to 1, ties are common), weights of rows, forced blocks."""
    heads, rows, columns = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    out = []
    for _ in range(draw(st.integers(1, most))):
        mass = rng.integers(1, 5, (heads, rows, columns)).astype(np.float64)
        # Some heads are flat and some peaked, so that one would give much to another.
        mass **= rng.choice([0.0, 1.0, 6.0], (heads, 1, 1))
        out.append(mass / mass.sum(-1, keepdims=True))
    sizes = np.full(rows, 4.0)
    sizes[-1] = draw(st.sampled_from((1.0, 4.0)))
    forced = rng.random((rows, columns)) < draw(st.sampled_from((0.0, 0.0, 0.3)))
    return out, sizes / sizes.sum(), forced


def fewest(row: list[int], keep: float) -> int:
    """How few entries of ``row`` can sum to ``keep``, by trying every choice."""
    for number in range(len(row) + 1):
        if any(sum(some) >= keep - 1e-9 for some in combinations(row, number)):
            return number
    raise AssertionError(row)


@given(row=MASSES, data=st.data())
def test_no_smaller_choice_of_a_row_would_do(row: list[int], data: st.DataObject) -> None:
    """The kept blocks hold the wanted share, and no choice of fewer blocks does."""
    wanted = data.draw(st.integers(1, sum(row)))
    mass = np.array([[row]], np.float64) / sum(row)
    kept = keep_rows(mass, (wanted - 0.5) / sum(row))[0, 0]
    assert np.array(row)[kept].sum() >= wanted
    assert kept.sum() == fewest(row, wanted)


def test_just_enough_is_enough() -> None:
    """A share met exactly takes no further block, and all of the mass no block without any."""
    halves, holes = np.array([[[0.5, 0.5]]]), np.array([[[0.75, 0.0, 0.25, 0.0]]])
    assert keep_rows(halves, 0.5)[0].tolist() == [[True, False]]
    assert keep_rows(holes, 1.0)[0].tolist() == [[True, False, True, False]]
    assert keep_heads(halves, np.ones(1), 0.5)[0].tolist() == [[True, False]]
    assert keep_heads(holes, np.ones(1), 1.0)[0].tolist() == [[True, False, True, False]]


def every_mask(always: np.ndarray) -> Any:
    """All masks of a head that keep what is always kept."""
    free = np.flatnonzero(~always)
    for bits in product((False, True), repeat=len(free)):
        mask = always.copy().reshape(-1)
        mask[free] = bits
        yield mask.reshape(always.shape)


def always_of(head: np.ndarray, forced: np.ndarray) -> np.ndarray:
    """Forced blocks, and the heaviest of each row."""
    out = forced.copy()
    out[np.arange(len(out)), head.argmax(-1)] = True
    return out


@settings(max_examples=30)
@given(made=layers(most=1), keep=st.floats(0.05, 1.0))
def test_no_smaller_mask_of_a_head_would_do(made: Any, keep: float) -> None:
    """`keep_heads` holds its share in every head, and no smaller mask with those rows does."""
    (mass,), weights, forced = made
    kept = keep_heads(mass, weights, keep, forced)
    for head, found in zip(mass, kept, strict=True):
        always = always_of(head, forced)
        assert (found >= always).all()
        assert held(head[None], found[None], weights)[0] >= keep * (1 - 1e-9)
        sizes = [
            m.sum()
            for m in every_mask(always)
            if held(head[None], m[None], weights)[0] >= keep * (1 + 1e-9)
        ]
        assert not sizes or found.sum() <= min(sizes)


@settings(max_examples=30)
@given(made=layers(most=1), density=st.floats(0.05, 1.0))
def test_block_sum_keeps_the_largest_sums(made: Any, density: float) -> None:
    """PAROAttention's mask has the wanted density, and no dropped block outweighs a free one."""
    (mass,), weights, forced = made
    for head, found in zip(mass, block_sum(mass, weights, density, forced), strict=True):
        always = always_of(head, forced)
        assert found.sum() == max(int(density * head.size), always.sum())
        sums = head * weights[:, None]
        free = sums[found & ~always]
        assert not free.size or (sums[~found] <= free.min() * (1 + 1e-6)).all()


@settings(max_examples=40)
@given(made=layers(), density=st.floats(0.1, 0.9), give=st.sampled_from((0.0, 0.05, 0.5)))
def test_nothing_of_that_size_holds_more(made: Any, density: float, give: float) -> None:
    """`under_budget` keeps the most mass of all ways to share the blocks between the heads.

    All ways that leave each head what its own share of blocks holds, less what it may give; within
    a head the heaviest blocks are the best of any number, so ways differ in numbers alone.
    """
    masses, weights, forced = made
    found = list(under_budget(masses, weights, density, forced, give))
    curves, least, fixed = [], [], 0
    for head in (h for mass in masses for h in mass):
        always = always_of(head, forced)
        free = np.sort((head * weights[:, None])[~always].astype(np.float32))[::-1]
        base = (head * weights[:, None])[always].sum()
        curve = base + np.concatenate([[0], free.cumsum(dtype=np.float64)])
        own = max(int(density * head.size) - int(always.sum()), 0)
        curves.append(curve)
        least.append(next(n for n, x in enumerate(curve) if x >= curve[own] - give))
        fixed += int(always.sum())
    budget = max(int(density * sum(m.size for m in masses)) - fixed, sum(least))
    best = max(
        sum(c[n] for c, n in zip(curves, numbers, strict=True))
        for numbers in product(*(range(a, len(c)) for a, c in zip(least, curves, strict=True)))
        if sum(numbers) <= budget
    )
    holds = [held(mass, kept, weights) for mass, kept in zip(masses, found, strict=True)]
    assert sum(map(sum, holds)) == pytest.approx(best, abs=1e-6)
    flat = np.concatenate(holds)
    assert all(x >= c[n] - 1e-6 for x, c, n in zip(flat, curves, least, strict=True))
    assert sum(kept.sum() for kept in found) == fixed + budget
    assert all(kept.any(-1).all() for kept in found)


def test_a_peaked_head_gives_no_more_than_it_may() -> None:
    """A flat head would take all that a peaked one can spare; the floor keeps it from doing so."""
    flat = np.full((1, 1, 8), 1 / 8)
    peaked = np.array([[[0.6, 0.2, 0.1, 0.04, 0.03, 0.01, 0.01, 0.01]]])
    one = np.ones(1)

    def shares(give: float) -> list[int]:
        return [int(k.sum()) for k in under_budget([flat, peaked], one, 0.5, None, give)]

    assert shares(0.0) == [4, 4]
    assert shares(0.05) == [5, 3]
    assert shares(0.2) == [6, 2]
    assert shares(0.9) == [6, 2]  # what the peaked one's second block holds is more than an eighth


def test_equals_fill_the_budget_and_no_more() -> None:
    """Where every block holds as much as every other, exactly the wanted number is kept."""
    masses = [np.full((2, 3, 4), 0.25)] * 3
    kept = list(under_budget(masses, np.full(3, 1 / 3), 0.5, give=0.4))
    assert sum(int(k.sum()) for k in kept) == 36


@given(
    parts=st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=4),
    count=st.integers(0, 40),
)
def test_the_threshold_counts(parts: list[list[int]], count: int) -> None:
    """Numbers above the threshold and so many equal to it are the ``count`` largest above 0."""
    arrays = [np.array(p, np.float32) / 7 for p in parts]
    threshold, ties = largest(lambda: iter(arrays), count)
    every = np.concatenate(arrays)
    wanted = np.sort(every[every > 0])[::-1][:count]
    above = every[every > threshold]
    found = np.sort(np.concatenate([above, np.full(ties, np.float32(threshold))]))[::-1]
    np.testing.assert_array_equal(found, wanted)


def test_text_stays_dense() -> None:
    """Rows and columns of text are kept by every rule, and count towards the density."""
    grid, block = Grid(frames=2, height=4, width=8, text=20), (16, 16)
    text = dense_text(grid, block)
    assert np.flatnonzero(text.all(0)).tolist() == [0, 1]
    weights = row_weights(grid.tokens, 16)
    assert weights.sum() == pytest.approx(1)
    assert weights[-1] == 4 / 84
    mass = np.random.default_rng(0).dirichlet(np.ones(6), (2, 6))
    made = (
        keep_rows(mass, 0.5, text),
        keep_heads(mass, weights, 0.5, text),
        block_sum(mass, weights, 0.7, text),
        *under_budget([mass], weights, 0.7, text),
    )
    assert all(kept[:, text].all() for kept in made)
    assert made[2].mean((1, 2)) == pytest.approx([25 / 36] * 2)
    assert made[3].sum() == 50


def test_bad_arguments_are_named() -> None:
    """Shares outside (0, 1] and masses with NaN say what would work."""
    mass, weights = np.full((1, 2, 2), 0.5), np.full(2, 0.5)
    for act in (
        lambda: keep_rows(mass, 0.0),
        lambda: keep_heads(mass, weights, 1.5),
        lambda: block_sum(mass, weights, -0.1),
        lambda: list(under_budget([mass], weights, 2.0)),
    ):
        with pytest.raises(InputError, match="above 0, at most 1"):
            act()
    with pytest.raises(InputError, match="give=1"):
        list(under_budget([mass], weights, 0.5, give=1))
    with pytest.raises(InputError, match="not finite"):
        keep_rows(np.full((1, 2, 2), np.nan), 0.5)
