"""Launches past Triton's launcher, on a driver that is made up: what would the kernel read?"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdsl import masks, orders, targets
from kdsl.grid import Grid
from kdsl.kernels.attention import launch
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper import launch as hopper_launch
from kdsl.kernels.attention.kept import HELD
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.kernels.launching.direct import NO_CONTEXT, Direct, Driver, direct
from kdsl.runtime import codecache
from kdsl.runtime.aot import compile_for
from kdsl.specs import Attention

triton = pytest.importorskip("triton")
torch = pytest.importorskip("torch")

H100 = targets.get("h100")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
GRID = Grid(frames=2, height=9, width=14, text=4)
ROLES = ("q", "k", "v", "o", "lse", "counter", *HELD)
CONFIGS = {
    "hopper": Config(128, 128, 8, 2, "descriptor", "hopper", workers=1),
    "descriptor": Config(128, 64, 4, 2, "descriptor"),
    "pointer": Config(128, 64, 4, 2, "pointer"),
}


class Function:
    """A function of a made-up library: calls are kept."""

    def __init__(self, does: Any) -> None:
        self.does, self.argtypes = does, ()

    def __call__(self, *arguments: Any) -> int:
        """The driver's error number; 0 where nothing is said."""
        return int(self.does(*arguments) or 0)


class Library:
    """A driver that knows a kernel's parameters from its binary, and reads them at each launch.

    A tensor map holds, in this library, the address and the outermost extent.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.read: list[list[bytes]] = []
        self.grids: list[tuple[int, ...]] = []
        self.errors: list[int] = []
        """What the next launches end with; 0 when there are no more."""
        self.entered: list[int] = []
        """Devices whose context was made the current one."""
        self.cuLaunchKernelEx = Function(self._launch)
        self.cuDevicePrimaryCtxRetain = Function(self._retain)
        self.cuCtxSetCurrent = Function(lambda context: self.entered.append(context.value - 1))
        self.cuTensorMapReplaceAddress = Function(self._replace)
        self.cuTensorMapEncodeTiled = Function(self._encode)
        self.cuFuncGetParamInfo = Function(self._info)

    def _info(self, function: int, index: int, offset: Any, size: Any) -> int:
        if index >= len(self.sizes):
            return 1
        size._obj.value = self.sizes[index]
        return 0

    def _encode(self, at: int, kind: int, rank: int, address: int, shape: Any, *rest: Any) -> int:
        assert at % 64 == 0
        ctypes.memmove(at, struct.pack("<QQ112x", address, shape[rank - 1]), 128)
        return 0

    def _replace(self, at: int, address: int) -> int:
        ctypes.memmove(at, struct.pack("<Q", address), 8)
        return 0

    def _retain(self, context: Any, device: int) -> int:
        context._obj.value = device + 1
        return 0

    def _launch(self, config: int, function: int, parameters: int, extra: None) -> int:
        assert extra is None
        *sizes, stream, attributes, count = struct.unpack("7I4xQQI4x", ctypes.string_at(config, 56))
        assert (attributes, count) == (0, 0)
        self.grids.append((function, *sizes, stream))
        at = (ctypes.c_void_p * len(self.sizes)).from_address(parameters)
        self.read.append([ctypes.string_at(at[i] or 0, n) for i, n in enumerate(self.sizes)])
        return self.errors.pop(0) if self.errors else 0


def parameter_sizes(cubin: bytes, folder: Path) -> list[int]:
    """Bytes of each parameter, as the binary says."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    said = subprocess.run([CUOBJDUMP, "-elf", path], capture_output=True, text=True, check=True)
    found = re.findall(r"Ordinal\s*:\s*0x(\w+).*?Size\s*:\s*0x(\w+)", said.stdout, re.DOTALL)
    by_number = {int(number, 16): int(size, 16) for number, size in found}
    return [by_number[n] for n in range(len(by_number))]


def case(name: str) -> tuple[Attention, dict[str, np.ndarray[Any, Any]]]:
    """A grouped spec with a table of the call and one of its own, and the table's values."""
    order = None if name != "pointer" else orders.cubes(GRID, (2, 4, 5))
    spec = Attention(
        tokens=GRID, heads=4, kv_heads=2, head_dim=80, return_lse=True, order=order,
        mask=masks.window(GRID, (3, 5, 5)) & masks.blocks("plan", order=order),
    )  # fmt: skip
    return spec, {"plan": np.ones((4, 2, 2), np.uint8)}


