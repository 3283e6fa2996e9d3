"""The points of a space of configurations that the static model lets through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

Params = Mapping[str, Any]
Point = tuple[tuple[str, Any], ...]

ENUMERABLE = 100_000
"""Spaces with more points than this are not written out."""


def point(params: Params) -> Point:
    """A configuration as something to look up."""
    return tuple(sorted(params.items()))


class Space:
    """Choices by name, and why a combination of them cannot run (None where it can).

    ``choices`` are those that some legal point has: the others would only mislead a search.
    """

    def __init__(
        self, choices: Mapping[str, tuple[Any, ...]], legal: Callable[[Params], str | None]
    ) -> None:
        self.choices, self._legal = dict(choices), legal
        self.size = math.prod(len(values) for values in choices.values())
        self._why: dict[Point, str | None] = {}
        self.points: tuple[Params, ...] | None = None
        """Every legal point, or None where there are too many to write out."""
        if self.size <= ENUMERABLE:
            every = itertools.product(*choices.values())
            named = (dict(zip(choices, values, strict=True)) for values in every)
            self.points = tuple(p for p in named if self.why_not(p) is None)
            self.choices = {
                name: tuple(v for v in values if any(p[name] == v for p in self.points))
                for name, values in choices.items()
            }

    def why_not(self, params: Params) -> str | None:
        """Why a configuration cannot run, or None; the model is asked once."""
        at = point(params)
        if at not in self._why:
            self._why[at] = self._legal(params)
        return self._why[at]

    @property
    def illegal(self) -> int:
        """Points that were found illegal so far."""
        return sum(reason is not None for reason in self._why.values())
