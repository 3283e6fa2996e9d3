"""CUDA C to machine code, without CuPy's own options: those flush subnormal numbers to zero."""

from __future__ import annotations

from collections.abc import Callable

from kdsl.errors import CompileError

Compiler = Callable[[str, str, tuple[int, int]], bytes]
"""(source, entry, compute capability) to a cubin."""

OPTIONS = ("--std=c++17",)
"""Options for NVRTC; its arithmetic is IEEE float32 unless others are given."""


def cubin(source: str, entry: str, capability: tuple[int, int]) -> bytes:
    """Machine code for a compute capability; the GPU need not be there.

    CompileError with NVRTC's log.
    """
    from cupy.cuda import nvrtc

    architecture = f"--gpu-architecture=sm_{capability[0]}{capability[1]}"
    program = nvrtc.createProgram(source, f"{entry}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (architecture, *OPTIONS))
        # CuPy takes the last byte for the end of a text; a zero too many does no harm.
        return bytes(nvrtc.getCUBIN(program)) + b"\0"
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip("\x00 \n") or str(error)
        raise CompileError(f"NVRTC refuses {entry} for {architecture}:\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)
