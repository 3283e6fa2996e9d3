"""Tables: integer arrays that an expression looks up.

A table stands in a spec as name, shape, dtype and range.  Its values are operands of the call, or,
when small and known on the host, are given with it and stored by digest.
"""

from __future__ import annotations

import hashlib
import keyword
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, KdslError, SpecError, reading
from kdsl.expr.nodes import Expr, as_expr, make
from kdsl.grid import count

DTYPES = ("int32", "int16", "uint8", "int8")
LOW, HIGH = -(2**30), 2**30 - 1
"""Range that a table's values may have unless it says otherwise: a sum of two fits 32 bits."""

CAST = "values.astype(numpy.int32)"
"""What makes integers of other numbers."""


class Table:
    """An integer array of one to three axes, named here and given at the call.

    ``doc = table("doc", 4096)`` then ``doc[q] == doc[k]`` in a predicate.  ``low`` and ``high``
    bound the values (inclusive); narrow bounds make generated code cheaper.
    """

    __slots__ = ("digest", "dtype", "high", "key", "low", "name", "shape", "values")

    def __init__(
        self,
        name: str,
        shape: int | Sequence[int],
        dtype: str = "int32",
        low: int | None = None,
        high: int | None = None,
        values: npt.ArrayLike | None = None,
        digest: str = "",
    ) -> None:
        self.name = name
        sizes: Sequence[object] = shape if isinstance(shape, Sequence) else (shape,)
        self.shape = tuple(-1 if (n := count(size, 0)) is None else n for size in sizes)
        if -1 in self.shape:
            raise SpecError(f"table {name!r} of shape {shape!r}", hint=f"table({name!r}, 4096)")
        self.dtype = dtype
        self._check()
        limits = np.iinfo(dtype)
        self.low = max(LOW, int(limits.min)) if low is None else int(low)
        self.high = min(HIGH, int(limits.max)) if high is None else int(high)
        if not limits.min <= self.low <= self.high <= limits.max:
            raise SpecError(
                f"table {name!r} of {dtype} with low={self.low}, high={self.high}",
                hint=f"{limits.min} <= low <= high <= {limits.max}",
            )
        self.values: npt.NDArray[np.integer] | None = None
        self.digest = digest
        if values is not None:
            held = self.checked(values).copy()
            held.setflags(write=False)
            self.values, self.digest = held, _digest(held)
        self.key = repr(self.to_json())

    def _check(self) -> None:
        # Names reach generated code, also from files: nothing but plain identifiers.
        plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", self.name)
        if not plain or keyword.iskeyword(self.name):
            raise SpecError(f"table name {self.name!r}", hint='a plain identifier such as "doc"')
        if self.dtype not in DTYPES:
            raise SpecError(f"table {self.name!r} of {self.dtype}", hint=", ".join(DTYPES))
        if not 1 <= len(self.shape) <= 3 or math.prod(self.shape) >= 2**31:
            raise SpecError(
                f"table {self.name!r} of shape {self.shape}",
                hint="one to three axes, fewer than 2**31 entries",
            )

    def __getitem__(self, index: Expr | int | tuple[Expr | int, ...]) -> Expr:
        at = tuple(as_expr(i) for i in (index if isinstance(index, tuple) else (index,)))
        if len(at) != len(self.shape):
            raise SpecError(
                f"table {self.name!r} has {len(self.shape)} axes, got {len(at)} indices"
            )
        return make("table", at, self)

    def __repr__(self) -> str:
        digest = f", digest={self.digest!r}" if self.digest else ""
        return (
            f"Table({self.name!r}, {self.shape}, {self.dtype!r}, {self.low}, {self.high}{digest})"
        )

    def to_json(self) -> list[object]:
        """Everything but the values, which the digest stands for."""
        return [self.name, list(self.shape), self.dtype, self.low, self.high, self.digest]

    @staticmethod
    @reading("table")
    def from_json(value: list[Any]) -> Table:
        """The table written by `to_json`; its values come with the call."""
        name, shape, dtype, low, high, digest = value
        return Table(name, shape, dtype, low, high, digest=digest)

    def checked(self, values: npt.ArrayLike) -> npt.NDArray[np.integer]:
        """Values as a C-contiguous array of the table's dtype; InputError if they do not fit it."""
        array = _array(values, InputError)
        if array.shape != self.shape:
            raise InputError(f"table {self.name!r} has shape {self.shape}, got {array.shape}")
        if array.dtype.kind not in "iub":
            raise InputError(f"table {self.name!r} holds integers, got {array.dtype}", hint=CAST)
        if array.size and not (self.low <= int(array.min()) and int(array.max()) <= self.high):
            raise InputError(
                f"table {self.name!r} holds {int(array.min())}..{int(array.max())}",
                where=repr(self),
                hint=f"values from {self.low} to {self.high}, or another low= and high=",
            )
        array = np.ascontiguousarray(array, dtype=self.dtype)
        if self.digest and _digest(array) != self.digest:
            raise InputError(
                f"table {self.name!r} holds other values than the spec was made with",
                where=repr(self),
                hint="the values the spec was made with, or a spec with an open table",
            )
        return array


def tables_of(exprs: Iterable[Expr]) -> tuple[Table, ...]:
    """Tables that occur, in order of first use; SpecError where two share a name."""
    return distinct(n.data for e in exprs for n in e.walk() if n.op == "table")


def distinct(tables: Iterable[Table]) -> tuple[Table, ...]:
    """Tables without repetition, in order of first use; SpecError where two share a name."""
    found: dict[str, Table] = {}
    for table in tables:
        held = found.setdefault(table.name, table)
        if held.key != table.key:
            raise SpecError(
                f"two tables are named {held.name!r}",
                where=f"{held!r} and {table!r}",
                hint="another name for one of them",
            )
    return tuple(found.values())


def _array(values: npt.ArrayLike, fault: type[KdslError]) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise fault(
            "the values of a table make no array: lists of different lengths",
            hint="as many entries in every row",
        ) from error


def _digest(values: npt.NDArray[np.integer]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def table(
    name: str | npt.ArrayLike,
    shape: int | Sequence[int] | None = None,
    dtype: str = "int32",
    low: int | None = None,
    high: int | None = None,
) -> Table:
    """A table by name and shape (values come with the call), or from values known now.

    ``table("doc", 4096)`` or ``table([0, 0, 1, 1, 2])``.
    """
    if isinstance(name, str):
        if shape is None:
            raise SpecError(f"table {name!r} needs a shape", hint=f"table({name!r}, 4096)")
        return Table(name, shape, dtype, low, high)
    array = _array(name, SpecError)
    if array.dtype.kind not in "iub":
        raise SpecError(f"a table holds integers, got {array.dtype}", hint=CAST)
    least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
    low, high = least if low is None else low, most if high is None else high
    digest = hashlib.sha256(repr((array.shape, dtype)).encode() + array.astype(np.int64).tobytes())
    return Table(f"t_{digest.hexdigest()[:10]}", array.shape, dtype, low, high, array)
