"""A made-up driver that keeps what each launch reads."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from benchmarks import made_up


class Driver(made_up.Driver):
    """Keeps the words of the parameters of launches, tensor maps' addresses among them."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[int, set[int]]] = []
        """Kernels that were launched, by number, and what they read."""
        self.streams: list[int] = []
        self.launch, self.replace_address = self._launch, self._replace

    def _replace(self, at: int, address: int) -> int:
        ctypes.memmove(at, struct.pack("<Q", address), 8)
        return 0

    def _launch(self, config: int, function: int, parameters: int, extra: None) -> int:
        sizes = self.kernels[function]
        at = (ctypes.c_void_p * len(sizes)).from_address(parameters)
        words = [ctypes.string_at(at[i] or 0, 8) for i, n in enumerate(sizes) if n >= 8]
        self.read.append((function, {struct.unpack("<Q", w)[0] for w in words}))
        self.streams.append(struct.unpack_from("<Q", ctypes.string_at(config, 56), 32)[0])
        return 0


def addresses(*tensors: Any) -> set[int]:
    """Where tensors lie."""
    return {x.data_ptr() for x in tensors}
