"""Printed CUDA C leaves, compiled by the host's C++ compiler, against NumPy."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kdsl.errors import SpecError
from kdsl.expr import cuda_source, table
from kdsl.expr.nodes import var
from tests.strategies import Leaf, leaves, sample

COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
PARAMS = ("q", "k", "qs", "ks", "head", "batch")
LEAVES = 200
POINTS = 400

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def compiled(source: str, folder: Path) -> ctypes.CDLL:
    """A shared library of some C++ source, its warnings taken as errors."""
    (folder / "leaves.cpp").write_text(source)
    flags = ["-std=c++17", "-O1", "-fwrapv", "-Wall", "-Werror", "-Wno-parentheses"]
    unused = ["-Wno-unused-function", "-Wno-unused-variable", "-Wno-tautological-compare"]
    target = folder / "leaves.so"
    command = [str(COMPILER), *flags, *unused, "-shared", "-fPIC", "leaves.cpp", "-o", str(target)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(target))


def loop(number: int, leaf: Leaf) -> str:
    """A leaf, and a function that calls it over points."""
    name = f"leaf_{number}"
    source = cuda_source.leaf(name, PARAMS, leaf.variants, leaf.scope.bounds(), leaf.tables)
    pointers = [
        f"(const {cuda_source.C_TYPES[t.dtype]}*)tables[{i}]" for i, t in enumerate(leaf.tables)
    ]
    at = [f"index[{i}][n]" for i in range(len(PARAMS))]
    return (
        f'{source}\nextern "C" void run_{number}(int** index, void** tables, int* out, int count)'
        f" {{\n  for (int n = 0; n < count; ++n) out[n] = {name}({', '.join(at + pointers)});\n}}\n"
    )


def test_leaves_equal_numpy(tmp_path: Path) -> None:
    """Random masks and index leaves, by head too, give in C exactly what NumPy gives."""
    drawn = sample(leaves(), LEAVES)
    assert len(drawn) >= LEAVES // 2
    source = cuda_source.HELPERS + "\n".join(loop(i, leaf) for i, leaf in enumerate(drawn))
    library = compiled(source, tmp_path)
    for i, leaf in enumerate(drawn):
        at = leaf.points(POINTS)
        held = [np.ascontiguousarray(t.checked(leaf.scope.values[t.name])) if t.values is None
                else t.values for t in leaf.tables]  # fmt: skip
        out = np.empty(POINTS, np.int32)
        index = (ctypes.c_void_p * len(PARAMS))(*(at[p].ctypes.data for p in PARAMS))
        pointers = (ctypes.c_void_p * max(len(held), 1))(*(t.ctypes.data for t in held))
        library[f"run_{i}"](index, pointers, ctypes.c_void_p(out.ctypes.data), POINTS)
        np.testing.assert_array_equal(out, leaf.wanted(at), loop(i, leaf))


def test_floor_helpers_at_the_ends_of_32_bits(tmp_path: Path) -> None:
    """Rounded-down division is exact up to the ends of its type."""
    source = cuda_source.HELPERS + (
        'extern "C" int div(int a, int b) { return floordiv(a, b); }\n'
        'extern "C" int mod(int a, int b) { return floormod(a, b); }\n'
    )
    library = compiled(source, tmp_path)
    for a in (-(2**31), -(2**31) + 1, -8, -7, -1, 0, 1, 7, 2**31 - 1):
        for b in (1, 2, 7, 2**30 + 1, 2**31 - 1):
            assert library.div(a, b) == a // b
            assert library.mod(a, b) == a % b


def test_golden_leaf() -> None:
    """What a user reads in the generated file: names, floor helpers only where needed, a switch."""
    q, k = var("q"), var("k")
    doc = table("doc", 64, "int16")
    near = (doc[q] == doc[k]) & ((q - k) % 3 == 0)
    box = {"q": (0, 63), "k": (0, 63), "head": (0, 2)}
    variants = [([1], q // 4 >= k // 4), ([0, 2], near)]
    assert cuda_source.leaf("mask", ("q", "k", "head"), variants, box, (doc,)) == (
        "KDSL_LEAF bool mask(int q, int k, int head, const short* __restrict__ doc_table) {\n"
        "  switch (head) {\n"
        "    case 1: {\n"
        "      return (k / 4) <= (q / 4);\n"
        "    }\n"
        "    default: {\n"
        "      return (doc_table[q] == doc_table[k]) && (floormod(q - k, 3) == 0);\n"
        "    }\n"
        "  }\n"
        "}\n"
    )


def test_tables_may_be_named_like_anything() -> None:
    """A table called `int` or `t0` meets no keyword and no local name of the generated code."""
    q = var("q")
    for name in ("int", "t0", "head", "q", "floordiv"):
        held = table(name, 8)
        text = cuda_source.leaf("leaf", ("q",), [([0], held[q])], {"q": (0, 7)}, (held,))
        assert f"const int* __restrict__ {name}_table" in text


def test_out_of_range_leaves_are_not_printed() -> None:
    """A leaf that may overflow, or read outside its table, is refused."""
    q = var("q")
    with pytest.raises(SpecError, match="beyond 32 bits"):
        cuda_source.leaf("leaf", ("q",), [([0], q * q)], {"q": (0, 2**20)})
    doc = table("doc", 8)
    with pytest.raises(SpecError, match="runs from 0 to 8"):
        cuda_source.leaf("leaf", ("q",), [([0], doc[q])], {"q": (0, 8)}, (doc,))
