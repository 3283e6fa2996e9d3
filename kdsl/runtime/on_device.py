"""Tables of a call that are on the device already: what a kernel needs of them is made there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, UnsupportedError
from kdsl.expr.tables import Table
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.config import table_dtype
from kdsl.kernels.lists import chosen
from kdsl.runtime.arrays import interpreting, without_modes
from kdsl.runtime.bound import remember
from kdsl.runtime.operator import array_tables, named, require_values
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.lists.launch import Rows
    from kdsl.runtime.program import Program

Source = tuple[str, str, "Tensor | None"]
"""A table of the leaves: name, dtype, and its values unless they come with the call."""


class OnDevice:
    """The tables of one spec, for calls that bring some of them as tensors.

    ``fixed`` are values of the host that were bound.
    """

    def __init__(self, spec: Attention, fixed: Mapping[str, npt.NDArray[Any]]) -> None:
        self.spec, self.fixed = spec, dict(fixed)
        self.choice = spec.mask.choice
        made = leaf_tables.made_on_host(spec)
        if self.choice is not None and made:
            raise UnsupportedError(
                "a mask that chooses blocks needs stored orders that are known when it is built, "
                "or a plain list",
                where=repr(spec.order)[:200],
                hint="orders.table(values)",
            )
        self.possible = bool(spec.open_tables) and not made
        self.needed = {t.name for t in spec.open_tables} - set(self.fixed)
        self.names = {t.name for t in spec.open_tables}
        self.kept: OrderedDict[Any, list[Source]] = OrderedDict()
        self.launches: dict[Any, tuple[dict[int, Tensor], dict[Any, Any]]] = {}
        """By device: counters and prepared launches, which outlive the lists of a call."""

    def reads(self, tables: Any, device: Any) -> bool:
        """Whether lists of a call are made on its device: this is decided here and nowhere else.

        So it is if all its tables are integer tensors there, and kernels run there.  Anything else
        goes through the host, errors included.  A mask that chooses blocks has no lists but these.
        """
        if self.choice is not None:
            return bool(device.type == "cuda" or interpreting())
        if not tables or not self.possible or not isinstance(tables, Mapping):
            return False
        if device.type != "cuda" and not interpreting():
            return False
        for name, x in tables.items():
            if name not in self.names or not hasattr(x, "is_cuda"):
                return False
            if x.device != device or x.dtype.is_floating_point or x.dtype.is_complex:
                return False
        return all(name in tables for name in self.needed)

    def sources(self, names: Sequence[str], device: Any) -> list[Source]:
        """Where the leaves' tables come from in calls that bring those of some names."""
        key = (tuple(names), device)
        if key not in self.kept:
            with without_modes():
                remember(self.kept, key, self._sources(set(names), device))
        return self.kept[key]

    def _sources(self, names: set[str], device: Any, spec: Attention | None = None) -> list[Source]:
        from kdsl.kernels.attention.launch import table_tensor

        given: dict[str, Any] = {**dict.fromkeys(names), **self.fixed}
        spec = spec or self.spec
        values = leaf_tables.table_values(spec, given)

        def kept(t: Table) -> Any:
            return None if t.name in names else table_tensor(t, values[t.name], device)

        return [(t.name, table_dtype(t), kept(t)) for t in leaf_tables.tables(spec)]

    def placed(self, tables: Any, device: Any) -> Mapping[str, Tensor]:
        """Tables of a call of a mask that chooses blocks, on its device; arrays are uploaded.

        InputError for names and values that the spec does not have, and for missing ones.
        """
        import torch

        given = named(self.spec, tables)
        if self.choice is not None and self.choice.name in given:
            raise InputError(
                f"table {self.choice.name!r} is made in the call", where=self.choice.text
            )
        require_values(self.spec, {**self.fixed, **given})
        out = {}
        for table in self.spec.open_tables:
            if (x := given.get(table.name)) is None:
                continue
            if not hasattr(x, "is_cuda") or x.device != device or x.dtype.is_floating_point:
                values = array_tables(self.spec, {table.name: x})[table.name]
                x = torch.from_numpy(table.checked(values)).to(device)
            out[table.name] = x
        return out

    def choice_sources(self, names: Sequence[str], device: Any) -> list[Source]:
        """Where the tables come from that `kdsl.kernels.lists.chosen` takes."""
        key = ("choice", tuple(names), device)
        if key not in self.kept:
            with without_modes():
                remember(self.kept, key, self._choice_sources(set(names), device))
        return self.kept[key]

    def _choice_sources(self, names: set[str], device: Any) -> list[Source]:
        import torch

        spec, out = self.spec, list[Source]()
        for order in chosen.pooled_orders(spec):
            if order is None:
                continue
            own = {t.name for t in order.tables if t.values is None}
            if own & names:
                out.append((own.pop(), "int32", None))
            else:
                parts = dict.fromkeys(order.parts)
                each = parts if len(parts) == 1 else order.parts
                index = np.stack([o.index(self.fixed) for o in each]).astype(np.int32)
                out.append(("order", "int32", torch.from_numpy(index).to(device)))
        if chosen.classified_in_call(spec):
            return out + self._sources(names, device, spec.candidates)
        if not chosen.any_block(spec):
            kept = torch.from_numpy(spec.candidates.rows().kept()).to(device)
            out.append(("open", "uint8", kept.view(torch.uint8)))
        return out

    def values(
        self, program: Program, tables: Any, device: Any, tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        """The leaves' tables of a call, what it chooses among them."""
        from kdsl.runtime.torch_ops import operands_of

        if self.choice is not None:
            tables = self.placed(tables, device)
            taken = operands_of(self.choice_sources(tuple(tables), device), tables)
            tables = {**tables, self.choice.name: program.chosen(tensors[0], tensors[1], taken)}
        return operands_of(self.sources(tuple(tables), device), tables)

    def check_capacity(
        self, program: Program, tables: Any, batch: int, tensors: Sequence[Tensor]
    ) -> None:
        """InputError where a row lists more blocks than the mask's capacity; waits."""
        flags: list[Rows] = []
        held = self.values(program, tables, tensors[0].device, tensors)
        program.lists(held, batch, False, flags)
        over = flags[0].overflow.nonzero().tolist()
        if over:
            item, head, row = over[0]
            others = f", as do {len(over) - 1} others" if len(over) > 1 else ""
            raise InputError(
                f"row {row} of head {head} of batch item {item} keeps more than "
                f"{self.spec.mask.capacity} blocks{others}: it visits all {flags[0].entries}",
                where=f"capacity={self.spec.mask.capacity}",
                hint="a larger capacity, or capacity=None",
            )

    def upload(
        self,
        program: Program,
        tables: Any,
        batch: int,
        device: Any,
        tensors: Sequence[Tensor],
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """(lists, tables) as a launch takes them, made on the current stream."""
        from kdsl.runtime.program import as_lists

        values = self.values(program, tables, device, tensors)
        made = program.lists(values, batch, False)
        return as_lists(made, 0, *self.launches.setdefault(device, ({}, {}))), tuple(values)
