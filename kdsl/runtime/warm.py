"""Calls of kinds that were seen before: as little as possible between a call and its launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from kdsl.kernels.attention.ready import ALIGNMENT, Ready
from kdsl.runtime.bound import KEPT_BINDINGS

if TYPE_CHECKING:
    from kdsl.kernels.attention.launch import Lists

KEPT_KINDS = 64
"""Kinds of calls of one operator: they differ in batch and strides."""
RECENT = 4
"""Those of them that are looked for first."""

Same = Callable[..., bool]
"""Says whether tensors are of one kind."""


class Warm:
    """Ready calls of one operator by the form of their tensors."""

    def __init__(self) -> None:
        self.kept: dict[Any, Ready] = {}
        self.recent: tuple[tuple[Same, Ready], ...] = ()

    def __call__(self, tensors: Sequence[Any]) -> Any:
        """The results of a call without tables of its own, or None: it is none of those that are
        ready, or torch must see it."""
        if is_compiling():
            return None
        try:
            for kind in self.recent:
                if kind[0](*tensors):
                    ready: Ready | None = kind[1]
                    break
            else:
                ready = self._found(tensors)
        except (AttributeError, TypeError):
            return None  # no tensors, or not so many
        if ready is None:
            return None
        addresses = tuple(map(_address, tensors))
        return None if reduce(or_, addresses) % ALIGNMENT else ready(addresses)

    def _found(self, tensors: Sequence[Any]) -> Ready | None:
        ready = self.kept.get(form(tensors)) if self.kept else None
        if ready is None:
            return None
        if any(x.requires_grad for x in tensors):
            return None if is_grad_enabled() else ready
        self._prefer(tensors, ready)
        return ready

    def _prefer(self, tensors: Sequence[Tensor], ready: Ready) -> None:
        guards = tensor_guards()
        if guards is not None:
            same = guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
            self.recent = ((same, ready), *self.recent[: RECENT - 1])

    def keep(
        self, tensors: Sequence[Tensor], held: Lists, make: Callable[[], Ready | None]
    ) -> None:
        """Know a call that was made, with its lists, and the stream it was made on."""
        key = form(tensors)
        ready = self.kept.get(key)
        if ready is None or ready.held is not held:
            if (ready := make()) is None:
                return
            lists = {id(r.held) for r in self.kept.values()}
            if len(self.kept) >= KEPT_KINDS or len(lists) >= KEPT_BINDINGS:
                self.kept.clear()
            self.kept[key], self.recent = ready, ()
        ready.meet()


_address: Callable[[Any], int] = Tensor.data_ptr


def form(tensors: Sequence[Any]) -> Any:
    """What two calls must have in common, but for alignment, for the same launches to serve them.

    Types are in it because subclasses of tensors are torch's to see; none of them is ever kept.
    """
    parts: list[Any] = []
    for x in tensors:
        parts += (x.shape, x.stride(), x.dtype, x.device, type(x))
    return tuple(parts)


@cache
def tensor_guards() -> Any:
    """What torch's compiler knows kinds of tensors by: a comparison in C++, five times as fast as
    reading them here.  None where this torch has not what we know, which is tried out.

    It compares whether gradients are wanted too, so it is made of tensors that want none.
    """
    try:
        from torch._C._dynamo import guards

        made: Any = guards.TensorGuards

        def given(**other: Any) -> Tensor:
            return torch.zeros(2, 3, **other)

        a = given()
        check = made(a, given(), dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        others = (
            torch.zeros(2, 4), torch.zeros(3, 2).t(), given(dtype=torch.float16),
            given(requires_grad=True), torch.nn.Parameter(given(), False), given(device="meta"),
        )  # fmt: skip
        trusted = check(a, given()) and not any(check(a, x) for x in others)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return None
    return made if trusted else None
