"""What a launch asks of its device: the current stream, the current device, whether a graph is
captured.

Torch's public answers make objects (a stream costs microseconds), so its own short ones are asked
where a version has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Place:
    """Questions about devices of one type."""

    stream: Callable[[Any], int]
    """The current stream of a device, given by its index."""
    device: Callable[[], Any]
    """The index of the current device."""
    capturing: Callable[[], bool]
    """Whether the current stream is being captured in a graph."""


def _nothing(index: Any = None) -> int:
    return 0


@cache
def place(kind: str) -> Place:
    """What there is to ask of devices of a type; elsewhere than on CUDA everything is 0."""
    if kind != "cuda":
        return Place(_nothing, lambda: None, lambda: False)
    import torch

    return Place(
        getattr(torch._C, "_cuda_getCurrentRawStream", None)
        or (lambda index: int(torch.cuda.current_stream(index).cuda_stream)),
        getattr(torch._C, "_cuda_getDevice", None) or torch.cuda.current_device,
        getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)
        or torch.cuda.is_current_stream_capturing,
    )


def stream_of(device: Any) -> int:
    """The current stream of a device; 0 where it has none."""
    return place(device.type).stream(device.index)


def multiprocessors(device: Any) -> int:
    """How many a device has."""
    import torch

    # torch keeps the properties of devices that it was asked about.
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
