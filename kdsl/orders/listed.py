"""Orders given as a list of tokens, now or at the call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.expr.nodes import Expr
from kdsl.expr.tables import Table
from kdsl.expr.tables import table as make_table
from kdsl.grid import Grid
from kdsl.orders.base import Inverse, Order, Tables, stored


@dataclass(frozen=True)
class Listed(Order):
    """``entries[s]`` is the original token at stored position ``s``."""

    grid: Grid
    entries: Table

    @property
    def expr(self) -> Expr:
        """The original token at stored position ``s``."""
        return self.entries[stored()]

    @property
    def inverse_expr(self) -> Expr:
        """The stored position of original token ``s``, where the list is known."""
        if self.entries.values is None:
            raise SpecError(
                f"order {self.entries.name!r} is known only at the call",
                hint="inverse_index(tables), or an order from values",
            )
        return self._inverse.expr

    @cached_property
    def _inverse(self) -> Order:
        if self.entries.values is None:
            return Inverse(self)
        inverse = np.empty_like(self.entries.values)
        inverse[self.entries.values] = np.arange(len(inverse), dtype=inverse.dtype)
        return table(inverse, self.grid)

    def __invert__(self) -> Order:
        """The way back: a list too, where the values are known."""
        return self._inverse

    def index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """See `Order.index`; the list is checked to be a bijection."""
        index = super().index(tables)
        if self.entries.values is None:
            # Known lists were checked when the order was written.
            check_bijection(index, self.tokens, f"order {self.entries.name!r}")
        return index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Grid, str]:
        return self.grid, self.entries.key

    def __repr__(self) -> str:
        return f"orders.table({self.entries!r}, {self.grid!r})"


def table(entries: npt.ArrayLike | Table, grid: Grid | None = None) -> Listed:
    """An order from a list of original tokens, or from a `Table` that comes with the call."""
    if isinstance(entries, str):
        raise SpecError(
            f"order table {entries!r} needs its length",
            hint=f'orders.table(kdsl.table("{entries}", tokens))',
        )
    held = entries if isinstance(entries, Table) else make_table(entries)
    if held.values is not None:
        # Known lists go by their content, whatever name they came under.
        held = make_table(held.values)
    if len(held.shape) != 1:
        raise SpecError(
            f"an order lists tokens along one axis, got shape {held.shape}",
            hint="one list of tokens; orders.per_head([...]) for an order of each head's own",
        )
    if grid is not None and grid.tokens != held.shape[0]:
        raise SpecError(f"the order lists {held.shape[0]} tokens, the grid has {grid.tokens}")
    if held.values is not None:
        check_bijection(held.values, held.shape[0], "the listed order")
    n = held.shape[0]
    if n > np.iinfo(held.dtype).max + 1:
        raise SpecError(f"{held.dtype} does not count {n} tokens", hint='dtype="int32"')
    # The range of a permutation is known before its values are.
    bounded = Table(held.name, held.shape, held.dtype, 0, max(n - 1, 0), held.values, held.digest)
    return Listed(grid or Grid(n), bounded)


def check_bijection(index: npt.NDArray[np.integer], tokens: int, what: str) -> None:
    """SpecError that names the first token listed twice, or outside the sequence."""
    outside = np.flatnonzero((index < 0) | (index >= tokens))
    if outside.size:
        at = int(outside[0])
        raise SpecError(
            f"{what} is no bijection: position {at} holds token {int(index[at])}",
            hint=f"every token from 0 to {tokens - 1} once",
        )
    first = np.full(tokens, -1)
    first[index[::-1]] = np.arange(tokens)[::-1]
    again = np.flatnonzero(first[index] != np.arange(tokens))
    if again.size:
        at = int(again[0])
        raise SpecError(
            f"{what} is no bijection: token {int(index[at])} stands at positions "
            f"{int(first[index[at]])} and {at}",
            hint=f"every token from 0 to {tokens - 1} once",
        )