def made(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, dict[str, Any], Library, dict[str, Any]]:
    """A compiled kernel, its argument names and values, a library that knows it, its tensors."""
    spec, values = case(name)
    config = CONFIGS[name]
    tunable = AttentionTunable(spec, values, batch=2, templates=(config.template,))
    compiled: list[Any] = []
    compile = triton.compile

    def keep(*given: Any, **more: Any) -> Any:
        compiled.append(compile(*given, **more))
        return compiled[-1]

    monkeypatch.setattr(triton, "compile", keep)
    compile_for(tunable, config.to_json(), H100)
    (kernel,) = compiled
    kernel.function = 77
    q, k, v = (torch.zeros(2, h, GRID.tokens, 80, dtype=torch.bfloat16) for h in (4, 2, 2))
    held = launch.lists(spec.rows(values), 4, "cpu")
    moving = {
        "q": q, "k": k, "v": v, "o": torch.zeros_like(q), "lse": torch.zeros(2, 4, GRID.tokens),
        "counter": torch.zeros(1, dtype=torch.int32),
    }  # fmt: skip
    tables = launch.table_tensors(spec, values, "cpu")
    if config.template == "hopper":
        _, arguments = hopper_launch.arguments_of(spec, config, held, moving, tables)
    else:
        arguments = launch.arguments_of(spec, config, held, moving, tables)
    fn = codecache.load(tunable.source_of(config.template)).attention_forward
    library = Library(parameter_sizes(kernel.asm["cubin"], folder))
    return kernel, fn.arg_names, arguments, library, moving


def roles(names: Any, values: dict[str, Any]) -> dict[str, str]:
    """Which arguments change from call to call."""
    plain = {n: n.removesuffix("_tail") for n in names}
    return {n: r for n, r in plain.items() if r in ROLES and values[n] is not None}


def lists_of(values: dict[str, Any]) -> SimpleNamespace:
    """The lists of a call."""
    return SimpleNamespace(**{name: values[name] for name in HELD})


