"""The outline of a recipe: which steps, over which blocks, without their values.

A spec holds the outline; the values (factors, means, orders, signs, matrices) are operands by
name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError, reading
from kdsl.grid import count
from kdsl.layouts.transforms import KINDS, Hadamard, Recipe, Rotate, Step

ROTATIONS = ("hadamard", "rotate")


@dataclass(frozen=True)
class Outline:
    """Steps as (kind, block): ``Outline((("signs", 0), ("hadamard", 128)))``.

    Kinds are those of `kdsl.layouts.transforms`; ``block`` is a rotation's, 0 for the others.
    """

    steps: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        held = []
        for step in self.steps:
            kind, block = step if len(step) == 2 else ("", 0)
            rotates = kind in ROTATIONS
            size = count(block, 1 if rotates else 0)
            if kind not in KINDS or size is None or (size and not rotates):
                raise SpecError(
                    f"step {step!r}",
                    where="an outline of a recipe",
                    hint=f"({', '.join(KINDS)}), with the block of a rotation and 0 for the rest",
                )
            if kind == "hadamard":
                Hadamard(size)
            held.append((kind, size))
        object.__setattr__(self, "steps", tuple(held))

    @staticmethod
    def of(recipe: Recipe) -> Outline:
        """The outline of a recipe."""
        return Outline(tuple((kind_of(step), _block(step)) for step in recipe.steps))

    def shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the values by name (kind and place), for a matrix of so many columns."""
        return {
            f"{kind}_{i}": (block, block) if kind == "rotate" else (columns,)
            for i, (kind, block) in enumerate(self.steps)
            if kind != "hadamard"
        }

    def check(self, columns: int) -> None:
        """SpecError where a rotation's blocks do not divide the columns."""
        for kind, block in self.steps:
            if block and columns % block:
                fits = [str(n) for n in (16, 32, 64, 128, 256) if columns % n == 0]
                raise SpecError(
                    f"blocks of {block} do not divide {columns} columns",
                    where=f"step {kind!r}",
                    hint=", ".join(fits) or f"a divisor of {columns}",
                )

    def recipe(self, tables: Mapping[str, Any], columns: int) -> Recipe:
        """The recipe with values by the names of `shapes`; InputError where they do not fit."""
        shapes = self.shapes(columns)
        for name, shape in shapes.items():
            if name not in tables:
                way = f"tables={{{name!r}: an array of shape {shape}}}"
                raise InputError(
                    f"table {name!r} has no values", hint=f"{way}, or tables=layouts.tables(recipe)"
                )
            got = np.asarray(tables[name])
            if got.shape != shape or not np.isfinite(got).all():
                raise InputError(
                    f"table {name!r} has shape {got.shape}", hint=f"finite numbers, {shape}"
                )
        steps: list[Step] = []
        for i, (kind, block) in enumerate(self.steps):
            value = block if kind == "hadamard" else np.asarray(tables[f"{kind}_{i}"])
            steps.append(KINDS[kind](value))
        return Recipe(tuple(steps))

    def to_json(self) -> list[list[Any]]:
        """The steps."""
        return [[kind, block] for kind, block in self.steps]

    @staticmethod
    @reading("outline of a recipe")
    def from_json(value: Sequence[Sequence[Any]]) -> Outline:
        """The outline written by `to_json`."""
        return Outline(tuple((str(kind), block) for kind, block in value))


def kind_of(step: Step) -> str:
    """The name of a step's kind."""
    return next(name for name, kind in KINDS.items() if type(step) is kind)


def tables(recipe: Recipe) -> dict[str, npt.NDArray[Any]]:
    """The values of a recipe by the names of `Outline.shapes`: what operators are bound to."""
    found = {}
    for i, step in enumerate(recipe.steps):
        if not isinstance(step, Hadamard):
            (value,) = vars(step).values()
            found[f"{kind_of(step)}_{i}"] = np.asarray(value)
    return found


def _block(step: Step) -> int:
    if isinstance(step, Hadamard):
        return step.order
    return len(step.matrix) if isinstance(step, Rotate) else 0
