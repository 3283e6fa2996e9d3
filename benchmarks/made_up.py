"""A GPU that is made up: kernels are launched in no time, so that the host's part of a call can be
run, timed and counted without one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from kdsl.kernels.launching import direct
from kdsl.kernels.lists import packed
from kdsl.runtime import codecache
from kdsl.runtime.attention import AttentionOperator

SIZES = {"*": 8, "i32": 4, "fp32": 4}
"""Bytes of a parameter by Triton's spelling of its type."""


class Driver(direct.Driver):
    """CUDA's, whose launches are calls into C that do nothing: what the call itself costs stays."""

    def __init__(self) -> None:
        # fegetround() is 0, and takes no notice of arguments.
        library = ctypes.CDLL("libm.so.6")
        pointer = ctypes.c_void_p
        self.launch, self.replace_address = library["fegetround"], library["fegetround"]
        self.launch.argtypes = (pointer, pointer, pointer, pointer)
        self.replace_address.argtypes = (pointer, pointer)
        self.kernels: list[list[int]] = []
        """Sizes of the parameters of each."""

    def parameter_sizes(self, function: int) -> list[int]:
        """See `direct.Driver`."""
        return self.kernels[function]

    def encoded(self, descriptor: Any, meta: Any) -> bytes:
        """See `direct.Driver`."""
        return bytes(direct.MAP_BYTES)

    def enter(self, device: int) -> None:
        """See `direct.Driver`."""


class Module:
    """A generated file whose kernels are launched on a made-up driver."""

    def __init__(self, op: AttentionOperator, template: str, driver: Driver) -> None:
        self._file, self._driver = codecache.load(op.tunable.source_of(template)), driver
        self._kernels: dict[str, Kernel] = {}

    def __getattr__(self, name: str) -> Kernel:
        if name not in self._kernels:
            self._kernels[name] = Kernel(getattr(self._file, name).arg_names, self._driver)
        return self._kernels[name]


class Kernel:
    """As Triton's, but never compiled."""

    def __init__(self, arg_names: list[str], driver: Driver) -> None:
        self.arg_names, self._driver = arg_names, driver
        self.launches: list[tuple[Any, ...]] = []
        """Arguments of those that went through Triton's launcher."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._first

    def _first(self, **given: Any) -> Any:
        values = {name: given[name] for name in self.arg_names}
        signature = {name: _kind(name, value) for name, value in values.items()}
        sizes = [n for name, value in values.items() for n in _sizes(signature[name], value)]
        self._driver.kernels.append([*sizes, 8, 8])
        meta = {
            "elem_size": 2, "elem_type": 10, "block_size": [1, 1, 64, 64], "swizzle": 3,
            "fp4_padded": False,
        }  # fmt: skip
        maps = sum(kind == "tensordesc" for kind in signature.values())
        metadata = SimpleNamespace(
            num_warps=8, num_ctas=1, shared=1 << 17, launch_cooperative_grid=False,
            launch_pdl=False, global_scratch_size=0, profile_scratch_size=0,
            tensordesc_meta=[meta] * maps,
        )  # fmt: skip
        return SimpleNamespace(
            metadata=metadata, src=SimpleNamespace(signature=signature),
            function=len(self._driver.kernels) - 1, packed_metadata=None,
            launch_metadata=lambda *arguments: None,
            run=lambda *arguments: self.launches.append(arguments[-len(self.arg_names) :]),
        )  # fmt: skip


def _kind(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_kind(name, x) for x in value)
    if name.isupper() or value is None:
        return "constexpr"
    if hasattr(value, "data_ptr"):
        return "*"
    return "tensordesc" if hasattr(value, "base") else "fp32" if type(value) is float else "i32"


def _sizes(kind: Any, value: Any) -> list[int]:
    if isinstance(kind, tuple):
        return [n for each, x in zip(kind, value, strict=True) for n in _sizes(each, x)]
    if kind == "tensordesc":
        rank = len(value.shape)
        return [direct.MAP_BYTES, *[4] * rank, *[8] * rank]
    return [] if kind == "constexpr" else [SIZES[kind]]


@contextmanager
def gpu(op: AttentionOperator, template: str, driver: Driver | None = None) -> Iterator[Driver]:
    """Within it, first calls of ``op`` on CPU tensors prepare launches on a driver that is made up.

    Later calls find them prepared, also outside.
    """
    driver = driver or Driver()
    op.modules[template] = Module(op, template, driver)
    # The one check that a CPU tensor would not pass.
    op._check_device = lambda device: None  # type: ignore[method-assign]
    with (
        patch.object(direct, "driver", lambda: driver),
        # A kernel makes the bits of partial blocks, once.
        patch.object(packed, "of_lists", _no_bits),
    ):
        yield driver


def _no_bits(*given: Any) -> tuple[Any, ...]:
    import torch

    return tuple(torch.zeros(1, dtype=torch.int32) for _ in range(3))
