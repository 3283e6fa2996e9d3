"""Block-sparse attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import InputError, SpecError, reading
from kdsl.expr import serial
from kdsl.expr.bounds import Bounds, check_int32, check_tables
from kdsl.expr.tables import Table, distinct, tables_of
from kdsl.grid import Grid, as_grid, count
from kdsl.intervals import classify
from kdsl.intervals.classify import token_bounds
from kdsl.layouts import Layout
from kdsl.masks import Mask, everything
from kdsl.masks.base import as_mask
from kdsl.orders import Order, PerHead, identity, per_head
from kdsl.orders import from_json as order_from_json
from kdsl.orders import to_json as order_to_json
from kdsl.specs.common import DTYPES, check_length, digest, optional, positive, whole

HEAD_DIMS = (64, 80, 96, 128, 192, 256)
"""Head dimensions that some kernel here carries."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Block-sparse attention of ``[batch, heads, tokens, head_dim]``.

    ``tokens`` for self-attention, or ``queries`` and ``keys``.  ``kv_heads`` divides ``heads``
    (grouped queries).  ``mask`` is one mask or one for each query head, ``order`` the stored order
    in which blocks are cut (the kernel reads and writes the original order; with ``stored``, q, k
    and v arrive in stored order, as `Permute` leaves them, and the output still goes back to the
    original one).  ``block`` is the mask block (queries, keys).  ``scale`` defaults to
    ``head_dim ** -0.5``.  A query that sees nothing gives output 0 and log-sum-exp minus infinity.
    """

    tokens: Grid | int | None = None
    queries: Grid | int | None = None
    keys: Grid | int | None = None
    heads: int
    kv_heads: int | None = None
    head_dim: int
    dtype: str = "bfloat16"
    mask: Mask = field(default_factory=everything)
    order: Order | None = None
    key_order: Order | None = None
    layout: Layout | None = None
    scale: float | None = None
    return_lse: bool = False
    block: tuple[int, int] = (128, 128)
    stored: bool = False

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if (self.tokens is None) == (self.queries is None and self.keys is None):
            raise SpecError(
                "attention takes tokens, or queries and keys",
                where=f"tokens={self.tokens!r}, queries={self.queries!r}, keys={self.keys!r}",
                hint="tokens=grid, or queries=grid, keys=other_grid",
            )
        if self.tokens is not None:
            grid = as_grid(self.tokens)
            set_(self, "tokens", None)
            set_(self, "queries", grid)
            set_(self, "keys", grid)
        else:
            if self.queries is None or self.keys is None:
                raise SpecError("queries and keys come together", hint="both, or tokens=")
            set_(self, "queries", as_grid(self.queries, "queries"))
            set_(self, "keys", as_grid(self.keys, "keys"))
        if self.kv_heads is None:
            set_(self, "kv_heads", self.heads)
        set_(self, "mask", as_mask(self.mask))
        set_(self, "return_lse", bool(self.return_lse))
        set_(self, "stored", bool(self.stored))
        self._check_numbers()
        self._check_orders()
        self._check_mask()
        # Two tables of one name show here.
        _ = self.tables

    def _check_numbers(self) -> None:
        for name in ("heads", "kv_heads", "head_dim"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        check_length(self.query_grid.tokens, "queries")
        check_length(self.key_grid.tokens, "keys")
        if self.heads % self.group_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise SpecError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}",
                hint=f"kv_heads in {divisors}",
            )
        if self.head_dim not in HEAD_DIMS:
            raise SpecError(
                f"no attention kernel has head_dim={self.head_dim}",
                hint=f"one of {', '.join(map(str, HEAD_DIMS))}; zero-pad the last axis up to one",
            )
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype={self.dtype!r}", hint=" or ".join(map(repr, DTYPES)))
        if self.layout is not None:
            raise SpecError(f"attention has no kernel for {self.layout!r} yet", hint="layout=None")
        if self.scale is not None:
            known = isinstance(self.scale, (int, float, np.number)) and self.scale is not True
            if not known or not 0 < self.scale < float("inf"):
                raise SpecError(f"scale={self.scale!r}", hint="a positive number, or None")
            object.__setattr__(self, "scale", float(self.scale))
        sizes = tuple(map(count, self.block)) if isinstance(self.block, Sequence) else ()
        if len(sizes) != 2 or not all(n in (16, 32, 64, 128, 256) for n in sizes):
            raise SpecError(
                f"block={self.block!r}", hint="block=(128, 128), sizes of 16, 32, 64, 128 or 256"
            )
        object.__setattr__(self, "block", sizes)

    def _check_orders(self) -> None:
        for what in ("order", "key_order"):
            given = getattr(self, what)
            if isinstance(given, Sequence) and not isinstance(given, str):
                object.__setattr__(self, what, per_head(given))
        if self.order is not None and self.key_order is None and self.queries == self.keys:
            object.__setattr__(self, "key_order", self.order)
        for what, order, grid in (
            ("order", self.order, self.query_grid),
            ("key_order", self.key_order, self.key_grid),
        ):
            if order is None:
                continue
            if not isinstance(order, Order):
                raise SpecError(f"{what}={order!r}", hint='kdsl.orders.axes(grid, "HWF")')
            if order.tokens != grid.tokens:
                raise SpecError(
                    f"{what} is over {order.tokens} tokens, the spec has {grid.tokens}",
                    where=repr(order),
                    hint=f"an order over {grid!r}",
                )
            if isinstance(order, PerHead) and len(order.orders) != self.heads:
                raise SpecError(f"{what} is for {len(order.orders)} heads of {self.heads}")
        if self.stored and not self.storable:
            raise SpecError(
                f"groups of {self.group} query heads share keys that are stored in one order, and "
                "some have several key orders",
                hint="one key order for each group of heads, or stored=False",
            )

    def _check_mask(self) -> None:
        mask = self.mask
        mask.check_grids(self.query_grid, self.key_grid)
        if len(mask.variants) not in (1, self.heads):
            raise SpecError(
                f"masks for {len(mask.variants)} heads, the spec has {self.heads}",
                hint="one mask, or one for each query head",
            )
        for rows in (*mask.block_maps(), *([mask.choice] if mask.choice else ())):
            if rows.block != self.block:
                raise SpecError(
                    f"block map {rows.name!r} has blocks of {rows.block}, the spec {self.block}",
                    hint=f"block={rows.block}",
                )
        self._check_stored()
        for expr in self.element_mask.variants:
            check_int32(expr, self.index_bounds)
            check_tables(expr, self.index_bounds)

    def _check_stored(self) -> None:
        """A mask that speaks of stored positions must mean those of this spec."""
        spoken = frozenset[str]().union(*(e.variables() for e in self.mask.variants))
        same_grid = self.queries == self.keys
        for index, order, meant in (
            ("qs", self.order, self.mask.order),
            ("ks", self.key_order, self.mask.order if same_grid else None),
        ):
            if index in spoken and _moved(order) != _moved(meant):
                what = "queries" if index == "qs" else "keys"
                raise SpecError(
                    f"the mask speaks of another stored order of the {what} than the spec",
                    where=f"{meant!r} in the mask, {order!r} in the spec",
                    hint="masks.blocks(name, order=...) with the spec's order",
                )

    @property
    def query_grid(self) -> Grid:
        """The queries' grid."""
        assert isinstance(self.queries, Grid)
        return self.queries

    @property
    def key_grid(self) -> Grid:
        """The keys' grid."""
        assert isinstance(self.keys, Grid)
        return self.keys

    @property
    def storable(self) -> bool:
        """Whether the query heads of each group have one key order, so that keys can be stored."""
        if not isinstance(self.key_order, PerHead):
            return True
        orders = self.key_order.orders
        starts = range(0, self.heads, self.group)
        return all(len(set(orders[first : first + self.group])) == 1 for first in starts)

    @property
    def query_order(self) -> Order:
        """Stored order of the queries."""
        return self.order or identity(self.query_grid)

    @property
    def kv_order(self) -> Order:
        """Stored order of the keys."""
        return self.key_order or identity(self.key_grid)

    @property
    def group_heads(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.group_heads

    @property
    def softmax_scale(self) -> float:
        """The factor on scores."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def index_bounds(self) -> dict[str, Bounds]:
        """Ranges of the indices that a mask may name."""
        tokens = token_bounds(self.query_grid, self.key_grid)
        return {**tokens, "head": (0, self.heads - 1), "batch": (0, max(self.batch_limit - 1, 0))}

    @cached_property
    def batch_limit(self) -> int:
        """Most items a batch may have: as many as the shortest table that is looked up by item."""
        sizes = [2**15]
        if self.mask.choice is not None:
            held = self.heads, self.query_grid.tokens, self.key_grid.tokens
            sizes.append(self.mask.choice.most_batch(*held))
        for expr in self.mask.variants:
            for node in (n for n in expr.walk() if n.op == "table"):
                indexed = zip(node.args, node.data.shape, strict=True)
                sizes += [size for at, size in indexed if at.op == "var" and at.data == "batch"]
        return min(sizes)

    @cached_property
    def element_mask(self) -> Mask:
        """The mask with its block maps resolved to tables of this spec's size."""
        return self.mask.resolve(self.heads, self.query_grid.tokens, self.key_grid.tokens)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Every table of the mask and the orders, in the order kernels take them."""
        masks = tables_of(self.element_mask.variants)
        return distinct((*masks, *self.query_order.tables, *self.kv_order.tables))

    @property
    def open_tables(self) -> tuple[Table, ...]:
        """Tables whose values come with the call."""
        return tuple(t for t in self.given_tables if t.values is None)

    @property
    def given_tables(self) -> tuple[Table, ...]:
        """All tables but the one that the operator makes in a call: what its mask chooses."""
        made = self.mask.choice.name if self.mask.choice else None
        return tuple(t for t in self.tables if t.name != made)

    @cached_property
    def candidates(self) -> Attention:
        """The spec whose kept blocks are those that the mask's choice chooses from."""
        return replace(self, mask=self.mask.candidates)

    def settled(self, shared: bool = False) -> Attention:
        """The spec with a map of blocks, known at the call, in place of the mask's choice."""
        return self if self.mask.choice is None else replace(self, mask=self.mask.settled(shared))

    def rows(self, tables: Mapping[str, npt.NDArray[Any]] | None = None, batch: int = 1) -> Blocks:
        """Rows of full and partial blocks, by the interval reader.

        What the mask chooses in a call is read from the tables, a map under the choice's name.
        """
        if (choice := self.mask.choice) is not None:
            if choice.name not in (tables or {}):
                raise InputError(
                    f"the blocks of {choice.text} are chosen in the call, from q and k",
                    hint=f"tables={{{choice.name!r}: a map [heads, rows, columns]}}; "
                    "spec.candidates.rows() for those that can be chosen",
                )
            return self.settled().rows(tables, batch)
        if batch > self.batch_limit:
            raise InputError(f"a batch of {batch}", hint=f"{self.batch_limit}, as the tables hold")
        return classify(
            self.element_mask,
            self.query_grid,
            self.key_grid,
            block=self.block,
            query_order=self.query_order,
            key_order=self.kv_order,
            heads=self.heads,
            batch=batch,
            tables=tables,
        )

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        mask = self.mask
        return {
            "op": "attention",
            "queries": self.query_grid.to_json(),
            "keys": self.key_grid.to_json(),
            "heads": self.heads,
            "kv_heads": self.group_heads,
            "head_dim": self.head_dim,
            "dtype": self.dtype,
            "mask": {
                "variants": [serial.to_json(e) for e in mask.variants],
                "queries": mask.queries.to_json() if mask.queries else None,
                "keys": mask.keys.to_json() if mask.keys else None,
                "order": order_to_json(mask.order) if mask.order else None,
            },
            "order": order_to_json(self.order) if self.order else None,
            "key_order": order_to_json(self.key_order) if self.key_order else None,
            "layout": self.layout.to_json() if self.layout else None,
            "scale": None if self.scale is None else float(self.scale).hex(),
            "return_lse": self.return_lse,
            "block": list(self.block),
            **({"stored": True} if self.stored else {}),
        }

    @staticmethod
    @reading("attention spec")
    def from_json(value: Mapping[str, Any]) -> Attention:
        """The spec written by `to_json`; tables kept by digest need their values at the call."""
        names = {"op", *(f.name for f in fields(Attention))} - {"tokens"}
        # What is only written where it is true came after the form was frozen.
        whole({"stored": False, **value}, names, "attention spec")
        grid, order = optional(Grid.from_json), optional(order_from_json)
        held = value["mask"]
        variants = tuple(serial.from_json(e) for e in held["variants"])
        mask = Mask(variants, grid(held["queries"]), grid(held["keys"]), order(held["order"]))
        return Attention(
            queries=Grid.from_json(value["queries"]),
            keys=Grid.from_json(value["keys"]),
            heads=value["heads"],
            kv_heads=value["kv_heads"],
            head_dim=value["head_dim"],
            dtype=value["dtype"],
            mask=mask,
            order=order(value["order"]),
            key_order=order(value["key_order"]),
            layout=optional(Layout.from_json)(value["layout"]),
            scale=None if value["scale"] is None else float.fromhex(value["scale"]),
            return_lse=value["return_lse"],
            block=tuple(value["block"]),
            stored=value.get("stored", False),
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the whole spec."""
        return digest(self.to_json())

    @property
    def program(self) -> str:
        """Identity of the generated program: no sizes, constants or tables."""
        masks = sorted({serial.structure(e) for e in self.element_mask.variants})
        orders = [self.query_order.structure, self.kv_order.structure]
        layout = self.layout.to_json() if self.layout else None
        lead = ["attention", self.dtype, self.head_dim, self.group, list(self.block), layout]
        return digest([*lead, masks, orders, self.return_lse, *["stored"] * self.stored])


def _moved(order: Order | None) -> Order | None:
    """An order, or None where it moves nothing."""
    return None if order is None or order.is_identity else order
