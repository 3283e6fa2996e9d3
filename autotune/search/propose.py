"""The search behind one interface: a list in a good order, or Optuna."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kdsl.autotune.search.space import Params, Point, Space, point
from kdsl.errors import ConfigError


class Search(Protocol):
    """Says what to try next, and is told what came of it.

    Never proposes an illegal point, nor one that it was told about or proposed before.
    """

    ahead: int
    """Candidates to ask for before their predecessors' results are known.

    The same on every machine, whatever the number of compiling processes, so that a seed gives the
    same candidates everywhere.
    """

    def ask(self) -> Params | None:
        """A configuration to try, or None when there is nothing left."""

    def tell(self, params: Params, cost: float | None) -> None:
        """What came of one, proposed here or known before: lower is better, None a failure."""


def make_search(
    space: Space,
    *,
    first: Sequence[Params],
    prior: Callable[[Params], float],
    limit: int | None,
    seed: int,
) -> Search:
    """A list where the whole legal space is within ``limit``, otherwise Optuna's TPE.

    ``first`` are tried first, in this order; ``prior`` is a guess at the cost.
    """
    legal_first = [p for p in first if space.why_not(p) is None]
    if space.points is not None and limit is not None and len(space.points) <= limit:
        return Listed([*legal_first, *sorted(space.points, key=lambda p: (prior(p), point(p)))])
    from kdsl.autotune.search.guided import Guided

    return Guided(space, first=legal_first, prior=prior, seed=seed)


def make_recorder(space: Space, *, default: Params, limit: int | None, seed: int) -> Search:
    """The default, then all legal points in a random order, or ``limit`` in all.

    Cut off anywhere, what was tried is a fair sample.  ConfigError where there are too many to
    write out and no limit.
    """
    chance = random.Random(seed)
    points = None if space.points is None else list(space.points)
    if points is None:
        if limit is None:
            raise ConfigError(
                f"a space of {space.size} points cannot be recorded whole", hint="--budget 1000"
            )
        points = _drawn(space, limit, chance)
    chance.shuffle(points)
    first = [default] if space.why_not(default) is None else []
    return Listed([*first, *points])


def _drawn(space: Space, count: int, chance: random.Random) -> list[Params]:
    """So many legal points, or as many as are found in fifty times as many draws."""
    found: dict[Point, Params] = {}
    for _ in range(50 * count):
        params = {n: chance.choice(values) for n, values in space.choices.items()}
        if space.why_not(params) is None:
            found.setdefault(point(params), params)
        if len(found) == count:
            break
    return list(found.values())


class Listed:
    """Tries a list from its beginning."""

    ahead = 64

    def __init__(self, candidates: Iterable[Params]) -> None:
        self._waiting: dict[Point, Params] = {}
        for params in candidates:
            self._waiting.setdefault(point(params), params)
        self._order = list(reversed(self._waiting))

    def ask(self) -> Params | None:
        """The next one that is not known."""
        while self._order:
            params = self._waiting.pop(self._order.pop(), None)
            if params is not None:
                return params
        return None

    def tell(self, params: Params, cost: float | None) -> None:
        """Cross it off."""
        del cost
        self._waiting.pop(point(params), None)
