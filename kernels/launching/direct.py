"""Launches through CUDA's driver: what is left to do is to say where the tensors are.

Triton's launcher takes tens of microseconds for a kernel of fifty arguments: it parses each, asks
the driver about every pointer, and encodes each tensor map anew.  Here arguments stay where the
driver reads them, and tensor maps get another address.  Whatever this module does not know for
certain, an argument's type, a parameter's size, a launch attribute, leaves the launch to Triton.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

MAP_BYTES, MAP_ALIGNMENT = 128, 64
L2_PROMOTION_128B = 2
FILL_NAN = {"zero": 0, "nan": 1}
NUMBERS = {"i32": "=i", "i64": "=q", "fp32": "=f"}
"""Arguments that are no pointers, by Triton's spelling of their types, as `struct` spells them."""
CONFIG = struct.Struct("=7I4xQQI4x")
"""CUlaunchConfig: the grid, the threads of a block, shared memory, stream, no attributes."""
WORD = 8
STREAM = 32 // WORD
"""Place of the stream in it, in words."""
NO_CONTEXT = 201
"""The driver's error where a thread has no current context yet."""


class Unknown(Exception):
    """Something that only Triton knows how to pass."""


class Driver:
    """The calls that are needed.  AttributeError where the driver has not all of them."""

    def __init__(self, library: Any) -> None:
        pointer = ctypes.c_void_p
        self.launch = library.cuLaunchKernelEx
        self.launch.argtypes = (pointer, pointer, pointer, pointer)
        self.replace_address = library.cuTensorMapReplaceAddress
        self.replace_address.argtypes = (pointer, pointer)
        self._encode = library.cuTensorMapEncodeTiled
        self._encode.argtypes = (
            pointer, ctypes.c_int, ctypes.c_uint32, *[pointer] * 5, *[ctypes.c_int] * 4,
        )  # fmt: skip
        self._info = library.cuFuncGetParamInfo
        self._info.argtypes = (pointer, ctypes.c_size_t, pointer, pointer)
        self._retain = library.cuDevicePrimaryCtxRetain
        self._retain.argtypes = (pointer, ctypes.c_int)
        self._set_current = library.cuCtxSetCurrent
        self._set_current.argtypes = (pointer,)

    def parameter_sizes(self, function: int) -> list[int]:
        """Bytes of each parameter of a kernel."""
        sizes: list[int] = []
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        refs = ctypes.byref(offset), ctypes.byref(size)
        while self._info(function, len(sizes), *refs) == 0:
            sizes.append(size.value)
        return sizes

    def encoded(self, descriptor: Any, meta: Mapping[str, Any]) -> bytes:
        """The tensor map of a descriptor, as Triton's launcher encodes it."""
        from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

        rank = len(descriptor.shape)
        # The driver counts dimensions from the innermost.
        shape = (ctypes.c_uint64 * rank)(*reversed(descriptor.shape))
        steps = [n * meta["elem_size"] for n in descriptor.strides]
        strides = (ctypes.c_uint64 * rank)(*reversed(steps[:-1]), 0)
        box = (ctypes.c_uint32 * rank)(*reversed(meta["block_size"]))
        ones = (ctypes.c_uint32 * rank)(*[1] * rank)
        room = (ctypes.c_byte * (MAP_BYTES + MAP_ALIGNMENT))()
        start = ctypes.addressof(room)
        at = start + -start % MAP_ALIGNMENT
        error = self._encode(
            at, TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]], rank, descriptor.base.data_ptr(),
            shape, strides, box, ones, 0, meta["swizzle"], L2_PROMOTION_128B,
            FILL_NAN[descriptor.padding],
        )  # fmt: skip
        if error:
            raise Unknown(f"tensor map: error {error}")
        return ctypes.string_at(at, MAP_BYTES)

    def enter(self, device: int) -> None:
        """Make a device's primary context, which torch's memory is in, this thread's current one.

        A thread has none before its first call of the CUDA runtime, which a call that finds all
        its memory in torch's cache may not have made.
        """
        context = ctypes.c_void_p()
        self._retain(ctypes.byref(context), device)
        self._set_current(context)


