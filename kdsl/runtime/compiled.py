"""Compile kernels for a GPU that need not be there, and read what the compiler made of them.

Triton kernels go through Triton's own compiler, CUDA C through NVRTC; neither asks for a driver.
Triton keeps its ``ptxas`` log to itself, so its binaries are read with the tools of its wheel:
registers, stack and shared memory with ``cuobjdump``, spills by counting what the machine code
moves. That is true of exactly the bytes in hand, which a second run of ``ptxas`` need not be. NVRTC
hands its log over, and may be newer than any tool that could read its binary.

A compiler can hang or take its process down: who compiles what he has not tried calls these
functions in a child process, which is why all of them and their results can be pickled.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdsl.errors import CompileError, StoreError, UnsupportedError
from kdsl.targets import Target

Argument = str | tuple[str | int, ...]
"""A kernel argument: ``"q"``, or ``("tables", 0)`` for the first entry of a tuple argument."""

_RESERVED_BY_DRIVER = 1024  # in cuobjdump's SHARED from compute capability 9.0 on


@dataclass(frozen=True)
class Resources:
    """What one kernel takes, in bytes where not registers."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    """Static alone, without what the driver reserves."""
    spill_bytes: int


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target. All sizes in bytes."""

    target: str
    entry: str
    cubin: bytes = field(repr=False)
    ptx: str = field(repr=False)
    registers: int
    """A thread."""
    spill_bytes: int
    """Local memory that one thread's code stores and loads, each instruction counted once."""
    shared_bytes: int
    """A block, static and dynamic, without the driver's 1 KiB."""
    stack_bytes: int
    """A thread."""
    warps: int
    """A block, warps that were added for specialisation included; 0 if the launch decides."""
    binary_hash: str
    """Of architecture, machine code and resources: names, paths and lines do not change it."""
    seconds: float = field(compare=False)
    """Wall time of the compiler; next to nothing when Triton's disk cache had the kernel."""


