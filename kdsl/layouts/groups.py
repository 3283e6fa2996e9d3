"""Groups: which entries of a matrix share a scale, a zero point or a minimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError, reading
from kdsl.expr.nodes import Expr, const
from kdsl.expr.tables import Table
from kdsl.grid import count

Shape = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """Blocks of rows x columns, None for a whole axis: ``Block(1, 128)`` is a group of 128.

    ``ragged`` lets the last block of an axis be shorter; otherwise blocks must divide.
    """

    rows: int | None = 1
    cols: int | None = 1
    ragged: bool = False

    def __post_init__(self) -> None:
        _sizes(self, [s for s in (self.rows, self.cols) if s is not None])

    def shape(self, shape: Shape) -> Shape:
        """Groups along both axes of a matrix."""
        out = []
        for n, size, what in zip(shape, (self.rows, self.cols), ("rows", "columns"), strict=True):
            if size is not None and n % size and not self.ragged:
                fits = [s for s in (16, 32, 64, 128, 256) if n % s == 0]
                raise SpecError(
                    f"groups of {size} {what} do not divide {n}",
                    where=repr(self),
                    hint=", ".join(map(str, fits)) or str(n),
                )
            out.append(1 if size is None else -(-n // size))
        return out[0], out[1]

    def at(self, row: Expr, col: Expr, shape: Shape) -> tuple[Expr, Expr]:
        """The group of an entry."""
        return (
            const(0) if self.rows is None else row // self.rows,
            const(0) if self.cols is None else col // self.cols,
        )


@dataclass(frozen=True)
class Flat:
    """Runs of ``size`` entries of the flattened matrix, whatever its rows."""

    size: int

    def __post_init__(self) -> None:
        _sizes(self, [self.size])

    def shape(self, shape: Shape) -> Shape:
        """One row of groups; the last run may be shorter."""
        return 1, -(-shape[0] * shape[1] // self.size)

    def at(self, row: Expr, col: Expr, shape: Shape) -> tuple[Expr, Expr]:
        """The group of an entry."""
        return const(0), (row * shape[1] + col) // self.size


@dataclass(frozen=True)
class Lanes:
    """Rows that one thread of a matrix instruction holds share a group.

    In every ``span`` rows, those whose row modulo ``period`` falls into the same ``width`` rows:
    ``Lanes(32, 8, 1)`` for queries and ``Lanes(64, 8, 2)`` for keys are the groups of
    SageAttention2 (arXiv 2411.10958, per-thread quantization).  All columns belong together.
    """

    span: int
    period: int
    width: int

    def __post_init__(self) -> None:
        _sizes(self, [self.span, self.period, self.width])
        if self.span % self.period or self.period % self.width:
            raise SpecError(f"{self!r}", hint="width divides period, period divides span")

    def shape(self, shape: Shape) -> Shape:
        """Groups along the rows; the last span may be shorter."""
        return -(-shape[0] // self.span) * (self.period // self.width), 1

    def at(self, row: Expr, col: Expr, shape: Shape) -> tuple[Expr, Expr]:
        """The group of an entry."""
        lane = row % self.period // self.width
        return row // self.span * (self.period // self.width) + lane, const(0)

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """The group of each of the first rows."""
        row = np.arange(count)
        lane = row % self.period // self.width
        return row // self.span * (self.period // self.width) + lane


@dataclass(frozen=True)
class Indexed:
    """Column groups by a table, as GPTQ's act-order has them: group of a column ``g_idx[col]``.

    ``size`` columns a group on average: it says how many groups there are.
    """

    size: int
    table: str = "g_idx"

    def __post_init__(self) -> None:
        _sizes(self, [self.size])

    def shape(self, shape: Shape) -> Shape:
        """(rows, groups)."""
        return Block(1, self.size).shape(shape)

    def at(self, row: Expr, col: Expr, shape: Shape) -> tuple[Expr, Expr]:
        """The group of an entry."""
        groups = self.shape(shape)[1]
        return row, Table(self.table, shape[1], "int32", 0, groups - 1)[col]


Groups = Block | Flat | Lanes | Indexed
KINDS: dict[str, type[Any]] = {"block": Block, "flat": Flat, "lanes": Lanes, "indexed": Indexed}


def _sizes(groups: Any, sizes: list[int]) -> None:
    if any(count(s) is None for s in sizes):
        raise SpecError(f"{groups!r}", hint="sizes of at least 1")


def groups_to_json(groups: Groups) -> dict[str, Any]:
    """The canonical form."""
    kind = next(k for k, t in KINDS.items() if type(groups) is t)
    return {"kind": kind, **{f.name: getattr(groups, f.name) for f in fields(groups)}}


@reading("groups")
def groups_from_json(value: Mapping[str, Any]) -> Groups:
    """The groups written by `groups_to_json`."""
    given = dict(value)
    kind = given.pop("kind")
    if kind not in KINDS:
        raise SpecError(f"groups of kind {kind!r}", hint=", ".join(KINDS))
    made: Groups = KINDS[kind](**given)
    return made
