"""Tables of a call that are on the device already: what a kernel needs of them is made there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from kdsl.expr.tables import Table
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.config import table_dtype
from kdsl.runtime.arrays import interpreting, without_modes
from kdsl.runtime.bound import remember
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.runtime.program import Program

Source = tuple[str, str, "Tensor | None"]
"""A table of the leaves: name, dtype, and its values unless they come with the call."""


class OnDevice:
    """The tables of one spec, for calls that bring some of them as tensors.

    ``fixed`` are values of the host that were bound.
    """

    def __init__(self, spec: Attention, fixed: Mapping[str, npt.NDArray[Any]]) -> None:
        self.spec, self.fixed = spec, dict(fixed)
        self.possible = bool(spec.open_tables) and not leaf_tables.made_on_host(spec)
        self.needed = {t.name for t in spec.open_tables} - set(self.fixed)
        self.names = {t.name for t in spec.open_tables}
        self.kept: OrderedDict[Any, list[Source]] = OrderedDict()
        self.counters: dict[Any, dict[int, Tensor]] = {}

    def reads(self, tables: Any, device: Any) -> bool:
        """Whether lists of a call are made on its device: this is decided here and nowhere else.

        So it is if all its tables are integer tensors there, and kernels run there.  Anything else
        goes through the host, errors included.
        """
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

    def _sources(self, names: set[str], device: Any) -> list[Source]:
        from kdsl.kernels.attention.launch import table_tensor

        given: dict[str, Any] = {**dict.fromkeys(names), **self.fixed}
        values = leaf_tables.table_values(self.spec, given)

        def kept(t: Table) -> Any:
            return None if t.name in names else table_tensor(t, values[t.name], device)

        return [(t.name, table_dtype(t), kept(t)) for t in leaf_tables.tables(self.spec)]

    def upload(
        self, program: Program, tables: Mapping[str, Tensor], batch: int, device: Any
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """(lists, tables) as a launch takes them, made on the current stream."""
        from kdsl.runtime.program import as_lists
        from kdsl.runtime.torch_ops import operands_of

        values = operands_of(self.sources(tuple(tables), device), tables)
        held = as_lists(program.lists(values, batch, False))
        # A launch leaves its stream's counter at 0: the next call's lists can use it again.
        return replace(held, counters=self.counters.setdefault(device, {})), tuple(values)