def compile_triton(
    fn: Any,
    target: Target,
    signature: Mapping[str, Any],
    constants: Mapping[Argument, Any],
    *,
    divisible: Collection[Argument] = (),
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile a ``@triton.jit`` or Gluon kernel for ``target``.

    ``signature`` gives each argument's type in Triton's spelling (``"*bf16"``, ``"i32"``; what is
    in ``constants`` may be left out), ``divisible`` names the pointers, strides and sizes that are
    multiples of 16: without them Triton emits no asynchronous copies and another program comes out.
    ``options`` are Triton's (``num_warps``, ``num_stages``, ``maxnreg``); floating-point fusion is
    on unless they say otherwise. Raises :class:`~kdsl.errors.CompileError` with Triton's message,
    :class:`~kdsl.errors.StoreError` where disk or memory do not suffice.
    """
    triton = _need("triton")
    GPUTarget = _need("triton.backends.compiler").GPUTarget

    name = getattr(fn, "__name__", repr(fn))
    if not hasattr(fn, "arg_names") or not hasattr(fn, "cache_key"):
        raise CompileError(
            f"{name} is no Triton kernel that can be compiled",
            hint="a function decorated with @triton.jit in a process without TRITON_INTERPRET",
        )

    def path(argument: Argument) -> tuple[int, ...]:
        first, *rest = (argument,) if isinstance(argument, str) else argument
        if first not in fn.arg_names:
            raise CompileError(f"{name} has no argument {first!r}", hint=", ".join(fn.arg_names))
        return (fn.arg_names.index(first), *map(int, rest))

    named = {a: "constexpr" for a in fn.arg_names if a in constants}
    started = time.perf_counter()
    constexprs = {path(a): value for a, value in constants.items()}
    aligned = {path(a) for a in divisible}
    gpu = GPUTarget("cuda", target.cc, 32)
    chosen = {"enable_fp_fusion": True, **(options or {})}
    try:
        attrs = _attributes(fn, {**signature, **named}, constexprs, aligned, gpu, chosen)
        source = _source_class(fn)(fn, {**signature, **named}, constexprs, attrs)
        kernel = triton.compile(source, target=gpu, options=chosen)
    except Exception as error:
        message = str(error).strip() or "no message"
        if isinstance(error, (OSError, MemoryError)) or os.strerror(errno.ENOSPC) in message:
            raise _no_room(error) from error
        raise CompileError(
            f"Triton refuses {name} for {target.name}: {type(error).__name__}: {message}",
            where=f"constants {dict(constants)}, options {dict(options or {})}",
        ) from error
    seconds = time.perf_counter() - started
    cubin, entry = kernel.asm["cubin"], kernel.metadata.name
    return _describe(
        cubin,
        target,
        read_binary(cubin, entry, target),
        entry=entry,
        ptx=kernel.asm["ptx"],
        dynamic_shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        seconds=seconds,
    )


def _attributes(
    fn: Any,
    types: Mapping[str, Any],
    constexprs: Mapping[tuple[int, ...], Any],
    aligned: Collection[tuple[int, ...]],
    gpu: Any,
    options: Mapping[str, Any],
) -> dict[tuple[int, ...], Any]:
    """What is known of arguments, in the form in which a launch states it.

    The form is part of the key of Triton's disk cache: a kernel compiled here is found there by a
    launch with such arguments.  Where Triton has no such function the kernel is the same, and only
    the cache does not know it.
    """
    plain = {place: [["tt.divisibility", 16]] for place in aligned}
    pack = getattr(fn, "_pack_args", None)
    if pack is None:
        return plain

    def said(place: tuple[int, ...], kind: Any) -> Any:
        """A type with what a launch would find out about such an argument."""
        if isinstance(kind, tuple):
            parts = [said((*place, i), k) for i, k in enumerate(kind)]
            return tuple(p[0] for p in parts), tuple(p[1] for p in parts)
        if kind == "constexpr":
            return kind, constexprs.get(place)
        if kind.startswith(("*", "i", "u")):
            return kind, "D" if place in aligned else ""
        return kind, None

    found = [said((i,), types[name]) for i, name in enumerate(fn.arg_names)]
    values = {name: constexprs.get((i,)) for i, name in enumerate(fn.arg_names)}
    backend = import_module("triton.compiler.compiler").make_backend(gpu)
    attrs = pack(backend, dict(options), values, found, dict(options))[3]
    return {**attrs, **{place: plain[place] for place in plain if place not in attrs}}


def _no_room(error: Exception) -> StoreError:
    """What the machine lacked says nothing about the kernel."""
    folder = os.environ.get("TRITON_CACHE_DIR") or tempfile.gettempdir()
    return StoreError(
        f"the compiler has no room to work: {type(error).__name__}: {str(error).strip()}",
        where=f"folders such as {folder}",
        hint="free disk and memory, or TRITON_CACHE_DIR=/another/folder TMPDIR=/another/folder",
    )


def _need(module: str, extra: str = "triton") -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"compiling needs {module}, which cannot be imported: {error}",
            hint=f'pip install "kdsl-kernels[{extra}]"',
        ) from error


def _source_class(fn: Any) -> Any:
    module = type(fn).__module__
    if module.startswith("triton.experimental.gluon"):
        return import_module(module).GluonASTSource
    return import_module("triton.compiler").ASTSource


def compile_cuda(
    source: str,
    target: Target,
    entry: str,
    *,
    options: Sequence[str] = (),
    dynamic_shared: int = 0,
) -> Compiled:
    """Compile CUDA C with NVRTC for ``target``; ``entry`` is one ``extern "C"`` kernel in it.

    ``options`` are NVRTC's, added to the architecture and the include folder of CUDA's own headers
    (``cuda_fp16.h`` and the like). ``dynamic_shared`` bytes a block are added to what the code
    declares. Raises :class:`~kdsl.errors.CompileError` with NVRTC's log.
    """
    nvrtc = _need("cupy", "cuda").cuda.nvrtc

    started = time.perf_counter()
    program = nvrtc.createProgram(source, f"{entry}.cu", (), ())
    include = [f"-I{folder}" for folder in cuda_headers()]
    try:
        try:
            arch = (f"--gpu-architecture=sm_{target.cc}", "--ptxas-options=-v")
            nvrtc.compileProgram(program, (*arch, *include, *options))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program).strip("\x00 \n") or str(error)
            raise CompileError(
                f"NVRTC refuses {entry} for {target.name}:\n{log}",
                where=f"options {list(options)}" if options else "",
            ) from error
        cubin, ptx = bytes(nvrtc.getCUBIN(program)), nvrtc.getPTX(program)
        log = nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)
    return _describe(
        cubin,
        target,
        read_log(log, entry),
        entry=entry,
        ptx=ptx.decode() if isinstance(ptx, bytes) else ptx,
        dynamic_shared=dynamic_shared,
        warps=0,
        seconds=time.perf_counter() - started,
    )


def cuda_headers() -> list[Path]:
    """The include folder of CUDA's device headers: a toolkit's or wheel's, else Triton's; or []."""
    candidates: list[Path] = []
    try:
        found = import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
        candidates += [Path(found)] if found else []
    except ImportError:
        pass
    candidates += [folder / "include" for folder in _triton_folder()]
    return [folder for folder in candidates if (folder / "cuda_fp16.h").is_file()][:1]


def sass(cubin: bytes) -> str:
    """The machine code of a binary as text."""
    return _tool("nvdisasm", "-c", cubin)


def _describe(
    cubin: bytes,
    target: Target,
    used: Resources,
    *,
    entry: str,
    ptx: str,
    dynamic_shared: int,
    warps: int,
    seconds: float,
) -> Compiled:
    shared = used.shared_bytes + dynamic_shared
    digest = hashlib.sha256(f"{target.cc} {used} {shared}".encode())
    for name, content in _sections(cubin):
        if name.startswith((".text.", ".nv.constant")):
            digest.update(content)
    return Compiled(
        target=target.name,
        entry=entry,
        cubin=cubin,
        ptx=ptx,
        registers=used.registers,
        spill_bytes=used.spill_bytes,
        shared_bytes=shared,
        stack_bytes=used.stack_bytes,
        warps=warps,
        binary_hash=digest.hexdigest()[:32],
        seconds=seconds,
    )


def read_binary(cubin: bytes, entry: str, target: Target) -> Resources:
    """What kernel ``entry`` of a binary takes, read with the tools of Triton's wheel.

    Raises :class:`~kdsl.errors.CompileError` if there is no such kernel or the tools are too old.
    """
    text = _tool("cuobjdump", "-res-usage", cubin)
    kernels = dict(re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", text))
    if entry not in kernels:
        raise _no_kernel(entry, kernels)
    used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", kernels[entry])}
    reserved = _RESERVED_BY_DRIVER if target.capability >= (9, 0) else 0
    # Spills live in the stack frame: without one there is no need to disassemble.
    spilled = _local_bytes(sass(cubin), entry) if used["STACK"] or used["LOCAL"] else 0
    return Resources(used["REG"], used["STACK"], max(used["SHARED"] - reserved, 0), spilled)


def read_log(log: str, entry: str) -> Resources:
    """What kernel ``entry`` takes by the words of ``ptxas -v``.

    Raises :class:`~kdsl.errors.CompileError` if the log does not speak of it.
    """
    parts = re.split(r"Compiling entry function '([^']+)'", log)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    if entry not in said:
        raise _no_kernel(entry, said)
    patterns = (
        r"Used (\d+) registers",
        r"(\d+) bytes stack frame",
        r"(\d+) bytes smem",
        r"(\d+) bytes spill stores",
        r"(\d+) bytes spill loads",
    )
    found = [re.search(pattern, said[entry]) for pattern in patterns]
    if found[0] is None:  # the rest is left out where it is nothing
        raise CompileError(f"the log does not give the registers of {entry}", where=said[entry])
    registers, stack, shared, stores, loads = (int(m[1]) if m else 0 for m in found)
    return Resources(registers, stack, shared, stores + loads)


def _no_kernel(entry: str, found: Collection[str]) -> CompileError:
    return CompileError(
        f"the binary holds no kernel {entry!r}",
        where=f"kernels found: {', '.join(found) or 'none'}",
        hint=f'extern "C" __global__ void {entry}(...)',
    )


_WIDTHS = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}


def _local_bytes(text: str, entry: str) -> int:
    """Bytes that the local loads and stores of one kernel's machine code move."""
    code = text.partition(f".text.{entry}:")[2].partition("\n//-----")[0]
    moves = re.findall(r"\b(?:STL|LDL)((?:\.\w+)*)", code)
    return sum(
        next((_WIDTHS[part] for part in suffix.split(".") if part in _WIDTHS), 4)
        for suffix in moves
    )


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section of a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise CompileError("the compiler returned no 64-bit ELF file", where=repr(elf[:8]))
    table, size, count, names = struct.unpack_from("<Q10xHHH", elf, 40)
    headers = [struct.unpack_from("<II16xQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][2]
    for name, kind, offset, length in headers:
        start = strings + name
        label = elf[start : elf.index(b"\0", start)].decode()
        yield label, b"" if kind == 8 else elf[offset : offset + length]  # 8: occupies no bytes


def _triton_folder() -> list[Path]:
    spec = find_spec("triton")
    return [Path(spec.origin).parent / "backends" / "nvidia"] if spec and spec.origin else []


def _tool(name: str, option: str, cubin: bytes) -> str:
    bundled = [folder / "bin" / name for folder in _triton_folder()]
    found = next((str(p) for p in bundled if os.access(p, os.X_OK)), None) or shutil.which(name)
    if found is None:
        raise UnsupportedError(
            f"{name} is needed to read a compiled kernel and is not here",
            hint="pip install triton (its wheel carries it), or put the CUDA toolkit on PATH",
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "kernel.cubin"
            binary.write_bytes(cubin)
            command = [found, option, str(binary)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
    except (OSError, MemoryError) as error:
        raise _no_room(error) from error
    if done.returncode:
        raise CompileError(f"{name} cannot read the compiled kernel: {done.stderr.strip()}")
    return done.stdout