@cache
def driver() -> Driver | None:
    """The driver of this machine, or None where it lacks something."""
    try:
        return Driver(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError):
        return None


class Block:
    """What the driver reads for one launch at a time: configuration, parameters, their addresses.

    `moving` and `fixed` are the addresses that it holds now.
    """

    __slots__ = ("at", "fixed", "moving", "parameters", "words")

    def __init__(self, image: bytes, table: int, cells: Sequence[int]) -> None:
        room = bytearray(len(image) + MAP_ALIGNMENT)
        start = ctypes.addressof(ctypes.c_char.from_buffer(room))
        skip = -start % MAP_ALIGNMENT
        self.at, self.parameters = start + skip, start + skip + table
        room[skip : skip + len(image)] = image
        # The view keeps the memory, and keeps it in its place.
        self.words = memoryview(room)[skip : skip + len(image)].cast("Q")
        for i, cell in enumerate(cells):
            self.words[table // WORD + i] = self.at + cell
        self.moving: tuple[int, ...] = ()
        self.fixed: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Direct:
    """A launch whose parameters lie ready: each call in flight takes a block of them of its own."""

    cuda: Driver
    function: int
    image: bytes
    """A block's bytes; addresses of tensors in it are those of the launch that it was made of."""
    table: int
    """Where in it the addresses of the parameters stand, and where these are."""
    cells: tuple[int, ...]
    roles: tuple[str, ...]
    """Tensors that change from call to call, in the order of a call's addresses."""
    listed: tuple[str, ...]
    """Those of the lists."""
    pointers: tuple[tuple[int, int], ...]
    """Which of the roles' addresses stands in which word."""
    maps: tuple[tuple[int, int], ...]
    """Which of them a tensor map at which byte describes."""
    held: tuple[int, ...]
    """Words of the lists' and the tables' addresses."""
    free: list[Block] = field(default_factory=list, repr=False)
    """Blocks that no call uses; lists give and take them whole, whatever threads do."""

    def taking(self, slots: Mapping[str, int]) -> Direct:
        """The same, called with addresses among which each role's stands at its slot."""
        places = [slots[role] for role in self.roles]
        return replace(
            self,
            roles=(),
            pointers=tuple((places[i], at) for i, at in self.pointers),
            maps=tuple((places[i], at) for i, at in self.maps),
            free=[],
        )

    def fixed_of(self, lists: Any, tables: Sequence[Any]) -> tuple[int, ...]:
        """Addresses of lists and tables, as a launch takes them."""
        return (
            *(getattr(lists, name).data_ptr() for name in self.listed),
            *(x.data_ptr() for x in tables),
        )

    def __call__(self, moving: tuple[int, ...], fixed: tuple[int, ...], stream: int) -> None:
        """Launch on tensors at addresses, in the order of `roles`, and on those of `fixed_of`.

        RuntimeError with the driver's number for what went wrong.
        """
        try:
            block = self.free.pop()
        except IndexError:
            block = Block(self.image, self.table, self.cells)
        words = block.words
        if moving != block.moving:
            self._move(block, moving)
        if fixed is not block.fixed:
            for at, address in zip(self.held, fixed, strict=True):
                words[at] = address
            block.fixed = fixed
        words[STREAM] = stream
        error = self.cuda.launch(block.at, self.function, block.parameters, None)
        if error == NO_CONTEXT:
            import torch

            self.cuda.enter(torch.cuda.current_device())
            error = self.cuda.launch(block.at, self.function, block.parameters, None)
        self.free.append(block)
        if error:
            raise RuntimeError(f"CUDA error {error} at a launch")

    def _move(self, block: Block, moving: tuple[int, ...]) -> None:
        words, before, error = block.words, block.moving, 0
        for i, at in self.pointers:
            words[at] = moving[i]
        for i, at in self.maps:
            if not before or moving[i] != before[i]:
                error |= self.cuda.replace_address(block.at + at, moving[i])
        if error:
            # The block is given up: nobody knows what its maps hold.
            raise RuntimeError(f"CUDA error {error} at a tensor map")
        block.moving = moving


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
        return _made(kernel, names, values, programs, roles, listed, cuda)
    except (
        Unknown, ImportError, LookupError, AttributeError, TypeError, ValueError, struct.error,
    ):  # fmt: skip
        return None


def _made(
    kernel: Any,
    names: Sequence[str],
    values: Mapping[str, Any],
    programs: int,
    roles: Mapping[str, str],
    listed: Collection[str],
    cuda: Driver,
) -> Direct:
    plain = only(kernel.metadata)
    metas = iter(getattr(kernel.metadata, "tensordesc_meta", None) or ())
    images: list[bytes] = []
    places: dict[str, range] = {}
    """Of each argument, which parameters are its."""
    for name in names:
        made = parameters_of(kernel.src.signature[name], values[name], metas, cuda)
        first = len(images)
        images += made
        places[name] = range(first, len(images))
    sizes = cuda.parameter_sizes(kernel.function)
    if sizes[: len(images)] != [len(x) for x in images]:
        raise Unknown("parameters of other sizes")
    # Scratch memory, of which these kernels have none.
    for size in sizes[len(images) :]:
        if size != WORD:
            raise Unknown("a parameter at the end")
        images.append(bytes(WORD))
    config = CONFIG.pack(
        programs, 1, 1, 32 * plain.num_warps, 1, 1, plain.shared, 0, 0, 0
    )  # fmt: skip
    block, cells = bytearray(config), list[int]()
    block += bytes(WORD * len(images))
    for image in images:
        block += bytes(-len(block) % (MAP_ALIGNMENT if len(image) == MAP_BYTES else WORD))
        cells.append(len(block))
        block += image
    block += bytes(-len(block) % WORD)

    moved = tuple(dict.fromkeys(r for n, r in roles.items() if r not in listed and places[n]))
    pointers: list[tuple[int, int]] = []
    maps: list[tuple[int, int]] = []
    held: dict[str, int] = {}
    for name, role in roles.items():
        if not places[name]:
            continue
        first = places[name][0]
        at, number = cells[first], None if role in listed else moved.index(role)
        if number is None:
            held[role] = at // WORD
        elif len(images[first]) == MAP_BYTES:
            maps.append((number, at))
        else:
            pointers.append((number, at // WORD))
    return Direct(
        cuda, kernel.function, bytes(block), len(config), tuple(cells), moved, tuple(held),
        tuple(pointers), tuple(maps),
        (*held.values(), *(cells[i] // WORD for i in places.get("tables", ()))),
    )  # fmt: skip


def only(metadata: Any) -> Any:
    """The metadata of a kernel that is launched without clusters, attributes or scratch memory."""
    wants = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    if metadata.num_ctas != 1 or any(getattr(metadata, name) for name in wants):
        raise Unknown("launch attributes")
    return metadata


def parameters_of(kind: Any, value: Any, metas: Iterator[Any], cuda: Driver) -> Iterator[bytes]:
    """What an argument is to the compiled kernel: nothing for a constant, else the bytes of its
    parameters."""
    if isinstance(kind, tuple):
        for each, part in zip(kind, value, strict=True):
            yield from parameters_of(each, part, metas, cuda)
    elif kind == "constexpr":
        return
    elif kind.startswith("*"):
        yield struct.pack("=Q", value.data_ptr())
    elif kind.startswith("tensordesc"):
        meta = next(metas, None)
        if meta is None or meta["fp4_padded"] or getattr(value, "round_f32_to_tf32", False):
            raise Unknown("a descriptor that is no plain tensor map")
        yield cuda.encoded(value, meta)
        yield from (struct.pack("=i", n) for n in value.shape)
        yield from (struct.pack("=q", n) for n in value.strides)
    else:
        yield struct.pack(NUMBERS[kind], value)
