"""An order applied to a tensor, quantizing on the way if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from kdsl.errors import SpecError, reading
from kdsl.expr.tables import Table, tables_of
from kdsl.grid import Grid, as_grid
from kdsl.layouts import Layout
from kdsl.layouts.groups import Lanes
from kdsl.orders import Order, PerHead, per_head
from kdsl.orders import from_json as order_from_json
from kdsl.orders import to_json as order_to_json
from kdsl.specs.common import DTYPES, check_length, digest, optional, positive, whole


@dataclass(frozen=True, kw_only=True)
class Permute:
    """``[batch, heads, tokens, head_dim]`` brought into stored order, quantized if asked.

    Without a layout the result is a tensor of the same dtype; with one, codes and float32 scales
    ``[batch, heads, groups of tokens, groups of channels]``, groups counted in stored order.
    """

    tokens: Grid | int
    heads: int
    head_dim: int
    order: Order
    dtype: str = "bfloat16"
    layout: Layout | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", as_grid(self.tokens))
        for name in ("heads", "head_dim"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        check_length(self.grid.tokens, "tokens")
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype={self.dtype!r}", hint=" or ".join(map(repr, DTYPES)))
        if isinstance(self.order, Sequence) and not isinstance(self.order, str):
            object.__setattr__(self, "order", per_head(self.order))
        if not isinstance(self.order, Order):
            raise SpecError(f"order={self.order!r}", hint='kdsl.orders.axes(grid, "HWF")')
        if self.order.tokens != self.grid.tokens:
            raise SpecError(
                f"the order is over {self.order.tokens} tokens, the spec has {self.grid.tokens}",
                where=repr(self.order),
            )
        if isinstance(self.order, PerHead) and len(self.order.orders) != self.heads:
            raise SpecError(f"the order is for {len(self.order.orders)} heads of {self.heads}")
        if self.layout is not None:
            if self.layout.code != "int8" or isinstance(self.layout.group, Lanes):
                raise SpecError(
                    f"permute has no kernel for {self.layout!r} yet", hint="kdsl.layouts.int8()"
                )
            self.layout.check(self.head_dim)
        # Two tables of one name, and orders that no kernel can index by, show here.
        _ = self.tables

    @property
    def grid(self) -> Grid:
        """The tokens' grid."""
        assert isinstance(self.tokens, Grid)
        return self.tokens

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Every table of the orders, in the order kernels take them."""
        return tables_of([o.expr for o in self.order.parts])

    @property
    def open_tables(self) -> tuple[Table, ...]:
        """Tables whose values come with the call."""
        return tuple(t for t in self.tables if t.values is None)

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {
            "op": "permute",
            "tokens": self.grid.to_json(),
            "heads": self.heads,
            "head_dim": self.head_dim,
            "order": order_to_json(self.order),
            "dtype": self.dtype,
            "layout": self.layout.to_json() if self.layout else None,
        }

    @staticmethod
    @reading("permute spec")
    def from_json(value: Mapping[str, Any]) -> Permute:
        """The spec written by `to_json`."""
        whole(value, {"op", *(f.name for f in fields(Permute))}, "permute spec")
        return Permute(
            tokens=Grid.from_json(value["tokens"]),
            heads=value["heads"],
            head_dim=value["head_dim"],
            order=order_from_json(value["order"]),
            dtype=value["dtype"],
            layout=optional(Layout.from_json)(value["layout"]),
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the whole spec."""
        return digest(self.to_json())

    @property
    def program(self) -> str:
        """Identity of the generated program: no sizes, constants or tables."""
        layout = self.layout.to_json() if self.layout else None
        return digest(["permute", self.dtype, self.head_dim, layout, self.order.structure])