@pytest.mark.parametrize("name", CONFIGS)
def test_the_kernel_reads_its_arguments(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parameter of the binary holds what the call says: sizes and strides, the lists' and the
    tables' addresses, and in a second call the addresses of its own tensors, in tensor maps too."""
    kernel, names, values, library, moving = made(name, tmp_path, monkeypatch)
    ready = direct(kernel, names, values, 12, roles(names, values), HELD, Driver(library))
    assert ready is not None
    fresh = {role: torch.zeros_like(x) for role, x in moving.items()}
    own, tables = lists_of(values), values["tables"]
    other = SimpleNamespace(**{name: x.clone() for name, x in vars(own).items()})
    others = tuple(x.clone() for x in tables)
    for tensors, lists, given in ((moving, own, tables), (fresh, other, others)):
        launched(ready, tensors, lists, given)
        addresses = {x.data_ptr() for role, x in tensors.items() if role in ready.roles}
        read = library.read[-1]
        held = {struct.unpack_from("<Q", part)[0] for part in read if len(part) in (8, 128)}
        assert addresses <= held
        for elsewhere in (moving, fresh):
            if elsewhere is not tensors:
                assert not {x.data_ptr() for x in elsewhere.values()} & held
        assert {x.data_ptr() for x in (*vars(lists).values(), *given)} <= held
        if lists is other:
            assert not {x.data_ptr() for x in (*vars(own).values(), *tables)} & held
        numbers = {struct.unpack("<i", part)[0] for part in read if len(part) == 4}
        assert {values["queries"], values["keys"]} <= numbers
        scale = struct.pack("<f", values["scale_log2"])
        assert scale in read
    threads = 32 * kernel.metadata.num_warps
    shared = kernel.metadata.shared
    assert set(library.grids) == {(77, 12, 1, 1, threads, 1, 1, shared, 5)}


def launched(ready: Direct, tensors: dict[str, Any], lists: Any, tables: Any) -> None:
    """A launch on stream 5."""
    moving = tuple(tensors[role].data_ptr() for role in ready.roles)
    ready(moving, ready.fixed_of(lists, tables), 5)


def test_what_is_not_known_is_left_to_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sizes than the binary's, a type without a spelling, clusters, scratch memory and a
    driver without the calls: no launch of ours."""
    kernel, names, values, library, _ = made("hopper", tmp_path, monkeypatch)
    given = roles(names, values)

    def of(**change: Any) -> Direct | None:
        meta = SimpleNamespace(**{**kernel.metadata._asdict(), **change.get("metadata", {})})
        src = SimpleNamespace(signature={**kernel.src.signature, **change.get("signature", {})})
        other = SimpleNamespace(metadata=meta, src=src, function=77)
        return direct(other, names, values, 12, given, HELD, change.get("cuda", Driver(library)))

    assert of() is not None
    for meta in ({"num_ctas": 2}, {"global_scratch_size": 8}, {"launch_pdl": True}):
        assert of(metadata=meta) is None
    assert of(signature={"queries": "i64"}) is None
    assert of(signature={"queries": "fp8"}) is None
    for sizes in (library.sizes[:-3], [*library.sizes, 4], [4, *library.sizes[1:]]):
        assert of(cuda=Driver(Library(sizes))) is None
    with pytest.raises(AttributeError):
        Driver(SimpleNamespace(cuLaunchKernelEx=Function(int)))


def test_addresses_move_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor map is told of another address where it changed, and only there; with the addresses
    in another order the kernel reads the same."""
    kernel, names, values, library, moving = made("hopper", tmp_path, monkeypatch)
    ready = direct(kernel, names, values, 12, roles(names, values), HELD, Driver(library))
    assert ready is not None
    lists, tables = lists_of(values), values["tables"]
    replaced: list[int] = []
    replace = library.cuTensorMapReplaceAddress.does
    library.cuTensorMapReplaceAddress.does = lambda at, to: replaced.append(to) or replace(at, to)
    launched(ready, moving, lists, tables)
    launched(ready, moving, lists, tables)
    # Each in two parts of its columns.
    first = sorted(moving[role].data_ptr() for role in "qkvo" for _ in range(2))
    assert sorted(replaced) == first
    replaced.clear()
    other = {**moving, "k": moving["k"].clone(), "lse": moving["lse"].clone()}
    launched(ready, other, lists, tables)
    assert replaced == [other["k"].data_ptr()] * 2
    slots = ["unused", *sorted(ready.roles)]
    turned = ready.taking({role: slots.index(role) for role in slots})
    addresses = (0, *(other[role].data_ptr() for role in slots[1:]))
    turned(addresses, turned.fixed_of(lists, tables), 5)
    assert library.read[-1] == library.read[-2]
    assert turned.free != ready.free


def test_errors_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver refuses is an error with its number; a thread without a context gets that of
    its device; launches from several threads never mix their tensors."""
    kernel, names, values, library, moving = made("hopper", tmp_path, monkeypatch)
    ready = direct(kernel, names, values, 12, roles(names, values), HELD, Driver(library))
    assert ready is not None
    lists, tables = lists_of(values), values["tables"]
    library.errors = [700]
    with pytest.raises(RuntimeError, match="CUDA error 700"):
        launched(ready, moving, lists, tables)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    library.errors = [NO_CONTEXT]
    launched(ready, moving, lists, tables)
    assert library.entered == [3]
    assert library.read[-1] == library.read[-2]
    library.cuTensorMapReplaceAddress.does = lambda at, to: 1
    with pytest.raises(RuntimeError, match="CUDA error 1 at a tensor map"):
        launched(ready, {**moving, "q": moving["q"].clone()}, lists, tables)
    library.cuTensorMapReplaceAddress.does = library._replace
    library.read.clear()
    sets = [{role: torch.zeros_like(x) for role, x in moving.items()} for _ in range(4)]

    def work(tensors: dict[str, Any]) -> None:
        for _ in range(200):
            launched(ready, tensors, lists, tables)

    workers = [threading.Thread(target=work, args=(tensors,)) for tensors in sets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    whole = [{x.data_ptr() for r, x in s.items() if r in ready.roles} for s in sets]
    assert len(library.read) == 800
    assert 1 <= len(ready.free) <= 4
    for read in library.read:
        held = {struct.unpack_from("<Q", part)[0] for part in read if len(part) in (8, 128)}
        assert [addresses <= held for addresses in whole].count(True) == 1
        assert sum(bool(addresses & held) for addresses in whole) == 1
