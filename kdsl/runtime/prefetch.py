"""Blocks of the next layers on their way to the GPU while attention of this one runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsl.errors import InputError
from kdsl.plans import AttentionPlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Slot:
    """A buffer on the device: what it holds, and what must end before it is read or written."""

    bits: Tensor
    held: tuple[int, int] | None = None
    copied: Any = None
    """Event on the side stream: the copy into it ended."""
    used: Any = None
    """Event on the caller's stream: what read it was launched before."""


class Prefetcher:
    """Packed blocks of a plan, layer by layer, copied ahead on a side stream.

    The plan's bits lie in pinned memory once and for all; ``depth`` layers' bits on the device.
    `take` gives those of one layer and starts the copies of the ones that follow it, so that a copy
    of a layer (7 MB for 40 heads of 1,182 x 1,182 blocks) has the attention of ``depth - 1`` layers
    to end.  Nothing waits on the host.

    Layers are taken in turn, ``passes`` times a step (two for guidance that runs the model twice).
    Any other sequence is right too, but its copies are not ahead; ``misses`` counts them.  Every
    row of blocks is checked before the first copy.  On a CPU device copies are plain ones.
    """

    def __init__(
        self,
        plan: AttentionPlan,
        device: Any = "cuda",
        *,
        steps: int | None = None,
        passes: int = 1,
        depth: int = 2,
        check: bool = True,
    ) -> None:
        import torch

        if depth < 2 or passes < 1:
            raise InputError(f"depth={depth}, passes={passes}", hint="depth of at least 2")
        if check:
            plan.check()
        self.plan, self.passes = plan, passes
        self.steps = plan.sampling_steps if steps is None else steps
        self.device = torch.device(device)
        self.cuda: Any = torch.cuda if self.device.type == "cuda" else None
        self.misses = 0
        bits = plan.plan["blocks"]
        self.host = torch.empty(bits.shape, dtype=torch.uint8, pin_memory=self.cuda is not None)
        self.host.numpy()[...] = bits
        size = int(self.host.shape[2])
        made = (torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(depth))
        self.slots = [Slot(buffer) for buffer in made]
        self._side: Any = None
        if self.cuda:
            self._side = self.cuda.Stream(self.device)
            # The buffers' memory may have been freed with kernels still to run on it.
            self._side.wait_stream(self.cuda.current_stream(self.device))
        self._last: tuple[int, int, int] | None = None
        self._current: Slot | None = None

    def take(self, layer: int, step: int) -> Tensor:
        """Packed blocks of a layer at a step, uint8 ``[bytes]``; see `AttentionPlan.bits`.

        They may be read by what is launched on the current stream before the next `take`.
        """
        number = self.plan.range_of(step, self.steps)
        if not 0 <= layer < self.plan.layers:
            raise InputError(f"layer {layer}", hint=f"0 to {self.plan.layers - 1}")
        self._release()
        at = (step, self._pass(layer, step), layer)
        self._last = at
        slot = self._slot_of((number, layer))
        if slot is None:
            self.misses += 1
            slot = self._fill((number, layer), keep=())
        if self.cuda:
            self.cuda.current_stream(self.device).wait_event(slot.copied)
        self._current = slot
        wanted = [(number, layer), *self._following(at)]
        for key in wanted[1:]:
            if self._slot_of(key) is None:
                self._fill(key, keep=wanted)
        return slot.bits

    def kept(self, layer: int, step: int) -> Tensor:
        """The map ``[heads, rows, columns]`` of bool on the device, unpacked there."""
        shape = (self.plan.heads, self.plan.rows, self.plan.columns)
        return unpacked(self.take(layer, step), shape)

    def _pass(self, layer: int, step: int) -> int:
        """How often this step went through the layers before."""
        if self._last is None or self._last[0] != step:
            return 0
        return self._last[1] + (layer <= self._last[2])

    def _following(self, at: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
        """Ranges and layers that come next, as many as there are other slots."""
        step, turn, layer = at
        for _ in range(len(self.slots) - 1):
            layer += 1
            if layer == self.plan.layers:
                layer, turn = 0, turn + 1
                if turn >= self.passes:
                    step, turn = step + 1, 0
            if step >= self.steps:
                return
            yield self.plan.range_of(step, self.steps), layer

    def _slot_of(self, key: tuple[int, int]) -> Slot | None:
        return next((s for s in self.slots if s.held == key), None)

    def _fill(self, key: tuple[int, int], keep: Any) -> Slot:
        """Copy into a slot that holds nothing of ``keep``."""
        slot = next(s for s in self.slots if s.held not in keep and s is not self._current)
        slot.held = key
        if not self.cuda:
            self._copy(slot, key)
            return slot
        with self.cuda.stream(self._side):
            if slot.used is not None:
                self._side.wait_event(slot.used)
            self._copy(slot, key)
            slot.copied = self.cuda.Event()
            slot.copied.record(self._side)
        return slot

    def _copy(self, slot: Slot, key: tuple[int, int]) -> None:
        slot.bits.copy_(self.host[key], non_blocking=True)

    def _release(self) -> None:
        """What was launched since the last `take` may read its slot, and nothing later."""
        if self._current is not None and self.cuda:
            self._current.used = self.cuda.Event()
            self._current.used.record(self.cuda.current_stream(self.device))
        self._current = None


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Packed bits as bool of a shape, on their device: least significant bit first."""
    import torch

    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    each = (bits[:, None] >> places) & 1
    return each.reshape(-1)[: math.prod(shape)].reshape(shape).bool()
