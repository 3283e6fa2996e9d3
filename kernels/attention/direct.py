"""Launches through CUDA's driver: what is left to do is to say where the tensors are.

Triton's launcher takes tens of microseconds for a kernel of fifty arguments: it parses each, asks
the driver about every pointer, and encodes each tensor map anew.  Here arguments stay where the
driver reads them, and tensor maps get another address.  Whatever this module does not know for
certain, an argument's type, a parameter's size, a launch attribute, leaves the launch to Triton.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MAP_BYTES, MAP_ALIGNMENT = 128, 64
L2_PROMOTION_128B = 2
FILL_NAN = {"zero": 0, "nan": 1}
NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
"""Arguments that are no pointers, by Triton's spelling of their types."""


class Unknown(Exception):
    """Something that only Triton knows how to pass."""


class Driver:
    """The calls that are needed.  AttributeError where the driver has not all of them."""

    def __init__(self, library: Any) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        self.launch = library.cuLaunchKernel
        self.launch.argtypes = (pointer, *[number] * 7, pointer, pointer, pointer)
        self.replace_address = library.cuTensorMapReplaceAddress
        self.replace_address.argtypes = (pointer, pointer)
        self._encode = library.cuTensorMapEncodeTiled
        self._encode.argtypes = (
            pointer, ctypes.c_int, ctypes.c_uint32, *[pointer] * 5, *[ctypes.c_int] * 4,
        )  # fmt: skip
        self._info = library.cuFuncGetParamInfo
        self._info.argtypes = (pointer, ctypes.c_size_t, pointer, pointer)

    def parameter_sizes(self, function: int) -> list[int]:
        """Bytes of each parameter of a kernel."""
        sizes: list[int] = []
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        refs = ctypes.byref(offset), ctypes.byref(size)
        while self._info(function, len(sizes), *refs) == 0:
            sizes.append(size.value)
        return sizes

    def encode(self, at: int, descriptor: Any, meta: Mapping[str, Any]) -> None:
        """Write the tensor map of a descriptor, as Triton's launcher does."""
        from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

        rank = len(descriptor.shape)
        # The driver counts dimensions from the innermost.
        shape = (ctypes.c_uint64 * rank)(*reversed(descriptor.shape))
        steps = [n * meta["elem_size"] for n in descriptor.strides]
        strides = (ctypes.c_uint64 * rank)(*reversed(steps[:-1]), 0)
        box = (ctypes.c_uint32 * rank)(*reversed(meta["block_size"]))
        ones = (ctypes.c_uint32 * rank)(*[1] * rank)
        error = self._encode(
            at, TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]], rank, descriptor.base.data_ptr(),
            shape, strides, box, ones, 0, meta["swizzle"], L2_PROMOTION_128B,
            FILL_NAN[descriptor.padding],
        )  # fmt: skip
        if error:
            raise Unknown(f"tensor map: error {error}")


@cache
def driver() -> Driver | None:
    """The driver of this machine, or None where it lacks something."""
    try:
        return Driver(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError):
        return None


@dataclass(frozen=True)
class Cell:
    """A parameter where the driver reads it: its address and size; ``held`` owns the memory."""

    at: int
    size: int
    held: Any

    @staticmethod
    def of(value: Any) -> Cell:
        """A number."""
        return Cell(ctypes.addressof(value), ctypes.sizeof(value), value)

    @staticmethod
    def map() -> Cell:
        """Room for a tensor map."""
        room = (ctypes.c_byte * (MAP_BYTES + MAP_ALIGNMENT))()
        start = ctypes.addressof(room)
        return Cell(start + -start % MAP_ALIGNMENT, MAP_BYTES, room)


