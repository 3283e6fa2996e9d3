"""What the search proposes."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.autotune.search import Listed, Space, make_search
from kdsl.autotune.search.guided import Guided
from kdsl.autotune.search.space import Params, Point, point
from kdsl.autotune.search.surrogate import Surrogate

CHOICES: dict[str, tuple[Any, ...]] = {
    "m": (16, 32, 64, 128),
    "n": (16, 32, 64, 128),
    "warps": (2, 4, 8),
    "stages": (1, 2, 3, 4, 5),
    "kind": ("a", "b"),
    "only": (7,),
}
DEFAULT = {"m": 64, "n": 64, "warps": 4, "stages": 2, "kind": "a", "only": 7}


def legal(params: Params) -> str | None:
    """Large tiles with deep pipelines do not fit."""
    return "too large" if params["m"] * params["n"] * params["stages"] > 20_000 else None


def cost(params: Params) -> float | None:
    """A valley, and a corner in which nothing compiles."""
    if params["kind"] == "b" and params["warps"] == 2:
        return None
    off = abs(math.log2(params["m"] / 128)) + abs(math.log2(params["n"] / 32))
    return 0.3 * off + 0.2 * abs(params["stages"] - 3) + 0.1 * (params["kind"] == "a") - 0.5


def guided(seed: int = 0, first: tuple[Params, ...] = (DEFAULT,)) -> Guided:
    """TPE over the space, with a prior that knows nothing."""
    return Guided(Space(CHOICES, legal), first=first, prior=lambda p: 0.0, seed=seed)


def drive(search: Any, count: int) -> list[Params]:
    """Ask and tell so often."""
    out = []
    for _ in range(count):
        params = search.ask()
        if params is None:
            break
        out.append(params)
        search.tell(params, cost(params))
    return out


def test_the_space_writes_out_what_is_legal() -> None:
    """Points are the legal ones, and what is asked about is remembered."""
    space = Space(CHOICES, legal)
    assert space.size == 480
    assert space.points is not None
    assert len(space.points) == sum(legal(p) is None for p in space.points)
    assert space.illegal == 480 - len(space.points)
    assert space.choices == CHOICES


def test_choices_that_nothing_legal_has_are_left_out() -> None:
    """An axis keeps the values of legal points, so that a search does not waste proposals."""
    space = Space(CHOICES, lambda p: "small" if p["m"] < 64 or p["kind"] == "b" else None)
    assert space.choices == {**CHOICES, "m": (64, 128), "kind": ("a",)}


def test_never_twice_and_never_illegal() -> None:
    """Over 80 proposals TPE repeats none, though it repeats itself inside, and all are legal."""
    found = drive(guided(), 80)
    assert len({point(p) for p in found}) == len(found) == 80
    assert all(legal(p) is None for p in found)


def test_illegal_points_are_told_as_broken_constraints() -> None:
    """The study learns about illegal and failed points: each is a trial with its constraint."""
    search = guided()
    drive(search, 60)
    trials = search.study.get_trials(deepcopy=False)
    broken = [t for t in trials if any(v > 0 for v in t.constraints.values())]
    refused = [t for t in broken if legal(search._decode(t.params)) is not None]
    assert refused
    assert all(t.state.is_finished() for t in trials)


def test_the_default_is_first() -> None:
    """Whatever the seed, what was given as first comes first, in order, and only once."""
    guess = {**DEFAULT, "m": 16}
    for seed in range(3):
        found = drive(guided(seed, (DEFAULT, guess, DEFAULT)), 30)
        assert found[:2] == [DEFAULT, guess]
        assert found.count(DEFAULT) == 1


def test_a_seed_gives_the_same_candidates() -> None:
    """Equal seeds agree in every proposal, other seeds do not."""
    assert drive(guided(3), 40) == drive(guided(3), 40)
    assert drive(guided(3), 40) != drive(guided(4), 40)


def test_it_ends_when_the_space_is_used_up() -> None:
    """Every legal point is proposed once, then None."""
    choices = {"m": (16, 32, 64), "kind": ("a", "b")}
    space = Space(choices, lambda p: "no" if p == {"m": 16, "kind": "b"} else None)
    search = Guided(space, first=(), prior=lambda p: 0.0, seed=0)
    found = []
    while (params := search.ask()) is not None:
        found.append(params)
        search.tell(params, float(params["m"]))
    assert sorted(map(point, found)) == sorted(map(point, space.points or ()))


def test_several_may_be_under_way() -> None:
    """Asking ahead gives other points each time, and they may be told in any order."""
    search = guided()
    ahead = [search.ask() for _ in range(5)]
    assert len({point(p) for p in ahead if p}) == 5
    for params in reversed(ahead):
        assert params is not None
        search.tell(params, cost(params))
    assert len(drive(search, 20)) == 20


def test_it_goes_on_from_what_is_known() -> None:
    """A study rebuilt from known results proposes none of them, and its next proposals are better
    than those of a fresh one, over four seeds."""

    def mean(found: list[Params]) -> float:
        values = [c for p in found if (c := cost(p)) is not None]
        return sum(values) / len(values)

    known = drive(guided(), 40)
    rebuilt = fresh = 0.0
    for seed in range(1, 5):
        search = guided(seed)
        for params in known:
            search.tell(params, cost(params))
        later = drive(search, 10)
        assert not {point(p) for p in known} & {point(p) for p in later}
        rebuilt += mean(later) / 4
        fresh += mean(drive(guided(seed), 10)) / 4
    assert rebuilt < fresh - 0.1


def test_rows_of_another_space_do_no_harm() -> None:
    """A configuration with other settings than this space's is taken note of and no more."""
    search = guided()
    search.tell({"m": 64}, 0.0)
    search.tell({**DEFAULT, "m": 1}, 0.0)
    assert len(drive(search, 20)) == 20


