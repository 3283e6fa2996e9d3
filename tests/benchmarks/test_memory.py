"""The memory command: exact bytes, and blocks that run at every number of bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
from benchmarks import memory  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")
SMALL = {"width": 256, "heads": 2}


def test_bytes_are_those_of_the_formats(tmp_path: Path) -> None:
    """Four bits and a float16 a group of 128, biases and modulation in 16 bits: counted by hand."""
    assert main(["memory", "--results", str(tmp_path), "--commit", "c"]) == 0
    (path,) = tmp_path.rglob("memory.json")
    lines = json.loads(path.read_text())["lines"]
    found = {(r["block"], r["weights"]): r["bytes"] for r in lines if r["kind"] == "weights"}
    weights = 8 * 5120**2 + 2 * 5120 * 13824
    outputs, rest = 9 * 5120 + 13824, 2 * (6 + 2) * 5120
    wan = {
        "bf16": 2 * weights + 2 * outputs + rest,
        "fp8": weights + 4 * outputs + 2 * outputs + rest,
        "w4": weights // 2 + weights // 64 + 2 * outputs + rest,
        "w3": 3 * weights // 8 + weights // 64 + 2 * outputs + rest,
    }
    assert {k: found["wan2.1-14b", k] for k in wan} == wan
    assert len(found) == 12


@pytest.mark.parametrize("scheme", memory.SCHEMES)
@pytest.mark.parametrize("name", memory.BLOCKS)
def test_blocks_run(name: str, scheme: str) -> None:
    """Small ones of the same shape give finite tokens, on random weights of any bits."""
    made: Any = memory.block(name, memory.SCHEMES[scheme], "cpu", **SMALL,
                             **({"inside": 640} if name.startswith("wan") else {}))  # fmt: skip
    memory.fill(made)
    with torch.no_grad():
        out = made(*memory.inputs(made, (6, 3), "cpu"))
    out = out if isinstance(out, tuple) else (out,)
    assert [tuple(t.shape) for t in out] == [(1, 6, 256), (1, 3, 256)][: len(out)]
    assert all(t.isfinite().all() for t in out)
    assert all(t.float().std() > 0.1 for t in out)
