"""Searches over samples: planted orders are found, means are means, plans say what was found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import orders
from kdsl.calibrate import (
    MassRecord,
    OrderSearch,
    Scores,
    Settings,
    axis_orders,
    candidates,
    cube_orders,
    held,
    make_plan,
    output_error,
    under_budget,
    within_error,
)
from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.runtime.statistics import block_statistics

GRID = Grid(frames=4, height=8, width=8)
BLOCK = (16, 16)


def planted(grid: Grid, near: tuple[float, ...], seed: int, heads: int = 1) -> tuple[Any, Any, Any]:
    """q, k, v whose scores fall with the distance along each axis, by ``near`` a token squared."""
    rng = np.random.default_rng(seed)
    at = grid.coordinates().astype(np.float64)
    parts = [np.sqrt(2 * n) * x for n, x in zip(near, at, strict=True)]
    one = np.ones(grid.tokens)
    # -(a - b)^2 = 2ab - a^2 - b^2: a product of (a, 1) and (2b, -b^2), and what no softmax sees.
    q = np.stack([*parts, one], 1)
    k = np.stack([*parts, -sum(p * p for p in parts) / 2], 1)
    wide = 16 - q.shape[1]
    noise = 0.3 * rng.standard_normal((2, heads, grid.tokens, wide))
    q, k = (
        np.concatenate([np.broadcast_to(x, (heads, *x.shape)), n], -1)
        for x, n in zip((2 * q, 2 * k), noise, strict=True)
    )
    v = rng.standard_normal((1, heads, grid.tokens, 16))
    return q[None].astype(np.float32), k[None].astype(np.float32), v.astype(np.float32)


def joined(seed: int) -> tuple[Any, Any, Any]:
    """Three heads: near in space, near in the frame's rows and time, near in one frame."""
    nears = ((0.0, 2.0, 2.0), (0.5, 2.0, 0.0), (8.0, 0.02, 0.02))
    made = [planted(GRID, near, seed + i) for i, near in enumerate(nears)]
    return tuple(np.concatenate(x, 1) for x in zip(*made, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("rule", ["mass", "density", "paro"])
def test_planted_orders_are_found(rule: str) -> None:
    """Heads that are local along some axes get orders that keep those together, by every rule."""
    search = OrderSearch(GRID, 2, axis_orders(GRID), Settings(block=BLOCK, every=2, shares=(0.2,)))
    for seed in (0, 10):
        for layer in range(2):
            q, k, _ = joined(seed)
            search.observe(layer, q[:, :: 1 - 2 * layer], k[:, :: 1 - 2 * layer])
    names = [[orders.name_of(o) for o in layer] for layer in search.choose(rule)]
    space, rows, frame = names[0]
    assert space in ("HWF", "WHF")
    assert rows in ("HFW", "HWF")
    assert frame in ("FHW", "FWH")
    assert names[1] == names[0][::-1]


def test_cubes_win_where_all_axes_are_near() -> None:
    """A head local in all three axes keeps more in cubes than in any nesting of the axes."""
    grid = Grid(frames=8, height=8, width=8)
    search = OrderSearch(grid, 1, candidates(grid, 64), Settings(every=1, shares=(0.3,)))
    for seed in (0, 1):
        q, k, _ = planted(grid, (0.3, 0.3, 0.3), seed)
        search.observe(0, q, k)
    ((best,),) = search.choose()
    assert isinstance(best, orders.Cubes)
    mass = search.scores(0).mass[0, :, 0]
    assert mass.max() > mass[:6].max() + 0.01


def test_mass_is_judged_by_the_samples_before() -> None:
    """Heavy blocks of one sample do not count for another: a mask is made before it is used."""
    grid = Grid(64)
    settings = Settings(block=BLOCK, every=1, shares=(0.25,))
    search = OrderSearch(grid, 1, [orders.identity(grid)], settings)
    for turn in (0, 1):
        # Queries look half a sequence further in the second sample.
        k = np.zeros((1, 1, 64, 16), np.float32)
        k[0, 0, np.arange(64), np.arange(64) // 4] = 40
        search.observe(0, np.roll(k, 32 * turn, 2), k)
        own = search.seen[0][turn].mass[0, 0, 0]
        assert own == pytest.approx(1 - turn, abs=1e-3)
    assert search.scores(0).mass[0, 0, 0] == pytest.approx(0, abs=1e-3)


@given(
    sparse=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    rough=st.lists(st.floats(1, 500), min_size=6, max_size=6),
    better=st.integers(0, 5),
    alpha=st.floats(0, 1),
)
def test_more_sparse_blocks_never_lose_a_head(
    sparse: list[float], rough: list[float], better: int, alpha: float
) -> None:
    """The mended sign: the order with most sparse blocks and least incoherence is picked."""
    sparse[better], rough[better] = 1.0, 0.5
    two = np.array([sparse, rough])[:, :, None]
    scores = Scores(two[0], two[0][None], two[0], two[1])
    points = scores.paro(alpha)[:, 0]
    assert points[better] == points.min()
    if 0.01 < alpha < 0.99:
        assert scores.choose("paro", alpha=alpha)[0] == better


def test_paro_score_is_its_formula() -> None:
    """Both metrics over their sums across candidates, weighted by alpha; M_sparse from 1."""
    sparse, rough = np.array([[0.5], [0.75]]), np.array([[30.0], [10.0]])
    scores = Scores(sparse, sparse[None], sparse, rough)
    np.testing.assert_allclose(
        scores.paro(0.25)[:, 0], [0.25 * 2 / 3 + 0.75 * 0.75, 0.25 / 3 + 0.75 * 0.25]
    )
    np.testing.assert_allclose(scores.paro(1.0)[:, 0], [2 / 3, 1 / 3])


def test_among_equals_the_first_is_chosen() -> None:
    """A tie goes to the order named first, so a head that gains nothing stays where it is."""
    same = np.full((6, 1), 0.5)
    scores = Scores(same, same[None], same, same)
    assert [scores.choose(r)[0] for r in ("mass", "density", "paro")] == [0, 0, 0]


def test_record_is_the_mean_over_samples(tmp_path: Path) -> None:
    """Masses by range of steps and layer, in memory and in files, with batches as samples."""
    chosen = [[orders.axes(GRID, a) for a in ("HWF", "FHW", "WFH")] for _ in range(2)]
    steps = ((0, 0), (1, 3))
    held_, filed = (
        MassRecord(GRID, chosen, steps, BLOCK, folder=folder) for folder in (None, tmp_path)
    )
    order = orders.per_head(chosen[0])
    wanted: dict[tuple[int, int], list[np.ndarray]] = {}
    for step, layer in ((0, 0), (0, 1), (1, 0), (1, 1), (3, 0), (3, 1)):
        q, k, _ = (np.concatenate([a, b]) for a, b in zip(joined(step), joined(9), strict=True))
        for record in (held_, filed):
            record.observe(layer, step, q, k)
        mass = block_statistics(q, k, order, block=BLOCK).mass
        wanted.setdefault((min(step, 1), layer), []).extend(mass)
    assert len(held_) == 4
    for (number, layer), masses in wanted.items():
        mean = np.mean(masses, axis=0)
        np.testing.assert_allclose(held_.mass(number, layer), mean, atol=1e-6)
        np.testing.assert_array_equal(filed.mass(number, layer), held_.mass(number, layer))
        np.testing.assert_array_equal(held_[2 * number + layer], held_.mass(number, layer))
    assert len(list(tmp_path.iterdir())) == 4
    assert len(list(held_)) == 4


def test_error_stays_inside_the_budget() -> None:
    """Each sample, under masks from the others, stays below margin times budget in every head."""
    samples = [joined(seed) for seed in (0, 10, 20)]
    order = orders.per_head([orders.axes(GRID, a) for a in ("HWF", "HFW", "FHW")])
    kept, errors = within_error(samples, order, 0.1, block=BLOCK, margin=0.9)
    assert (errors <= 0.09).all()
    assert (errors[:2] > 0.05).all()  # the third is all but one frame
    assert (kept.mean((1, 2)) < 0.75).all()
    tight, small = within_error(samples, order, 0.02, block=BLOCK)
    assert (tight.sum((1, 2)) > kept.sum((1, 2)))[:2].all()
    assert (small <= 0.018).all()
    for q, k, v in (joined(30), joined(40)):
        assert (output_error(q, k, v, order, kept, block=BLOCK) <= 0.1).all()


def test_samples_are_judged_under_the_others_masks() -> None:
    """Heavy blocks that change between samples cost density: each one's own mask would do."""
    grid = Grid(64)
    k = np.zeros((1, 1, 64, 16), np.float32)
    k[0, 0, np.arange(64), np.arange(64) // 4] = 40
    v = np.random.default_rng(0).standard_normal((1, 1, 64, 16)).astype(np.float32)
    one, other = (k, k, v), (np.roll(k, 32, 2), k, v)
    order = orders.identity(grid)
    alone, _ = within_error([one], order, 0.1, block=BLOCK)
    assert alone.sum() == 4
    both, errors = within_error([one, other], order, 0.1, block=BLOCK)
    assert both.all()
    assert (errors == 0).all()


def test_budgets_that_nothing_meets_stay_dense() -> None:
    """Where even the last rung is off by more, every block is kept and the error is 0."""
    q, k, v = joined(0)
    flat = np.zeros_like(q)
    order = orders.identity(GRID)
    kept, errors = within_error([(flat, k, v), (flat, k, v)], order, 1e-9, block=BLOCK)
    assert kept.all()
    assert (errors == 0).all()
    kept, errors = within_error([(q, k, v)], order, 0.2, block=BLOCK)
    assert (errors <= 0.18).all()
    assert not kept.all()


def test_candidates() -> None:
    """Six nestings, the model's first; cubes of a block's size that move something."""
    six = [orders.name_of(o) for o in axis_orders(GRID)]
    assert six[0] == "FHW"
    assert len(set(six)) == math.factorial(3)
    cubes = [o.cube for o in cube_orders(GRID, 64)]  # type: ignore[attr-defined]
    assert cubes[0] == (4, 4, 4)
    assert all(math.prod(c) == 64 for c in cubes)
    assert cube_orders(Grid(100), 64) == ()
    assert len(axis_orders(Grid(height=4, width=4))) == 2


def test_a_plan_says_what_was_found() -> None:
    """Orders, masks, scores and pictures of a search are in the plan, and can be read and drawn."""
    search = OrderSearch(GRID, 1, settings=Settings(block=BLOCK, every=2, shares=(0.3, 0.5)))
    samples = [joined(seed) for seed in (0, 10)]
    for q, k, _ in samples:
        search.observe(0, q, k)
    record = MassRecord(GRID, search.choose(), block=BLOCK)
    for q, k, _ in samples:
        record.observe(0, 0, q, k)
    maps = list(under_budget(record, record.weights, 0.3, record.text))
    plan = make_plan("m", record, maps, search=search, thresholds={"density": 0.3})
    np.testing.assert_array_equal(plan.kept(0, 0), maps[0])
    assert plan.density() == pytest.approx(0.3, abs=1e-3)
    assert held(record[0], plan.kept(0, 0), record.weights).min() > 0.8
    assert plan.plan.orders[: len(search.names)] == search.names
    assert plan.order(0) == orders.per_head(search.choose()[0])
    assert plan.plan["score.mass"].shape == (1, 3, len(search.names))
    text, picture = plan.show(0, 1), plan.svg(0, 1)
    assert all(name in text and name in picture for name in search.names)
    assert plan.plan.provenance["settings"]["shares"] == [0.3, 0.5]
    # 16 x 16 blocks of 16 tokens, one row in two: a cell is a block, full or empty.
    assert set(np.unique(plan.plan["preview"])) == {0, 255}


def test_bad_use_is_named() -> None:
    """Samples that are missing or differ, foreign candidates, steps and settings out of range."""
    search = OrderSearch(GRID, 1, settings=Settings(block=BLOCK))
    with pytest.raises(InputError, match="no sample of layer 0"):
        search.scores(0)
    q, k, v = joined(0)
    search.observe(0, q, k)
    with pytest.raises(InputError, match="2 heads, the samples before had 3"):
        search.observe(0, q[:, :2], k[:, :2])
    with pytest.raises(InputError, match="orders over the search's grid"):
        OrderSearch(GRID, 1, [orders.identity(Grid(5))])
    with pytest.raises(InputError, match='"mass", "density" or "paro"'):
        search.choose("best")
    with pytest.raises(InputError, match="alpha=2"):
        search.choose("paro", alpha=2)
    texted = Grid(8, text=4)
    moved = orders.table(np.arange(12)[::-1], texted)
    for act in (lambda: OrderSearch(texted, 1, [moved]), lambda: MassRecord(texted, [[moved]])):
        with pytest.raises(InputError, match="an order moves text"):
            act()
    record = MassRecord(GRID, [[orders.identity(GRID)] * 3], ((0, 1),), BLOCK)
    with pytest.raises(InputError, match="step 2"):
        record.observe(0, 2, q, k)
    with pytest.raises(InputError, match="no sample of layer 0"):
        record.mass(0, 0)
    with pytest.raises(InputError, match="budget=0"):
        within_error([(q, k, v)], orders.identity(GRID), 0, block=BLOCK)
    wrong: tuple[dict[str, Any], ...] = ({"keep": 0.0}, {"sigma": 1.5}, {"shares": ()}, {"eps": 0})
    for fields in wrong:
        with pytest.raises(InputError, match=r"\(0, 1\]"):
            Settings(**fields)
    with pytest.raises(InputError, match="at least 1"):
        Settings(block=(0, 64))
