"""Decisions that lose least on recordings: classes by what must be equal, few splits within.

A leaf holds the one configuration whose worst time over the best, among its recordings, is least.
A split is made where it lowers the mean loss by `WORTH`, at most `DEPTH` deep: rules that follow
every row would follow its noise.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsl.autotune.recordings import Recording
from kdsl.autotune.search.space import Point, point

Facts = Mapping[str, Any]

EQUAL = ("cc", "dtype", "head_dim", "block_q", "block_k", "in_order")
"""Facts that must be equal: rules speak of nothing else than what was measured."""
RANGES: Mapping[str, tuple[float, bool]] = {
    "queries": (2.0, True),
    "keys": (2.0, True),
    "density": (1.5, True),
    "partial_share": (0.1, False),
}
"""Facts that bound a rule's domain, and how far beyond the measured ones it reaches: a factor, or a
difference."""
SPLITS = ("density", "partial_share", "row_spread", "run_length", "queries")
DEPTH, WORTH, EQUALLY_GOOD = 2, 0.01, 0.005


@dataclass(frozen=True)
class Leaf:
    """One configuration. Losses are times over the best of each recording."""

    params: Mapping[str, Any]
    losses: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Itself."""
        return (self,)


@dataclass(frozen=True)
class Branch:
    """``below`` where the fact is less than the threshold, else ``above``."""

    fact: str
    threshold: float
    below: Leaf | Branch
    above: Leaf | Branch

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """All of both sides."""
        return (*self.below.leaves, *self.above.leaves)


@dataclass(frozen=True)
class Rule:
    """Decisions for one class: facts that must be equal, ranges of others."""

    equal: Facts
    ranges: Mapping[str, tuple[float, float]]
    tree: Leaf | Branch
    written: tuple[float, ...]
    """Losses of the hand-written rule on the same recordings, in the order of the leaves."""

    @property
    def losses(self) -> tuple[float, ...]:
        """Of every recording."""
        return tuple(loss for leaf in self.tree.leaves for loss in leaf.losses)


@dataclass(frozen=True)
class Example:
    """A recording as rules see it: facts, and losses of what is legal and measured."""

    name: str
    facts: Facts
    losses: Mapping[Point, float]
    written: float


def rules(found: Iterable[Recording]) -> list[Rule]:
    """A rule for each class of recordings, in a fixed order."""
    classes: defaultdict[tuple[tuple[str, Any], ...], list[Example]] = defaultdict(list)
    for recording in found:
        example = _example(recording)
        equal = tuple((name, example.facts[name]) for name in EQUAL)
        classes[equal].append(example)
    made = [_rule(dict(equal), examples) for equal, examples in sorted(classes.items(), key=repr)]
    return [rule for rule in made if rule is not None]


def _example(recording: Recording) -> Example:
    tunable, target = recording.job.tunable, recording.target
    losses = {
        at: us / recording.best_us
        for at, us in recording.times.items()
        if tunable.legal(dict(at), target) is None
    }
    written = losses.get(point(tunable.written_default(target)), math.inf)
    return Example(recording.name, tunable.facts(target), losses, written)


def _rule(equal: Facts, examples: Sequence[Example]) -> Rule | None:
    tree = _grow(sorted(examples, key=lambda e: (e.name, repr(sorted(e.facts.items())))), DEPTH)
    if tree is None:
        return None
    ranges = {
        name: _range([float(e.facts[name]) for e in examples], *slack)
        for name, slack in RANGES.items()
        if all(name in e.facts for e in examples)
    }
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    for example in examples:
        by_name[example.name].append(example.written)
    order = [name for leaf in tree.leaves for name in leaf.names]
    return Rule(equal, ranges, tree, tuple(by_name[name].pop(0) for name in order))


def _range(values: Sequence[float], slack: float, factor: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low / slack, high * slack) if factor else (low - slack, high + slack)


def _grow(examples: Sequence[Example], depth: int) -> Leaf | Branch | None:
    leaf = _leaf(examples)
    if not depth or len(examples) < 2:
        return leaf
    best: Leaf | Branch | None = leaf
    bar = _cost(leaf) - WORTH if leaf is not None else math.inf
    for fact, threshold in _thresholds(examples):
        sides = [
            [e for e in examples if (e.facts[fact] < threshold) == below] for below in (True, False)
        ]
        below, above = (_grow(side, depth - 1) for side in sides)
        if below is None or above is None:
            continue
        branch = Branch(fact, threshold, below, above)
        if _cost(branch) < bar - 1e-12:
            best, bar = branch, _cost(branch)
    return best


def _thresholds(examples: Sequence[Example]) -> Iterable[tuple[str, float]]:
    """Between neighbouring values, to three digits."""
    for fact in SPLITS:
        if not all(fact in e.facts for e in examples):
            continue
        values = sorted({float(e.facts[fact]) for e in examples})
        for low, high in zip(values, values[1:], strict=False):  # noqa: RUF007
            middle = float(f"{math.sqrt(low * high) if low > 0 else (low + high) / 2:.3g}")
            if low < middle <= high:
                yield fact, middle


def _leaf(examples: Sequence[Example]) -> Leaf | None:
    """The configuration that loses least at worst, and of those about as good, in the mean."""
    shared = set.intersection(*(set(e.losses) for e in examples))
    if not shared:
        return None

    def worst(at: Point) -> float:
        return max(e.losses[at] for e in examples)

    bar = min(map(worst, shared)) * (1 + EQUALLY_GOOD)
    close = [at for at in shared if worst(at) <= bar]
    chosen = min(close, key=lambda at: (_mean(e.losses[at] for e in examples), json.dumps(at)))
    losses = tuple(e.losses[chosen] for e in examples)
    return Leaf(dict(chosen), losses, tuple(e.name for e in examples))


def _cost(tree: Leaf | Branch | None) -> float:
    """Mean logarithm of the losses; of trees that lose alike the one with fewest leaves."""
    if tree is None:
        return math.inf
    losses = [loss for leaf in tree.leaves for loss in leaf.losses]
    return math.log(_mean(losses)) + 1e-6 * len(tree.leaves)


def _mean(losses: Iterable[float]) -> float:
    logs = [math.log(loss) for loss in losses]
    return math.exp(sum(logs) / len(logs))
