"""Decode leaves: CUDA C through the host's compiler, Triton in its interpreter, against NumPy."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdsl import layouts
from kdsl.expr import cuda_source, triton_source
from kdsl.expr.printing import table_name
from tests.kdsl.layouts.cases import CASES, buffers

COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
NAMES = list(CASES)

RUN = """
import sys
import numpy as np
import torch
from generated import *

given = np.load(sys.argv[1])
found = {}
for i in range(int(given["count"])):
    rows, cols = given[f"{i}.shape"].tolist()
    tables = tuple(torch.from_numpy(given[f"{i}.{n}"]) for n in range(int(given[f"{i}.tables"])))
    out = torch.full((rows, cols), float("nan"))
    globals()[f"kernel_{i}"][(1,)](out, tables, rows, cols, M=256, N=1024)
    found[str(i)] = out.numpy()
np.savez(sys.argv[2], **found)
"""

KERNEL = """
@triton.jit
def kernel_{0}(out, tables, rows, cols, M: tl.constexpr, N: tl.constexpr):
    row, col = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    inside = (row < rows) & (col < cols)
    value = leaf_{0}(tl.minimum(row, rows - 1), tl.minimum(col, cols - 1), tables)
    tl.store(out + row * cols + col, value + tl.zeros((M, N), tl.float32), mask=inside)
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_cuda_leaves(tmp_path: Path) -> None:
    """Each format's C leaf gives, entry by entry, the float that `Format.decode` gives."""
    source, helpers = [cuda_source.HELPERS], ""
    for i, name in enumerate(NAMES):
        case = CASES[name]
        made = layouts.leaves(case.fmt, case.shape, f"leaf_{i}")
        helpers = made.cuda[: made.cuda.index("KDSL_LEAF int leaf_")]
        given = ", ".join(
            f"(const {cuda_source.C_TYPES[t.dtype]}*)tables[{n}]" for n, t in enumerate(made.tables)
        )
        assert all(table_name(t) in made.cuda for t in made.tables)
        source.append(
            made.cuda.removeprefix(helpers)
            + f'\nextern "C" void run_{i}(void** tables, float* out, int rows, int cols) {{\n'
            f"  for (int r = 0; r < rows; ++r) for (int c = 0; c < cols; ++c)\n"
            f"    out[r * cols + c] = leaf_{i}(r, c, {given});\n}}\n"
        )
    source.insert(1, helpers)
    (tmp_path / "leaves.cpp").write_text("\n".join(source))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-parentheses"]
    flags += ["-Wno-unused-function", "-Wno-unused-variable", "-shared", "-fPIC"]
    done = subprocess.run(
        [str(COMPILER), *flags, "leaves.cpp", "-o", "leaves.so"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:4000]
    library = ctypes.CDLL(str(tmp_path / "leaves.so"))
    for i, name in enumerate(NAMES):
        case = CASES[name]
        held = buffers(case, 4)
        arrays = layouts.operands(case.fmt, held, case.shape)
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        out = np.full(case.shape, np.nan, np.float32)
        getattr(library, f"run_{i}")(pointers, ctypes.c_void_p(out.ctypes.data), *case.shape)
        np.testing.assert_array_equal(out, case.fmt.dequantize(held, case.shape), err_msg=name)


def test_triton_leaves(tmp_path: Path) -> None:
    """The same of each format's Triton leaf, in the interpreter."""
    pytest.importorskip("triton")
    text = ["import triton\nimport triton.language as tl\n", triton_source.HELPERS]
    arrays: dict[str, np.ndarray] = {"count": np.array(len(NAMES))}
    for i, name in enumerate(NAMES):
        case = CASES[name]
        made = layouts.leaves(case.fmt, case.shape, f"leaf_{i}")
        helpers = made.triton[: made.triton.index(f"@triton.jit\ndef leaf_{i}_")]
        if i == 0:
            text.append(helpers)
        text += [made.triton.removeprefix(helpers), KERNEL.format(i)]
        held = layouts.operands(case.fmt, buffers(case, 4), case.shape)
        arrays |= {f"{i}.{n}": a for n, a in enumerate(held)}
        arrays |= {f"{i}.tables": np.array(len(held)), f"{i}.shape": np.array(case.shape)}
    (tmp_path / "generated.py").write_text("\n\n".join(text))
    (tmp_path / "run.py").write_text(RUN)
    np.savez(tmp_path / "given.npz", **arrays)
    done = subprocess.run(
        [sys.executable, "run.py", "given.npz", "found.npz"],
        cwd=tmp_path, env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = np.load(tmp_path / "found.npz")
    for i, name in enumerate(NAMES):
        case = CASES[name]
        wanted = case.fmt.dequantize(buffers(case, 4), case.shape)
        np.testing.assert_array_equal(found[str(i)], wanted, err_msg=name)
