"""Orders and masks from some pieces of a clip, judged on pieces that they were not made from.

Three ways are compared at equal density: kdsl's (the order that keeps most mass across samples, of
axis orders and cubes; one density shared between heads), PAROAttention's (its score over the six
axis orders; the blocks of largest sum in every head), and the best single order for all heads with
PAROAttention's masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.clip.heads import HEADS, Projected, project
from examples.clip.video import CLIP, load
from kdsl import orders
from kdsl.calibrate import (
    MassRecord,
    OrderSearch,
    Scores,
    Settings,
    axis_orders,
    block_statistics,
    block_sum,
    candidates,
    held,
    make_plan,
    output_error,
    row_weights,
    under_budget,
    within_error,
)
from kdsl.grid import Grid
from kdsl.orders import Order
from kdsl.plans import AttentionPlan
from kdsl.statistics import sampled_rows

GRID = Grid(frames=9, height=15, width=27)
"""3,645 tokens: 56 blocks of 64, and 61 tokens."""
DENSITIES = (0.3, 0.2, 0.5)
"""The first is what the plan is for."""
RULES = ("kdsl", "PARO", "one order")
GIVE = 0.003
"""Mass that a head may lose to others under the shared density."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def spans(frames: int, pieces: int = 8) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pieces of so many frames one after another: every other one to choose on, the rest to judge.

    No frame is in both.
    """
    each = [(i * frames, (i + 1) * frames - 1) for i in range(pieces)]
    return each[0::2], each[1::2]


@dataclass(eq=False)
class Study:
    """The clip's pieces, and what was found on the first half of them."""

    grid: Grid = GRID
    block: tuple[int, int] = (64, 64)
    every: int = 2
    path: Path = CLIP
    _masses: dict[tuple[Order, int], tuple[Floats, Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen_on, judged_on = spans(self.grid.shape[0])
        self.chosen_on, self.judged_on = (
            [self._piece(span) for span in part] for part in (chosen_on, judged_on)
        )
        self.weights = row_weights(self.grid.tokens, self.block[0])
        settings = Settings(block=self.block, every=self.every, shares=DENSITIES)
        self.six = axis_orders(self.grid)
        tried = candidates(self.grid, self.block[1])
        self.search = OrderSearch(self.grid, 1, tried, settings)
        for piece in self.chosen_on:
            self.search.observe(0, piece.q, piece.k)
        self.scores = self.search.scores(0)
        six = [getattr(self.scores, n) for n in ("density", "sparse", "incoherence")]
        self.of_six = Scores(six[0][:6], self.scores.mass[:, :6], six[1][:6], six[2][:6])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads."""
        return tuple(head.name for head in HEADS)

    def _piece(self, span: tuple[int, int]) -> Projected:
        return project(load(self.path, self.grid, span=span).features, self.grid)

    def orders(self, rule: str, at: int) -> list[Order]:
        """The order of each head by a rule, for density number ``at``."""
        if rule == "kdsl":
            return self.search.choose("mass", at=at)[0]
        if rule == "PARO":
            return [self.six[i] for i in self.of_six.choose("paro")]
        return [self.six[int(self.of_six.mass[at].mean(1).argmax())]] * len(HEADS)

    def masses(self, chosen: Sequence[Order]) -> tuple[Floats, Floats]:
        """Mean mass ``[heads, rows, columns]`` over pieces to choose on, and over the others."""
        for order in dict.fromkeys(chosen):
            heads = [h for h, o in enumerate(chosen) if o == order]
            heads = [h for h in heads if (order, h) not in self._masses]
            if not heads:
                continue
            both = [
                np.mean([self._mass(piece, order, heads) for piece in pieces], axis=0)
                for pieces in (self.chosen_on, self.judged_on)
            ]
            self._masses |= {(order, h): (a, b) for h, a, b in zip(heads, *both, strict=True)}
        found = [self._masses[order, h] for h, order in enumerate(chosen)]
        return np.stack([a for a, _ in found]), np.stack([b for _, b in found])

    def _mass(self, piece: Projected, order: Order, heads: list[int]) -> Floats:
        q, k = piece.q[:, heads], piece.k[:, heads]
        return np.asarray(block_statistics(q, k, order, block=self.block).mass[0])

    def kept(self, rule: str, mass: Floats, density: float) -> Bools:
        """The mask of a rule from the masses of its orders."""
        if rule == "kdsl":
            return next(iter(under_budget([mass], self.weights, density, give=GIVE)))
        return block_sum(mass, self.weights, density)

    def compare(self) -> Iterator[Judged]:
        """Every rule at every density, on the pieces that it was not chosen on."""
        for at, density in enumerate(DENSITIES):
            for rule in RULES:
                chosen = self.orders(rule, at)
                seen, unseen = self.masses(chosen)
                kept = self.kept(rule, seen, density)
                names = tuple(map(orders.name_of, chosen))
                yield Judged(rule, density, names, kept, held(unseen, kept, self.weights))

    def budget(self, budget: float, say: Callable[[str], None] = lambda _: None) -> Budgeted:
        """Masks by a bound on the error of every head's output; measured on the other pieces."""
        order = orders.per_head(self.orders("kdsl", 0))
        rows = sampled_rows(len(self.weights), self.every, seed=1)
        say(f"an error of at most {budget:.0%} in every head")
        kept, promised = within_error(
            [(p.q, p.k, p.v) for p in self.chosen_on], order, budget, block=self.block, rows=rows
        )
        errors = [
            output_error(p.q, p.k, p.v, order, kept, block=self.block)[0] for p in self.judged_on
        ]
        return Budgeted(budget, kept, promised, np.array(errors))

    def plan(self) -> AttentionPlan:
        """The plan for the first density, with the scores and pictures of all candidates."""
        record = MassRecord(self.grid, [self.orders("kdsl", 0)], block=self.block)
        for piece in self.chosen_on:
            record.observe(0, 0, piece.q, piece.k)
        kept = under_budget(record, record.weights, DENSITIES[0], record.text, GIVE)
        return make_plan(
            "the clip's heads",
            record,
            kept,
            search=self.search,
            thresholds={"density": DENSITIES[0], "give": GIVE},
            provenance={"command": "python -m examples.paro", "data": self.path.name},
        )


@dataclass(frozen=True, eq=False)
class Judged:
    """One rule at one density: the heads' orders and masks, and mass held on unseen frames."""

    rule: str
    density: float
    orders: tuple[str, ...]
    kept: Bools
    held: Floats


@dataclass(frozen=True, eq=False)
class Budgeted:
    """Masks within a budget: errors promised ``[heads]``, measured ``[unseen pieces, heads]``."""

    budget: float
    kept: Bools
    promised: Floats
    measured: Floats

    @property
    def inside(self) -> bool:
        """Whether every head on every unseen piece stays inside."""
        return bool((self.measured <= self.budget).all())
