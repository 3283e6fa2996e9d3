"""Where bits lie: rearrangements of axes, written as in einops.

``"n (b h:2 l:16) x:4 -> n b | l h x"`` splits columns into blocks of two halves of sixteen, and
stores, for each block, byte by byte the two halves' codes.  The last axis on the left is the bits
of an entry, least significant first.  ``|`` parts the axes that number records from those inside a
record; ``-p`` runs backwards; ``;`` appends another rearrangement of what the first one made.  A
size that is left out (one a group) follows from the tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.expr.nodes import Expr, const

_GROUP = re.compile(r"\(([^()]*)\)|(\|)|([^\s()|]+)")
_AXIS = re.compile(r"(-?)([A-Za-z]\w*)(?::(\d+))?")


@dataclass(frozen=True)
class Step:
    """One rearrangement: named axes with sizes per input group, and the groups that come out."""

    inputs: tuple[tuple[tuple[str, int], ...], ...]
    outputs: tuple[tuple[tuple[str, bool], ...], ...]
    """Axis names, and whether they run backwards."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every axis."""
        return {name: size for group in self.inputs for name, size in group}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        sizes = self.sizes
        return tuple(math.prod(sizes[name] for name, _ in group) for group in self.outputs)

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rearranged array."""
        names, sizes = list(self.sizes), self.sizes
        axes = [a for group in self.outputs for a in group]
        x = x.reshape([sizes[n] for n in names]).transpose([names.index(n) for n, _ in axes])
        return self._turned(x, axes).reshape(self.shape)

    def undo(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array that `apply` turns into this one."""
        names, sizes = list(self.sizes), self.sizes
        axes = [a for group in self.outputs for a in group]
        x = self._turned(x.reshape([sizes[n] for n, _ in axes]), axes)
        back = [[n for n, _ in axes].index(n) for n in names]
        return x.transpose(back).reshape([math.prod(s for _, s in g) for g in self.inputs])

    @staticmethod
    def _turned(x: npt.NDArray[Any], axes: Sequence[tuple[str, bool]]) -> npt.NDArray[Any]:
        turned = tuple(i for i, (_, backwards) in enumerate(axes) if backwards)
        return np.flip(x, turned) if turned else x

    def at(self, index: Sequence[Expr]) -> list[Expr]:
        """Where the entry at an index comes to lie, as expressions."""
        place = {n: (g, i) for g, group in enumerate(self.inputs) for i, (n, _) in enumerate(group)}
        return [self._coordinate(index, group, place) for group in self.outputs]

    def _coordinate(
        self,
        index: Sequence[Expr],
        group: tuple[tuple[str, bool], ...],
        place: dict[str, tuple[int, int]],
    ) -> Expr:
        total, axes = const(0), list(group)
        while axes:
            # Axes that stay neighbours are one digit.
            run = 1
            g, i = place[axes[0][0]]
            while run < len(axes) and not (axes[0][1] or axes[run][1]):
                if place[axes[run][0]] != (g, i + run):
                    break
                run += 1
            sizes = [size for _, size in self.inputs[g]]
            size, inner = math.prod(sizes[i : i + run]), math.prod(sizes[i + run :])
            digit = index[g] // inner
            if i > 0:
                digit = digit % size
            total = total * size + (size - 1 - digit if axes[0][1] else digit)
            axes = axes[run:]
        return total


@dataclass(frozen=True)
class Placement:
    """A pattern made concrete for entries of one shape: (rows, columns, bits)."""

    steps: tuple[Step, ...]
    records: int
    """How many axes of the last step number records."""

    @property
    def shape(self) -> tuple[int, int]:
        """(records, bits in a record)."""
        shape = self.steps[-1].shape
        return math.prod(shape[: self.records]), math.prod(shape[self.records :])

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Entries ``[rows, columns, bits]`` as ``[records, bits in a record]``."""
        for step in self.steps:
            x = step.apply(x)
        return x.reshape(self.shape)

    def undo(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The entries."""
        for step in reversed(self.steps):
            x = step.undo(x.reshape(step.shape))
        return x

    def at(self, row: Expr, col: Expr, bit: int) -> tuple[Expr, Expr]:
        """(record, bit in the record) of one bit of an entry."""
        index: Sequence[Expr] = [row, col, const(bit)]
        for step in self.steps:
            index = step.at(index)
        shape = self.steps[-1].shape
        return (
            _flat(index[: self.records], shape[: self.records]),
            _flat(index[self.records :], shape[self.records :]),
        )

    @property
    def together(self) -> bool:
        """Whether the bits of an entry lie one after the other in a record."""
        if len(self.steps) > 1:
            return False
        (step,) = self.steps
        bits = step.inputs[-1]
        last = step.outputs[-1][-len(bits) :]
        return tuple((n, False) for n, _ in bits) == last


def _flat(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    total = const(0)
    for at, size in zip(index, shape, strict=True):
        total = total * size + at
    return total


@lru_cache(maxsize=512)
def resolve(text: str, shape: tuple[int, int, int]) -> Placement:
    """The placement of a pattern for entries of this shape; SpecError where it does not fit."""
    steps: list[Step] = []
    records = 0
    given: tuple[int, ...] = shape
    for part in text.split(";"):
        left, arrow, right = part.partition("->")
        if not arrow or "|" in left:
            raise SpecError(f"pattern {text!r}", hint='"n k x:4 -> n k x"')
        inputs = _sized(_groups(left, text)[0], given, text)
        outputs, records = _groups(right, text)
        named = [n for g in inputs for n, _ in g]
        used = [n for g in outputs for n, _, _ in g]
        if sorted(named) != sorted(used) or len(set(named)) != len(named):
            raise SpecError(f"pattern {text!r}", hint="every axis once on each side of ->")
        if any(size for g in outputs for _, _, size in g):
            raise SpecError(f"pattern {text!r}", hint="sizes stand left of -> only")
        steps.append(Step(inputs, tuple(tuple((n, b) for n, b, _ in g) for g in outputs)))
        given = steps[-1].shape
    return Placement(tuple(steps), records)


Axis = tuple[str, bool, int | None]


def _groups(side: str, text: str) -> tuple[list[list[Axis]], int]:
    """Groups of axes, and how many of them stand before ``|``."""
    out: list[list[Axis]] = []
    records = 0
    for inner, bar, single in _GROUP.findall(side):
        if bar:
            records = len(out)
            continue
        group: list[Axis] = []
        for word in (single or inner).split():
            found = _AXIS.fullmatch(word)
            if not found:
                raise SpecError(f"axis {word!r}", where=text, hint="a name, name:size or -name")
            sign, name, size = found.groups()
            group.append((name, bool(sign), int(size) if size else None))
        out.append(group)
    return out, records


def _sized(
    groups: list[list[Axis]], shape: tuple[int, ...], text: str
) -> tuple[tuple[tuple[str, int], ...], ...]:
    if len(groups) != len(shape):
        raise SpecError(f"{len(groups)} groups of axes for shape {shape}", where=text)
    out = []
    for group, whole in zip(groups, shape, strict=True):
        open_axes = [n for n, _, size in group if size is None]
        known = math.prod(size for _, _, size in group if size is not None)
        if len(open_axes) > 1:
            raise SpecError(f"sizes of {open_axes} are unknown", where=text, hint="name:size")
        if not known or whole % known or (not open_axes and whole != known):
            raise SpecError(
                f"an axis of {whole} does not split into {' '.join(n for n, _, _ in group)}",
                where=text,
                hint=f"a multiple of {known}",
            )
        out.append(tuple((n, whole // known if size is None else size) for n, _, size in group))
    return tuple(out)
