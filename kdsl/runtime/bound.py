"""Rows of blocks of an attention spec for given table values, kept on the host and on devices."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.kernels.attention.quantized.tunable import tunable_of
from kdsl.kernels.launching.place import stream_of
from kdsl.kernels.lists import packed
from kdsl.runtime import codecache
from kdsl.runtime.arrays import without_modes
from kdsl.specs import Attention

KEPT_BINDINGS = 8
"""Values of open tables, batch sizes and devices whose rows of blocks an operator remembers."""


class Bound:
    """Rows of blocks for given table values, and their copies on devices."""

    def __init__(
        self,
        spec: Attention,
        tables: dict[str, npt.NDArray[Any]],
        batch: int,
        templates: tuple[str, ...],
    ) -> None:
        self.tables, self.tunable = tables, tunable_of(spec, tables, batch, templates)
        self.on_device: OrderedDict[Any, tuple[Any, tuple[Any, ...]]] = OrderedDict()
        self.as_operands: OrderedDict[Any, tuple[list[Any], list[Any]]] = OrderedDict()
        self.streams: set[tuple[Any, int]] = set()
        """Streams that memory is known to be used on: its key in one of the above, stream."""

    @property
    def blocks(self) -> Blocks:
        """Rows of full and partial blocks."""
        assert self.tunable.blocks is not None
        return self.tunable.blocks

    def upload(self, device: Any, masks: str = "leaf") -> tuple[Any, tuple[Any, ...]]:
        """(lists, tables) on a device, made once; with partial blocks as bits if a configuration's
        ``masks`` are."""
        from kdsl.kernels.attention import launch

        key = (device, masks)
        if key not in self.on_device:
            spec = self.tunable.spec
            lists = launch.lists(self.blocks, spec.heads, device)
            tables = launch.table_tensors(spec, self.tables, device)
            if masks == "bits":
                tables += packed.of_lists(spec, codecache.load, lists, tables)
            made = lists, tables
            remember(self.on_device, key, made)
            self.streams = {s for s in self.streams if s[0] != key}
        held, tables = found = self.on_device[key]
        if device.type == "cuda":
            self._used(key, lambda: (*held.tensors, *tables))
        return found

    def _used(self, held: tuple[Any, Any], memory: Callable[[], Sequence[Any]]) -> None:
        """Tell torch's allocator, once, that the current stream reads some memory.

        It was allocated on whichever stream was the current one then; let go of, it would be handed
        out there while kernels of this one still read it.
        """
        key = (held, stream_of(held[0]))
        if key not in self.streams:
            import torch

            stream = torch.cuda.current_stream(held[0])
            self.streams.add(key)
            with without_modes():
                for x in memory():
                    x.record_stream(stream)

    def operands(
        self, device: Any, inverted: bool, masks: str = "leaf"
    ) -> tuple[list[Any], list[Any]]:
        """(lists, tables) as a `Program` on kernels takes them; made once."""
        from kdsl.kernels.attention.backward import launch

        key = (device, inverted)
        if key not in self.as_operands:
            with without_modes():
                held, tables = self.upload(device, masks)
                lists = held.tensors
                if inverted:
                    lists += launch.inverted(self.blocks, self.tunable.spec, device).tensors
            remember(self.as_operands, key, (lists, list(tables)))
            self.streams = {s for s in self.streams if s[0] != key}
        found = self.as_operands[key]
        if device.type == "cuda":
            self._used(key, lambda: (*found[0], *found[1]))
        return found

    def values(self, device: Any) -> tuple[list[Any], list[Any]]:
        """(no lists, all tables) as a `Program` on the reference takes them; made once."""
        import torch

        if device not in self.as_operands:
            held = (self.tables.get(t.name, t.values) for t in self.tunable.spec.given_tables)
            with without_modes():
                tables = [torch.from_numpy(np.array(v)).to(device) for v in held]
            remember(self.as_operands, device, ([], tables))
        return self.as_operands[device]


def remember(held: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Keep a value, and no more than `KEPT_BINDINGS`: the oldest goes."""
    held[key] = value
    while len(held) > KEPT_BINDINGS:
        held.popitem(last=False)
