"""Runs generated CUDA C on the CPU: see cuda_on_cpu.h.  Loaded by path from conftest.py."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.kernels.permute import generate
from kdsl.kernels.permute.config import Config, Sizes
from kdsl.kernels.permute.launch import Launch, plan, result_shapes, scratch_words
from kdsl.specs import Permute

HERE = Path(__file__).parent
GUARD = 4096
"""Bytes before and after each result that must stay as they were."""
FLAGS = (
    "-O1",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fsanitize=undefined",
    "-fno-sanitize-recover=undefined",
    "-static-libubsan",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-comment",
)
DTYPES = {"bfloat16": "uint16", "float16": "float16", "float32": "float32", "int8": "int8"}
Array = npt.NDArray[Any]


class EmulationError(AssertionError):
    """The kernel read where it may not, or waited for ever."""


def compile_cpp(*arguments: str) -> None:
    """Run the host's C++ compiler; AssertionError with what it says."""
    command = ["g++", "-std=c++17", f"-I{HERE}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Guarded:
    """A result between guard bytes, aligned to 256 bytes, all 0xFF to start with."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        size = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        memory = np.full(size + 2 * GUARD + 256, 0xFF, np.uint8)
        start = GUARD + -(memory.ctypes.data + GUARD) % 256
        self.memory, self.start, self.size = memory, start, size
        self.address = memory.ctypes.data + start
        self.array: Array = memory[start : start + size].view(DTYPES[dtype]).reshape(shape)

    def check(self) -> None:
        """AssertionError if a byte around the result changed."""
        before, after = self.memory[: self.start], self.memory[self.start + self.size :]
        assert (before == 0xFF).all(), "written before the result"
        assert (after == 0xFF).all(), "written behind the result"


class Emulator:
    """Builds host libraries from generated sources, each once, and runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[str, ctypes.CDLL] = {}
        self.runtime = folder / "cuda_on_cpu.o"
        if not self.runtime.exists():
            source = str(HERE / "cuda_on_cpu.cpp")
            compile_cpp("-O2", "-c", "-fPIC", source, "-o", str(self.runtime))

    def library(self, source: str) -> ctypes.CDLL:
        """A source as a loaded library."""
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        if name not in self.built:
            file = self.folder / f"{name}.cpp"
            file.write_text(source)
            made = file.with_suffix(".so")
            compile_cpp(*FLAGS, str(file), str(self.runtime), "-o", str(made), "-lm")
            self.built[name] = ctypes.CDLL(str(made))
        return self.built[name]

    def kernel(self, spec: Permute, config: Config, arguments: int) -> ctypes.CDLL:
        """The generated kernel as a library."""
        passed = ", ".join(f"cpu::Argument{{a[{i}]}}" for i in range(arguments))
        return self.library(
            '#include "cuda_on_cpu.h"\n'
            + generate.source(spec, config)
            + f"""
static void call(const long long* a) {{ {generate.entry(spec)}({passed}); }}
extern "C" const char* launch(unsigned blocks, unsigned threads, unsigned seed,
                              const long long* a) {{
  return cpu::run(call, a, blocks, threads, seed);
}}
"""
        )

    def run(
        self,
        spec: Permute,
        config: Config,
        x: Array,
        tables: Mapping[str, Array] | None = None,
        seed: int = 0,
    ) -> tuple[Array, ...]:
        """Results of the kernel for ``x`` (bfloat16 as its bits, uint16)."""
        batch = x.shape[0]
        sizes = Sizes(spec, config)
        results = [Guarded(shape, dtype) for shape, dtype in result_shapes(spec, batch)]
        scratch = np.zeros(max(scratch_words(sizes, batch), 1), np.uint32)
        values = {t.name: t.values for t in spec.tables if t.values is not None}
        values.update(tables or {})
        held = [np.ascontiguousarray(values[t.name], t.dtype) for t in spec.tables]
        strides = [s if n > 1 else 0 for n, s in zip(x.shape[:3], x.strides[:3], strict=True)]
        launch = plan(
            sizes,
            x.ctypes.data,
            strides,
            batch,
            [r.address for r in results],
            scratch.ctypes.data,
            [t.ctypes.data for t in held],
        )
        base = x if x.base is None or not isinstance(x.base, np.ndarray) else x.base
        self.launch(spec, config, launch, [x, base, scratch], seed)
        for r in results:
            r.check()
        return tuple(r.array for r in results)

    def launch(
        self, spec: Permute, config: Config, launch: Launch, inputs: Sequence[Array], seed: int
    ) -> None:
        """Run a launch that may read ``inputs``; EmulationError says what went wrong."""
        library = self.kernel(spec, config, len(launch.arguments))
        ranges = [n for a in inputs for n in extent(a)]
        library.set_readable((ctypes.c_longlong * len(ranges))(*ranges), len(inputs))
        library.launch.restype = ctypes.c_char_p
        arguments = (ctypes.c_longlong * len(launch.arguments))(*launch.arguments)
        error = library.launch(launch.blocks, launch.threads, seed, arguments)
        if error:
            raise EmulationError(error.decode())


def extent(x: Array) -> tuple[int, int]:
    """First address of an array and the bytes up to its last element's end."""
    low = x.ctypes.data + sum(min(0, s * (n - 1)) for n, s in zip(x.shape, x.strides, strict=True))
    steps = sum(abs(s) * (n - 1) for n, s in zip(x.shape, x.strides, strict=True))
    return low, steps + x.itemsize if x.size else 0


Run = Callable[..., tuple[Array, ...]]
