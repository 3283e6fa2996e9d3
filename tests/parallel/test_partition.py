"""Partitioners: against exact optima, proven bounds and ratios."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.errors import InputError
from kdsl.parallel import partition

WHOLE: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "contiguous": partition.contiguous,
    "snake": partition.snake,
    "lpt": partition.lpt,
    "lpt equal": lambda w, p: partition.lpt(w, p, -(-len(w) // p)),
    "swap": partition.lpt_swap,
    "swap equal": lambda w, p: partition.lpt_swap(w, p, -(-len(w) // p)),
    "kk": partition.karmarkar_karp,
}
weights = st.lists(st.integers(0, 1000), min_size=1, max_size=40).map(np.array)
few = st.lists(st.integers(0, 60), min_size=1, max_size=12).map(np.array)


def exact(items: np.ndarray, parts: int) -> int:
    """The least possible largest sum: depth-first over items in falling order."""
    order = sorted(items.tolist(), reverse=True)
    best = int(partition.sums(items, partition.lpt_swap(items, parts), parts).max())
    least = partition.lower_bound(items, parts)
    loads = [0] * parts

    def place(i: int) -> None:
        nonlocal best
        if best == least:
            return
        if i == len(order):
            best = min(best, max(loads))
            return
        for p in range(parts):
            if loads[p] + order[i] < best and loads[p] not in loads[:p]:
                loads[p] += order[i]
                place(i + 1)
                loads[p] -= order[i]

    place(0)
    return best


def cut_exactly(items: np.ndarray, parts: int) -> int:
    """The least possible largest sum of runs, by dynamic programming."""
    prefix = np.concatenate([[0], np.cumsum(items)])
    best = prefix.copy()
    for _ in range(parts - 1):
        best = np.array(
            [
                min(max(best[j], prefix[i] - prefix[j]) for j in range(i + 1))
                for i in range(len(best))
            ]
        )
    return int(best[-1])


@settings(max_examples=60)
@given(weights, st.integers(1, 16), st.sampled_from(sorted(WHOLE)))
def test_every_item_has_one_part(items: np.ndarray, parts: int, name: str) -> None:
    """Each item has a part, sums are conserved, no largest sum is below the bound, equal counts
    hold where promised, and the outcome does not depend on the dtype or memory layout."""
    owner = WHOLE[name](items, parts)
    loads = partition.sums(items, owner, parts)
    assert owner.shape == items.shape
    assert ((owner >= 0) & (owner < parts)).all()
    assert loads.sum() == items.sum()
    assert loads.max() >= partition.lower_bound(items, parts)
    if name.endswith("equal") or name in ("contiguous", "snake"):
        assert np.bincount(owner, minlength=parts).max() <= -(-len(items) // parts)
    strided = np.repeat(items.astype(np.int32), 3)[::3]
    assert (WHOLE[name](strided, parts) == owner).all()


@settings(max_examples=40, deadline=None)
@given(few, st.integers(2, 4))
def test_against_exact_optima(items: np.ndarray, parts: int) -> None:
    """Up to 12 items the bound is at most the optimum, LPT within 4/3 - 1/(3 parts) of it, swaps
    never worse than LPT, and cuts are the best runs there are."""
    best = exact(items, parts)
    loads = {
        name: int(partition.sums(items, WHOLE[name](items, parts), parts).max()) for name in WHOLE
    }
    assert partition.lower_bound(items, parts) <= best <= min(loads.values())
    # Graham's ratio, in whole numbers.
    assert loads["lpt"] * 3 * parts <= best * (4 * parts - 1)
    assert loads["swap"] <= loads["lpt"]
    assert loads["swap equal"] <= loads["lpt equal"]
    at = partition.cuts(items, parts)
    assert max(items[a:b].sum() for a, b in itertools.pairwise(at)) == cut_exactly(items, parts)


def test_equal_counts_have_a_bound_of_their_own() -> None:
    """With every part full the heaviest item meets the lightest others: a bound that exact search
    over equal counts confirms."""
    items = np.array([9, 5, 5, 4, 3, 1])
    best = min(
        max(items[list(a)].sum(), items.sum() - items[list(a)].sum())
        for a in itertools.combinations(range(6), 3)
    )
    assert partition.lower_bound(items, 2, 3) <= best
    assert partition.lower_bound(np.array([9, 1, 1, 1]), 2, 2) == 10


@settings(max_examples=60)
@given(weights, st.integers(1, 20), st.floats(0, 0.2), st.data())
def test_cuts_near_a_wish(items: np.ndarray, parts: int, slack: float, data: st.DataObject) -> None:
    """Cuts ascend, cover everything, stay within the slack of the best, and are where they were
    wished for if that is within it."""
    best = max(items[a:b].sum() for a, b in itertools.pairwise(partition.cuts(items, parts)))
    wish = sorted(
        data.draw(st.lists(st.integers(0, len(items)), min_size=parts - 1, max_size=parts - 1))
    )
    near = (0, *wish, len(items))
    at = partition.cuts(items, parts, near, slack)
    assert (at[0], at[-1], len(at)) == (0, len(items), parts + 1)
    assert list(at) == sorted(at)
    most = best + int(best * slack)
    assert max(items[a:b].sum() for a, b in itertools.pairwise(at)) <= most
    if max(items[a:b].sum() for a, b in itertools.pairwise(near)) <= most:
        assert at == near


@given(weights, st.integers(1, 70))
def test_wrap_around(items: np.ndarray, parts: int) -> None:
    """McNaughton's cuts stay within the mean and one item."""
    at = partition.wrap(items, parts)
    assert (at[0], at[-1], len(at)) == (0, len(items), parts + 1)
    assert max(items[a:b].sum() for a, b in itertools.pairwise(at)) * parts <= (
        items.sum() + parts * items.max()
    )


def test_known_partitions() -> None:
    """Textbook cases: LPT's worst one, differencing that finds it, the snake's order."""
    items = np.array([3, 3, 2, 2, 2])
    assert partition.sums(items, partition.lpt(items, 2), 2).tolist() == [7, 5]
    assert partition.sums(items, partition.lpt_swap(items, 2), 2).max() == 6
    five = np.array([8, 7, 6, 5, 4])
    assert partition.sums(five, partition.karmarkar_karp(five, 2), 2).max() == 16
    assert partition.snake(np.array([6, 5, 4, 3, 2, 1]), 3).tolist() == [0, 1, 2, 2, 1, 0]
    assert partition.contiguous(np.ones(5, int), 3).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("bad", [[1.5, 2.0], [-1, 2], [[1, 2]]])
def test_bad_weights(bad: list[float]) -> None:
    """Floats (whose sums depend on the order), negative weights and matrices are refused."""
    with pytest.raises(InputError):
        partition.lpt(np.array(bad), 2)
    with pytest.raises(InputError):
        partition.lpt(np.array([1, 2, 3]), 2, cap=1)
