"""What every order can do, and how orders combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError
from kdsl.expr import serial
from kdsl.expr.evaluate import evaluate
from kdsl.expr.nodes import Expr, var
from kdsl.expr.tables import Table, distinct, tables_of
from kdsl.grid import Grid

Tables = Mapping[str, npt.NDArray[Any]]


class Order(ABC):
    """A bijection of a grid's tokens: position ``s`` of the stored sequence holds token ``expr``.

    Orders in closed form keep text in place.  Orders are values: equal by structure, cheap to make.
    """

    grid: Grid

    @property
    @abstractmethod
    def expr(self) -> Expr:
        """The original token at stored position ``s``.

        SpecError where there is no expression: for what undoes a list known only at the call.
        """

    @property
    @abstractmethod
    def inverse_expr(self) -> Expr:
        """The stored position of original token ``s``; SpecError as for `expr`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that say what the order is."""
        return tables_of([self.expr])

    @property
    def structure(self) -> str:
        """Identity of the kind of order: no constants, tables and sizes."""
        return serial.structure(self.expr)

    @property
    def tokens(self) -> int:
        """Length of the sequence, text included."""
        return self.grid.tokens

    @property
    def parts(self) -> tuple[Order, ...]:
        """The orders of the heads, or the one for all."""
        return (self,)

    @property
    def is_identity(self) -> bool:
        """Whether the stored sequence is the original one, as far as structure shows."""
        return False

    def index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """Original token at every stored position, ``[tokens]``."""
        return evaluate(self.expr, {"s": np.arange(self.tokens)}, tables)

    def inverse_index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """Stored position of every original token, ``[tokens]``."""
        index = self.index(tables)
        inverse = np.empty_like(index)
        inverse[index] = np.arange(self.tokens)
        return inverse

    def apply(self, x: Any, axis: int = -2, tables: Tables | None = None) -> Any:
        """The stored sequence of an array or torch tensor whose ``axis`` holds original tokens."""
        if x.shape[axis] != self.tokens:
            raise InputError(
                f"axis {axis} holds {x.shape[axis]} tokens", where=repr(self), hint=f"{self.tokens}"
            )
        index = self.index(tables)
        if isinstance(x, np.ndarray):
            return np.take(x, index, axis)
        import torch

        return x.index_select(axis, torch.as_tensor(index, device=x.device))

    def __invert__(self) -> Order:
        return Inverse(self)

    def __matmul__(self, other: Order) -> Order:
        """``(a @ b).apply(x)`` is ``a.apply(b.apply(x))``."""
        return chain_of(self, other)


@dataclass(frozen=True)
class Inverse(Order):
    """The way back: its stored sequence is the original one of ``order``."""

    order: Order

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """The grid of the order turned round."""
        return self.order.grid

    @property
    def is_identity(self) -> bool:
        """Whether the order turned round keeps every token in place."""
        return self.order.is_identity

    @property
    def tables(self) -> tuple[Table, ...]:
        """See `Order.tables`."""
        return self.order.tables

    @property
    def structure(self) -> str:
        """See `Order.structure`."""
        return f"~{self.order.structure}"

    @property
    def expr(self) -> Expr:
        """The stored position that ``order`` gave token ``s``."""
        return self.order.inverse_expr

    @property
    def inverse_expr(self) -> Expr:
        """The token that ``order`` put at position ``s``."""
        return self.order.expr

    def index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """See `Order.index`; also for orders known only as a list."""
        return self.order.inverse_index(tables)

    def __invert__(self) -> Order:
        return self.order

    def __repr__(self) -> str:
        return f"~{self.order!r}"


@dataclass(frozen=True)
class Chain(Order):
    """``outer`` applied to the stored sequence of ``inner``."""

    outer: Order
    inner: Order

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """The grid of both."""
        return self.inner.grid

    @property
    def tables(self) -> tuple[Table, ...]:
        """See `Order.tables`."""
        return distinct((*self.outer.tables, *self.inner.tables))

    @property
    def structure(self) -> str:
        """See `Order.structure`."""
        return f"({self.outer.structure} @ {self.inner.structure})"

    @property
    def expr(self) -> Expr:
        """The original token at stored position ``s``."""
        return self.inner.expr.replace({"s": self.outer.expr})

    @property
    def inverse_expr(self) -> Expr:
        """The stored position of original token ``s``."""
        return self.outer.inverse_expr.replace({"s": self.inner.inverse_expr})

    def index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """See `Order.index`."""
        return self.inner.index(tables)[self.outer.index(tables)]

    def __invert__(self) -> Order:
        return chain_of(~self.inner, ~self.outer)

    def __repr__(self) -> str:
        return f"({self.outer!r} @ {self.inner!r})"


def chain_of(outer: Order, inner: Order) -> Order:
    """The composition, with neighbours that undo each other dropped."""
    if isinstance(outer, PerHead) or isinstance(inner, PerHead):
        raise SpecError("orders per head do not compose as one", hint="compose head by head")
    if outer.grid != inner.grid:
        raise SpecError(
            "the orders speak of different grids", where=f"{outer.grid!r} and {inner.grid!r}"
        )
    if outer.is_identity:
        return inner
    if inner.is_identity:
        return outer
    if isinstance(inner, Chain):
        return chain_of(chain_of(outer, inner.outer), inner.inner)
    last = outer.inner if isinstance(outer, Chain) else outer
    if ~last == inner or last == ~inner:
        from kdsl.orders.closed import identity

        return outer.outer if isinstance(outer, Chain) else identity(inner.grid)
    return Chain(outer, inner)


@dataclass(frozen=True)
class PerHead(Order):
    """One order for each query head."""

    orders: tuple[Order, ...]

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """The grid of all."""
        return self.orders[0].grid

    @property
    def parts(self) -> tuple[Order, ...]:
        """The orders of the heads."""
        return self.orders

    @property
    def tables(self) -> tuple[Table, ...]:
        """See `Order.tables`."""
        return distinct(t for o in self.orders for t in o.tables)

    @property
    def structure(self) -> str:
        """See `Order.structure`; which head has which order is no part of it."""
        return ", ".join(sorted({o.structure for o in self.orders}))

    @property
    def expr(self) -> Expr:
        """There is none for all heads: ask one of `orders`."""
        raise SpecError("an order per head has no single index expression", where=repr(self))

    inverse_expr = expr

    @property
    def is_identity(self) -> bool:
        """Whether every head keeps the original sequence."""
        return all(o.is_identity for o in self.orders)

    def index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """Original token at every stored position, ``[heads, tokens]``."""
        return np.stack([o.index(tables) for o in self.orders])

    def inverse_index(self, tables: Tables | None = None) -> npt.NDArray[np.int64]:
        """Stored position of every original token, ``[heads, tokens]``."""
        return np.stack([o.inverse_index(tables) for o in self.orders])

    def apply(self, x: Any, axis: int = -2, tables: Tables | None = None) -> Any:
        """The stored sequences of ``[..., heads, tokens, head_dim]``."""
        if axis != -2 or x.ndim < 3 or x.shape[-3] != len(self.orders):
            raise InputError(
                f"orders for {len(self.orders)} heads take [..., heads, tokens, head_dim]",
                where=f"shape {tuple(x.shape)}, axis {axis}",
            )
        parts = [o.apply(x[..., h, :, :], -2, tables) for h, o in enumerate(self.orders)]
        if isinstance(x, np.ndarray):
            return np.stack(parts, axis=-3)
        import torch

        return torch.stack(parts, dim=-3)

    def __invert__(self) -> Order:
        return PerHead(tuple(~o for o in self.orders))

    def __repr__(self) -> str:
        return f"orders.per_head([{', '.join(map(repr, self.orders))}])"


def per_head(orders: Sequence[Order]) -> Order:
    """One order for each query head, head 0 first."""
    given = tuple(orders)
    if not given:
        raise SpecError("per_head([]) has no heads", hint="one order for each head")
    for o in given:
        if not isinstance(o, Order) or isinstance(o, PerHead):
            raise SpecError(f"per_head holds {o!r}", hint="orders such as axes(grid, 'HWF')")
        if o.grid != given[0].grid:
            raise SpecError("per_head mixes grids", where=f"{given[0].grid!r} and {o.grid!r}")
    return PerHead(given)


def stored() -> Expr:
    """The index of an order's expressions."""
    return var("s")
