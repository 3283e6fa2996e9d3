"""What is compiled ahead of time is what a launch compiles, to the key of Triton's disk cache.

So the tuner's compiling processes do the work once, and its figures are those of the kernel that
runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[3]

# A process of its own: it puts a driver without a GPU into Triton.
SCRIPT = """
import json, sys
import numpy as np
import torch
import triton, triton.compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver
from kdsl import Attention, Grid, masks, orders, targets, workloads
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.kernels.lists import packed
from kdsl.runtime import codecache
from kdsl.runtime.aot import compile_for
from kdsl.runtime.tunables import tunable_for

class Driver:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", TARGET.cc, 32)

keys = []

def compile(source, target=None, options=None, **more):
    backend = make_backend(target)
    chosen = backend.parse_options(dict(options or {}, **source.parse_options()))
    keys.append([source.hash(), chosen.hash(), backend.hash()])
    raise InterruptedError

def key_of(call):
    try:
        call()
    except Exception as error:
        assert isinstance(error, InterruptedError) or error.__cause__, error
    return keys[-1]

CASES = json.loads(sys.argv[1])
# Bits are made by a kernel of their own, before: what it makes does not matter here.
packed.of_lists = lambda *given: (torch.zeros(1, dtype=torch.int32),) * 3
triton.compile = triton.compiler.compile = compile
out = []
for gpu, name, change, op in CASES:
    TARGET = targets.get(gpu)
    driver.set_active(Driver())
    grid = Grid(frames=2, height=4, width=8, text=1)
    spec = {
        "plain": lambda: Attention(tokens=256, heads=2, head_dim=64, mask=masks.causal(),
                                   block=(64, 64), return_lse=True),
        "one head": lambda: Attention(tokens=64, heads=1, head_dim=80, dtype="float16",
                                      block=(64, 64)),
        "grouped": lambda: Attention(tokens=grid, heads=4, kv_heads=1, head_dim=96,
                                     mask=masks.window(grid, (1, 3, 3)),
                                     order=orders.axes(grid, "HWF"), block=(32, 32)),
        "orders": lambda: Attention(tokens=grid, heads=4, kv_heads=2, head_dim=64,
                                    order=[orders.axes(grid, n) for n in ("HWF", "FHW") * 2],
                                    block=(32, 32)),
        "stored": lambda: Attention(tokens=grid, heads=4, kv_heads=2, head_dim=96, stored=True,
                                    mask=masks.window(grid, (1, 3, 3)), block=(128, 128),
                                    order=orders.axes(grid, "HWF"), return_lse=True),
        "table": lambda: Attention(tokens=256, heads=2, head_dim=64, block=(64, 64),
                                   mask=masks.blocks("plan", block=(64, 64))),
    }[name]()
    tables = {t.name: np.ones(t.shape, np.uint8) for t in spec.open_tables}
    tunable = tunable_for(spec, tables, op=op)
    if not op:
        template = change.get("template", "portable")
        tunable = AttentionTunable(spec, tables, templates=(template,))
    params = {**tunable.default(TARGET), **change}
    assert tunable.legal(params, TARGET) is None
    runner = tunable.make_runner("cpu", codecache.load)
    described = tunable.ahead_of_time(params, TARGET)
    getattr(codecache.load(described.source), described.entry).device_caches.clear()
    out.append([key_of(lambda: runner.run(params)),
                key_of(lambda: compile_for(tunable, params, TARGET))])
print(json.dumps(out))
"""

FORWARD = [
    ("a100", "plain", {}),
    ("a100", "one head", {}),
    ("a100", "grouped", {"num_stages": 1}),
    ("a100", "table", {"num_warps": 8}),
    ("h100", "plain", {"loads": "descriptor"}),
    ("h100", "one head", {"loads": "descriptor"}),
    ("h100", "table", {"loads": "pointer"}),
    ("h100", "plain", {"template": "hopper", "masks": "leaf"}),
    ("h100", "plain", {"template": "hopper", "masks": "bits"}),
    ("h100", "one head", {"template": "hopper"}),
    ("h100", "table", {"template": "hopper", "workers": 0}),
    ("h100", "stored", {"template": "hopper"}),
]
BACKWARD = [
    ("a100", "plain", {}),
    ("a100", "grouped", {}),
    ("a100", "orders", {}),
    ("h100", "one head", {"block_m": 64, "block_n": 64, "loads": "descriptor"}),
    ("h100", "table", {"loads": "pointer"}),
]
CASES = [(*case, "") for case in FORWARD] + [
    (*case, f"attention_backward_{part}") for case in BACKWARD for part in ("keys", "queries")
]


def test_a_launch_finds_the_kernel_in_the_disk_cache() -> None:
    """Source, options and compiler of both ways have equal keys: for pointers and descriptors,
    integers that are 1 or multiples of 16, grouped heads and tables, in every template."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pairs = json.loads(done.stdout)
    assert len(pairs) == len(CASES)
    assert [
        case for case, (launch, ahead) in zip(CASES, pairs, strict=True) if launch != ahead
    ] == []
