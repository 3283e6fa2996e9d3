"""Values of the interval reader: ranges and linear forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdsl.expr.nodes import Expr

Where = Literal["c", "q", "k", "p"]
"""What a value depends on: nothing, query boxes, key boxes, pairs."""


@dataclass(frozen=True)
class Range:
    """An integer over boxes, or a truth value with ``low`` = must and ``high`` = may.

    ``names`` are the box variables it depends on.  ``tight``: over a tight box, both ends are
    attained.  ``dense``: every integer between them too.  For truth values the two flags say
    whether *may* and *must* are exact.
    """

    where: Where
    low: Any
    high: Any
    names: frozenset[str]
    tight: bool
    dense: bool


@dataclass(frozen=True)
class Linear:
    """``constant + sum(coefficient * atom)``, with what is equal on both sides cancelled."""

    constant: int
    terms: Mapping[str, tuple[int, Expr]]


def combine(a: Linear, b: Linear, factor: int) -> Linear:
    """``a + factor * b``, terms that cancel dropped."""
    terms = dict(a.terms)
    for key, (c, node) in b.terms.items():
        total = terms.get(key, (0, node))[0] + factor * c
        if total:
            terms[key] = (total, node)
        else:
            terms.pop(key, None)
    return Linear(a.constant + factor * b.constant, terms)
