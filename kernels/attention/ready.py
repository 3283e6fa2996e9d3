"""Calls that are ready: what one like an earlier call has left to do.

Outputs are made, addresses put together, kernels launched.  Whatever else a call does (checks, rows
of blocks, tables, arguments, who reads which memory on which stream) was done in the call before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from kdsl.kernels.launching.place import Place, place
from kdsl.kernels.launching.prepared import heard

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.launch import Lists
    from kdsl.kernels.launching.direct import Direct

ALIGNMENT = 16
"""Bytes that addresses are a multiple of."""


Step = tuple["Direct", tuple[int, ...]]
"""A launch that takes a call's addresses as they stand, and the addresses of lists and tables."""


@dataclass(frozen=True, eq=False)
class Ready:
    """A call on tensors of known shapes, strides, types and device, aligned to `ALIGNMENT`."""

    held: Lists
    tables: tuple[Tensor, ...]
    """Kept, as the lists are, for kernels read them."""
    place: Place
    index: Any
    """Of the device."""
    out: Callable[[], Tensor]
    lse: Callable[[], Tensor]
    asked: bool
    """Whether the log-sum-exp is a result; if not, all calls have one, which is not written."""
    copies: tuple[Callable[[], Tensor], ...]
    steps: tuple[Step, ...]
    counts: bool
    """Whether a kernel takes a counter, of which there is one a stream."""
    streams: dict[int, int] = field(default_factory=dict)
    """The counters' addresses by stream, of streams that are known to read the memory."""
    counters: dict[int, Tensor] = field(default_factory=dict)

    def meet(self) -> None:
        """Know the current stream, which lists and tables were recorded on."""
        stream = self.place.stream(self.index)
        if self.counts and self.place.capturing():
            return  # each launch in a graph has a counter of its own
        if self.counts:
            self.counters[stream] = counter = self.held.counter(stream)
        self.streams[stream] = counter.data_ptr() if self.counts else 0

    def __call__(self, addresses: tuple[int, ...]) -> Any:
        """The output, with the log-sum-exp if it is asked for, of tensors at some addresses.

        None, and nothing done, where the call is not like the earlier ones after all: another
        current device, a new stream, a graph's capture, listeners to launches.
        """
        place = self.place
        if place.device() != self.index:
            return None
        stream = place.stream(self.index)
        counter = self.streams.get(stream)
        if counter is None or (self.counts and place.capturing()) or heard():
            return None
        out, lse = self.out(), self.lse()
        if self.copies:
            made = [make() for make in self.copies]
            addresses += tuple([x.data_ptr() for x in made])
        addresses += (out.data_ptr(), lse.data_ptr(), counter)
        for launch, fixed in self.steps:
            launch(addresses, fixed, stream)
        return (out, lse) if self.asked else out


def ready(
    held: Lists,
    tables: tuple[Tensor, ...],
    kind: Any,
    names: Sequence[str],
    tensors: Sequence[Tensor],
    results: tuple[Tensor, Tensor],
    asked: bool,
    copied: Sequence[str] = (),
) -> Ready | None:
    """Calls like one that was made and prepared under its ``kind``; None where it was not.

    ``names`` are the tensors' in the kernels, ``copied`` those that a launch before copies;
    ``results`` are output and log-sum-exp, ``asked`` says whether the latter is wanted.
    """
    given = dict(zip(names, tensors, strict=True))
    slots = [*names, *(f"{name}_stored" for name in copied), "o", "lse", "counter"]
    roles = {role: slots.index(role) for role in slots}
    launches = []
    if copied:
        # What is not copied stays where it is, under both names.
        stored = {f"{name}_stored": roles[name] for name in names} | roles
        launches.append((("copy", kind), stored))
        roles |= {name: roles[f"{name}_stored"] for name in copied}
    launches.append((kind, roles))
    steps: list[Step] = []
    counts = False
    for key, places in launches:
        found = held.prepared.get(key)
        if found is None or found.direct is None:
            return None
        counts |= "counter" in found.direct.roles
        steps.append((found.direct.taking(places), found.direct.fixed_of(held, tables)))
    if any(x.data_ptr() % ALIGNMENT for x in (*tensors, *results)):
        return None
    out, lse = results
    return Ready(
        held, tables, place(out.device.type), out.device.index, _like(out),
        _like(lse) if asked else lambda: lse, asked, tuple(_like(given[n]) for n in copied),
        tuple(steps), counts,
    )  # fmt: skip


def _like(x: Tensor) -> Callable[[], Tensor]:
    """Makes contiguous tensors of a shape and dtype on its device, which must be the current one.

    By what code of torch's compiler makes them with, in half the time, where this torch has it.
    """
    import torch

    strides = torch.empty(x.shape, device="meta").stride()
    try:
        from torch._C._dynamo import guards

        quick = getattr(guards, f"_empty_strided_{x.device.type}")
        make: Callable[[], Tensor] = partial(quick, tuple(x.shape), strides, x.dtype)
        made = make()
        if (made.shape, made.stride(), made.dtype, made.device) == (
            x.shape, strides, x.dtype, x.device,
        ):  # fmt: skip
            return make
    except (ImportError, AttributeError, TypeError, RuntimeError):
        pass
    return partial(torch.empty, tuple(x.shape), dtype=x.dtype, device=x.device)