@dataclass(frozen=True)
class Direct:
    """A launch whose parameters lie ready.  Calls from several threads take turns."""

    cuda: Driver
    function: int
    programs: int
    threads: int
    shared: int
    cells: tuple[Cell, ...]
    pointers: tuple[tuple[Any, str], ...]
    """Addresses that change, and the tensors they are of."""
    maps: tuple[tuple[int, str], ...]
    """Tensor maps that change, and the tensors they describe."""
    held: tuple[tuple[Any, str], ...]
    """Addresses of the lists."""
    tables: tuple[Any, ...]
    """Addresses of the tables."""
    parameters: Any = field(repr=False)
    lock: Any = field(default_factory=threading.Lock, repr=False)

    def __call__(
        self, tensors: Mapping[str, Tensor], lists: Any, tables: Sequence[Tensor], stream: int
    ) -> None:
        """Launch; RuntimeError with the driver's number for what went wrong."""
        replace, error = self.cuda.replace_address, 0
        with self.lock:
            for cell, role in self.pointers:
                cell.value = tensors[role].data_ptr()
            for cell, role in self.held:
                cell.value = getattr(lists, role).data_ptr()
            for cell, table in zip(self.tables, tables, strict=True):
                cell.value = table.data_ptr()
            for at, role in self.maps:
                error |= replace(at, tensors[role].data_ptr())
            error = error or self.cuda.launch(
                self.function, self.programs, 1, 1, self.threads, 1, 1, self.shared, stream,
                self.parameters, None,
            )  # fmt: skip
        if error:
            raise RuntimeError(f"CUDA error {error} at a launch")


def direct(
    kernel: Any,
    names: Sequence[str],
    values: Mapping[str, Any],
    programs: int,
    roles: Mapping[str, str],
    listed: Collection[str] = (),
    cuda: Driver | None = None,
) -> Direct | None:
    """The launch of a compiled Triton kernel that was launched with these values; None where only
    Triton knows how.

    ``roles`` says of which tensor a pointer or a descriptor is that changes from call to call;
    those in ``listed`` are attributes of the call's lists.
    """
    cuda = cuda or driver()
    if cuda is None:
        return None
    try:
        plain = only(kernel.metadata)
        cells: list[Cell] = []
        pointers: list[tuple[Any, str]] = []
        maps: list[tuple[int, str]] = []
        held: list[tuple[Any, str]] = []
        tables: list[Any] = []
        metas = iter(getattr(kernel.metadata, "tensordesc_meta", None) or ())
        for name in names:
            kind, value, role = kernel.src.signature[name], values[name], roles.get(name)
            made = list(parameters_of(kind, value, metas, cuda))
            if name == "tables":
                tables = [cell.held for cell in made]
            elif role is not None and made and made[0].size == MAP_BYTES:
                maps.append((made[0].at, role))
            elif role is not None and made:
                (held if role in listed else pointers).append((made[0].held, role))
            cells += made
        sizes = cuda.parameter_sizes(kernel.function)
        if sizes[: len(cells)] != [c.size for c in cells]:
            raise Unknown("parameters of other sizes")
        # Scratch memory, of which these kernels have none.
        for size in sizes[len(cells) :]:
            if size != ctypes.sizeof(ctypes.c_uint64):
                raise Unknown("a parameter at the end")
            cells.append(Cell.of(ctypes.c_uint64()))
    except (
        Unknown, ImportError, LookupError, AttributeError, TypeError, ValueError, StopIteration,
    ):  # fmt: skip
        return None
    array = (ctypes.c_void_p * len(cells))(*(c.at for c in cells))
    return Direct(
        cuda, kernel.function, programs, 32 * plain.num_warps, plain.shared, tuple(cells),
        tuple(pointers), tuple(maps), tuple(held), tuple(tables), array,
    )  # fmt: skip


def only(metadata: Any) -> Any:
    """The metadata of a kernel that is launched without clusters, attributes or scratch memory."""
    wants = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    if metadata.num_ctas != 1 or any(getattr(metadata, name) for name in wants):
        raise Unknown("launch attributes")
    return metadata


def parameters_of(kind: Any, value: Any, metas: Iterator[Any], cuda: Driver) -> Iterator[Cell]:
    """What an argument is to the compiled kernel: nothing for a constant, else its parameters."""
    if isinstance(kind, tuple):
        for each, part in zip(kind, value, strict=True):
            yield from parameters_of(each, part, metas, cuda)
    elif kind == "constexpr":
        return
    elif kind.startswith("*"):
        yield Cell.of(ctypes.c_uint64(value.data_ptr()))
    elif kind.startswith("tensordesc"):
        meta = next(metas)
        if meta is None or meta["fp4_padded"] or getattr(value, "round_f32_to_tf32", False):
            raise Unknown("a descriptor that is no plain tensor map")
        made = Cell.map()
        cuda.encode(made.at, value, meta)
        yield made
        yield from (Cell.of(ctypes.c_int32(n)) for n in value.shape)
        yield from (Cell.of(ctypes.c_int64(n)) for n in value.strides)
    else:
        yield Cell.of(NUMBERS[kind](value))
