"""Printed Triton leaves in Triton's interpreter, against NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdsl.expr import table, triton_source
from kdsl.expr.nodes import boolean, var
from tests.strategies import Leaf, leaves, sample

PARAMS = ("q", "k", "qs", "ks", "head", "batch")
LEAVES = 120
ROWS, COLUMNS = 16, 32

KERNEL = """
@triton.jit
def kernel_{i}(q, k, qs, ks, head, batch, out, tables, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    found = leaf_{i}(
        tl.load(q + m)[:, None], tl.load(k + n)[None, :], tl.load(qs + m)[:, None],
        tl.load(ks + n)[None, :], head, batch, tables,
    )
    {shape}
    tl.store(out + m[:, None] * N + n[None, :], found.to(tl.int32))

"""

RUN = """
import sys
import numpy as np
import torch
from generated import *

given = np.load(sys.argv[1])
found = {}
for i in range(int(given["count"])):
    arrays = [torch.from_numpy(given[f"{i}.{name}"]) for name in ("q", "k", "qs", "ks")]
    tables = tuple(
        torch.from_numpy(given[f"{i}.t{n}"]) for n in range(int(given[f"{i}.tables"]))
    )
    for head, batch in given[f"{i}.items"].tolist():
        out = torch.full((16, 32), -12345, dtype=torch.int32)
        globals()[f"kernel_{i}"][(1,)](*arrays, head, batch, out, tables, M=16, N=32)
        found[f"{i}.{head}.{batch}"] = out.numpy()
np.savez(sys.argv[2], **found)
"""


def source(number: int, leaf: Leaf) -> str:
    """A leaf and the kernel that stores it over a tile."""
    text = triton_source.leaf(
        f"leaf_{number}", PARAMS, leaf.variants, leaf.scope.bounds(), leaf.tables
    )
    is_mask = leaf.variants[0][1].is_bool
    # A mask comes in the tile's shape; an index in its rows' shape or more.
    shape = "tl.reshape(found, (M * N,))" if is_mask else "found += tl.zeros((M, N), tl.int32)"
    return text + KERNEL.format(i=number, shape=shape)


def interpreted(text: str, arrays: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """What the kernels of a file store, run by the interpreter in a process of its own."""
    head = "import triton\nimport triton.language as tl\n\n"
    (folder / "generated.py").write_text(head + triton_source.HELPERS + "\n\n" + text)
    (folder / "run.py").write_text(RUN)
    np.savez(folder / "given.npz", **arrays)
    done = subprocess.run(
        [sys.executable, "run.py", "given.npz", "found.npz"],
        cwd=folder,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(folder / "found.npz"))


@pytest.fixture(autouse=True)
def _needs_triton() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("torch")


def test_leaves_equal_numpy(tmp_path: Path) -> None:
    """Random masks and index leaves, by head too, give in Triton exactly what NumPy gives."""
    drawn = sample(leaves(), LEAVES)
    assert len(drawn) >= LEAVES // 2
    arrays: dict[str, np.ndarray] = {"count": np.array(len(drawn))}
    for i, leaf in enumerate(drawn):
        at = leaf.points(COLUMNS)
        for name, count in (("q", ROWS), ("qs", ROWS), ("k", COLUMNS), ("ks", COLUMNS)):
            arrays[f"{i}.{name}"] = at[name][:count]
        arrays[f"{i}.tables"] = np.array(len(leaf.tables))
        arrays[f"{i}.items"] = np.array([(h, h % 2) for h in range(leaf.scope.heads)])
        for n, t in enumerate(leaf.tables):
            held = t.values if t.values is not None else t.checked(leaf.scope.values[t.name])
            arrays[f"{i}.t{n}"] = held
    text = "\n\n".join(source(i, leaf) for i, leaf in enumerate(drawn))
    found = interpreted(text, arrays, tmp_path)
    for i, leaf in enumerate(drawn):
        for head, batch in arrays[f"{i}.items"]:
            at = {name: arrays[f"{i}.{name}"][:, None] for name in ("q", "qs")}
            at |= {name: arrays[f"{i}.{name}"][None, :] for name in ("k", "ks")}
            at |= {
                name: np.full((ROWS, COLUMNS), n) for name, n in (("head", head), ("batch", batch))
            }
            np.testing.assert_array_equal(
                found[f"{i}.{head}.{batch}"], leaf.wanted(at), source(i, leaf)
            )


FLOOR = """
@triton.jit
def kernel_0(q, k, qs, ks, head, batch, out, tables, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    a, b = tl.load(q + m)[:, None], tl.load(k + n)[None, :]
    found = floordiv(a, b) if head == 0 else floormod(a, b)
    tl.store(out + m[:, None] * N + n[None, :], found)
"""


def test_floor_helpers_at_the_ends_of_32_bits(tmp_path: Path) -> None:
    """Rounded-down division is exact up to the ends of its type."""
    some = [-(2**31), -(2**31) + 1, -8, -7, -1, 0, 1, 7, 2**31 - 1]
    a = np.resize(np.array(some, np.int32), ROWS)
    b = np.resize(np.array([1, 2, 7, 2**30 + 1, 2**31 - 1], np.int32), COLUMNS)
    arrays = {"count": np.array(1), "0.q": a, "0.qs": a, "0.k": b, "0.ks": b}
    arrays |= {"0.tables": np.array(0), "0.items": np.array([(0, 0), (1, 0)])}
    found = interpreted(FLOOR, arrays, tmp_path)
    wide = a.astype(np.int64)[:, None]
    np.testing.assert_array_equal(found["0.0.0"], wide // b)
    np.testing.assert_array_equal(found["0.1.0"], wide % b)


def test_golden_leaf() -> None:
    """What a user reads in the generated file: table pointers, floor helpers only where needed."""
    q, k = var("q"), var("k")
    doc = table("doc", 64, "int16")
    near = (doc[q] == doc[k]) & ((q - k) % 3 == 0)
    box = {"q": (0, 63), "k": (0, 63), "head": (0, 2)}
    variants = [([1], q // 4 >= 3), ([0, 2], near)]
    assert triton_source.leaf("mask", ("q", "k", "head"), variants, box, (doc,)) == (
        "@triton.jit\n"
        "def mask(q, k, head, tables):\n"
        "    doc_table = tables[0]\n"
        "    if head == 1:\n"
        "        out = (q >= 0) & (k >= 0) & (3 <= (q // 4))\n"
        "    else:\n"
        "        out = (tl.load(doc_table + (q)).to(tl.int32) == "
        "tl.load(doc_table + (k)).to(tl.int32)) & (floormod(q - k, 3) == 0)\n"
        "    return out\n"
    )


def test_constant_leaves_keep_their_shape() -> None:
    """Masks of everything or nothing, and an index of one token, still come as tensors."""
    box = {"q": (0, 63), "k": (0, 63), "s": (0, 0)}
    for truth, wanted in ((True, "(q >= 0) & (k >= 0)"), (False, "~((q >= 0) & (k >= 0))")):
        text = triton_source.leaf("mask", ("q", "k"), [([0], boolean(truth))], box)
        assert text.endswith(f"    return {wanted}\n")
    text = triton_source.leaf("index", ("s", "head"), [([0], var("s"))], box)
    assert text.endswith("    return s * 0 + (0)\n")