def test_it_finds_the_valley() -> None:
    """In 40 tries TPE comes to within 25 % of the best time, for four of 5 seeds."""
    best = min(c for p in Space(CHOICES, legal).points or () if (c := cost(p)) is not None)
    reached = 0
    for seed in range(5):
        costs = [c for p in drive(guided(seed), 40) if (c := cost(p)) is not None]
        reached += min(costs) <= best + math.log(1.25)
    assert reached >= 4


def test_small_spaces_are_listed() -> None:
    """Where the budget covers the legal space it is gone through: first, then by the prior."""
    space = Space(CHOICES, legal)
    limit = len(space.points or ())
    listed = make_search(space, first=(DEFAULT,), prior=lambda p: p["stages"], limit=limit, seed=0)
    assert isinstance(listed, Listed)
    found = drive(listed, 1000)
    assert found[0] == DEFAULT
    assert len({point(p) for p in found}) == len(found) == limit
    stages = [p["stages"] for p in found[1:]]
    assert stages == sorted(stages)
    for wanted in (limit - 1, None):
        other = make_search(space, first=(), prior=lambda p: 0.0, limit=wanted, seed=0)
        assert isinstance(other, Guided)


def test_an_illegal_default_is_left_out() -> None:
    """What cannot run is not proposed, even if it was to be first."""
    bad = {**DEFAULT, "m": 128, "n": 128, "stages": 5}
    assert legal(bad)
    search = make_search(
        Space(CHOICES, legal), first=(bad, DEFAULT), prior=lambda p: 0.0, limit=10, seed=0
    )
    assert drive(search, 1) == [DEFAULT]


@given(st.sets(st.integers(0, 9)))
def test_a_list_skips_what_is_known(known: set[int]) -> None:
    """Told points are not proposed, the others are, in order."""
    search = Listed([{"x": i} for i in range(10)])
    for i in known:
        search.tell({"x": i}, None)
    found = [p["x"] for p in iter(search.ask, None)]
    assert found == [i for i in range(10) if i not in known]


@pytest.mark.parametrize("size", [400, 200_000])
def test_spaces_too_large_to_write_out(size: int) -> None:
    """Beyond the limit points are not listed, and proposals still are legal and never repeat."""
    space = Space({"x": tuple(range(size)), "y": (0, 1)}, lambda p: "odd" if p["x"] % 2 else None)
    assert (space.points is None) == (size > 100_000)
    search = Guided(space, first=(), prior=lambda p: 0.0, seed=0)
    found = []
    for _ in range(30):
        params = search.ask()
        assert params is not None
        search.tell(params, float(params["x"]))
        found.append(params)
    assert len({point(p) for p in found}) == 30
    assert all(p["x"] % 2 == 0 for p in found)


