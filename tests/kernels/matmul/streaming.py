"""Runs the stream template on the CPU: see stream_on_cpu.h."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.kernels.matmul.weight_only import stream
from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.launch import arguments
from kdsl.specs import Matmul

HERE = Path(__file__).parent
FLAGS = (
    "-O1", "-shared", "-fPIC", "-std=c++17", "-ffp-contract=off", "-fsanitize=undefined",
    "-fno-sanitize-recover=undefined", "-static-libubsan", "-Wno-unknown-pragmas",
)  # fmt: skip
GUARD = 64
CALL = """
static void call(const long long* a) {{ stream({passed}); }}
extern "C" const char* launch(unsigned grid, unsigned split, unsigned threads, unsigned shared,
                              unsigned seed, const long long* a, const long long* ranges,
                              int count) {{
  cpu::readable.clear();
  for (int i = 0; i < count; ++i)
    cpu::readable.push_back({{(std::uintptr_t)ranges[2 * i],
                              (std::uintptr_t)(ranges[2 * i] + ranges[2 * i + 1])}});
  return cpu::run(call, a, grid, split, threads, shared, seed);
}}
"""


@cache
def folder() -> Path:
    """Where libraries are built in this process."""
    return Path(tempfile.mkdtemp(prefix="kdsl-stream-"))


def library(source: str) -> ctypes.CDLL:
    """A source as a loaded library."""
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    made = folder() / f"{name}.so"
    if not made.exists():
        file = made.with_suffix(".cpp")
        passed = ", ".join(f"cpu::Argument{{a[{i}]}}" for i in range(16))
        file.write_text(f'#include "stream_on_cpu.h"\n{source}{CALL.format(passed=passed)}')
        command = ["g++", *FLAGS, f"-I{HERE}", str(file), "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


def as_bits(x: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Numbers in 16 bits; those of bfloat16 are exact in float32."""
    if dtype == "float16":
        return np.ascontiguousarray(x, np.float16)
    return np.ascontiguousarray(
        (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16), None
    ).astype(np.uint16)


def run(
    spec: Matmul, config: Config, given: Mapping[str, Any], seed: int = 0, processors: int = 3
) -> npt.NDArray[np.float32]:
    """The kernel's result as float32; AssertionError where it reads, writes or waits wrongly."""
    held = {
        n: as_bits(given[n], spec.dtype)
        if n in ("x", "bias", "residual")
        else np.ascontiguousarray(given[n])
        for n in spec.operands
    }
    room = np.full(spec.rows * spec.columns + 2 * GUARD, 0x7FAB, np.uint16)
    out = room[GUARD:-GUARD]
    addresses = {n: (v.ctypes.data, v.strides[0]) for n, v in held.items()}
    passed = arguments(spec, config, addresses, out.ctypes.data)
    grid, _ = stream.grid(spec, config, processors)
    ranges = [n for v in held.values() for n in (v.ctypes.data, v.nbytes)]
    made = library(stream.source(spec, config))
    made.launch.restype = ctypes.c_char_p
    error = made.launch(
        grid, config.split, 32 * config.num_warps, stream.shared_bytes(spec, config), seed,
        (ctypes.c_longlong * len(passed))(*passed), (ctypes.c_longlong * len(ranges))(*ranges),
        len(held),
    )  # fmt: skip
    assert not error, error.decode()
    assert (room[:GUARD] == 0x7FAB).all(), "written before the result"
    assert (room[-GUARD:] == 0x7FAB).all(), "written behind the result"
    shape = (spec.rows, spec.columns)
    if spec.dtype == "float16":
        return out.view(np.float16).astype(np.float32).reshape(shape)
    return (out.astype(np.uint32) << 16).view(np.float32).reshape(shape)