CONDITIONAL: dict[str, tuple[Any, ...]] = {
    "kind": ("plain", "fancy"),
    "m": (16, 32, 64, 128),
    "n": (16, 32, 64, 128),
    "stages": (1, 2, 3, 4),
    "overlap": (False, True),
    "workers": (0, 1, 2, 3),
    "extra": (0, 1),
}


def sensible(params: Params) -> str | None:
    """Settings of the fancy kind are fixed for the plain one, and the fancy one wants tiles."""
    if params["kind"] == "plain":
        fixed = (params["overlap"], params["workers"], params["extra"]) == (False, 0, 0)
        return None if fixed else "settings of the other kind"
    return "too small" if min(params["m"], params["n"]) < 64 else None


def valley(params: Params) -> float:
    """Main effects, and pairs that matter: the best is fancy, with some work to find it."""
    off = abs(math.log2(params["m"] / 128)) + abs(math.log2(params["n"] / 64))
    out = 0.2 * off + 0.08 * abs(params["stages"] - 3)
    if params["kind"] == "fancy":
        out -= 0.3
        out += 0.1 * abs(params["workers"] - 2) + 0.12 * (params["overlap"] == (params["n"] == 64))
        out += 0.06 * (params["extra"] == (params["stages"] > 2))
    return out


def test_conditional_spaces_are_searched() -> None:
    """Where most combinations are illegal, since settings belong to one kind of kernel, 40 tries of
    a few hundred legal points come to within 5 % for four of 5 seeds."""
    space = Space(CONDITIONAL, sensible)
    assert space.points is not None
    assert len(space.points) < space.size / 6
    best = min(map(valley, space.points))
    default = {"kind": "plain", "m": 64, "n": 64, "stages": 2}
    default |= {"overlap": False, "workers": 0, "extra": 0}
    reached = 0
    for seed in range(5):
        search = Guided(space, first=(default,), prior=lambda p: 1.0, seed=seed)
        costs = []
        for _ in range(40):
            params = search.ask()
            assert params is not None
            assert sensible(params) is None
            costs.append(valley(params))
            search.tell(params, costs[-1])
        reached += min(costs) <= best + math.log(1.05)
    assert reached >= 4


def test_a_model_learns_settings_from_few() -> None:
    """Told ten random points of an additive landscape, the model's next picks reach the optimum
    within six; points under way are not proposed again, and failures are left out."""
    space = Space(CONDITIONAL, sensible)
    assert space.points is not None
    model = Surrogate(space.points, space.choices, lambda p: 1.0)
    chance = random.Random(0)
    told: dict[Point, float | None] = {}
    for params in chance.sample(space.points, 10):
        told[point(params)] = valley(params)
    failed = model.pick(told, [])
    assert failed is not None
    told[point(failed)] = None
    waiting: list[Point] = []
    for _ in range(3):
        picked = model.pick(told, waiting)
        assert picked is not None
        assert point(picked) not in told
        assert point(picked) not in waiting
        waiting.append(point(picked))
    for _ in range(12):
        picked = model.pick(told, [])
        assert picked is not None
        told[point(picked)] = valley(picked)
    best = min(valley(p) for p in space.points if p != failed)
    assert min(v for v in told.values() if v is not None) <= best + 0.1


def test_a_model_knows_when_it_knows_nothing() -> None:
    """With few sound points, or none left, there is no pick; a constant prior does no harm."""
    points = [{"x": n} for n in range(8)]
    model = Surrogate(points, {"x": tuple(range(8))}, lambda p: 3.0)
    told: dict[Point, float | None] = {point(p): None for p in points[:6]}
    assert model.pick(told, []) is None
    told |= {point(p): 0.1 * p["x"] for p in points[:5]}
    assert model.pick(told, []) in points[6:]
    assert model.pick(told, [point(p) for p in points[6:]]) is None


def test_a_good_prior_is_used_and_a_bad_one_survived() -> None:
    """With a guess that ranks the points the optimum comes early; with one that is upside down it
    is still found."""
    space = Space(CONDITIONAL, sensible)
    assert space.points is not None
    best = min(map(valley, space.points))
    for prior, within in ((valley, 20), (lambda p: -valley(p), 40)):
        search = Guided(space, first=(), prior=lambda p, f=prior: math.exp(f(p)), seed=1)
        costs = []
        for _ in range(within):
            params = search.ask()
            assert params is not None
            costs.append(valley(params))
            search.tell(params, costs[-1])
        assert min(costs) <= best + math.log(1.1)
