"""Products of 16-bit x with stored weights, the portable kernel: the interpreter, and a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdsl
from kdsl import targets
from kdsl.kernels.matmul.weight_only.runner import WeightOnlyRunner
from kdsl.kernels.matmul.weight_only.tunable import WeightOnlyTunable
from kdsl.reference.matmul import matmul
from kdsl.runtime import codecache
from kdsl.specs import Matmul
from tests.devices import DEVICE, GPU, examples
from tests.matrices import (
    KINDS,
    check_weight_only,
    few_bits,
    weight_only,
    weight_only_operands,
)

# The interpreter computes with NumPy, which warns of what a GPU does in silence.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
DTYPES = ("float16",) if DEVICE == "cpu" else ("bfloat16", "float16")
SMALL = {"template": "portable", "block_m": 16, "block_n": 32, "block_k": 64, "num_warps": 4,
         "num_stages": 2}  # fmt: skip


def computed(spec: Matmul, given: dict[str, Any], config: dict[str, Any] | None = None) -> Any:
    """What the portable kernel makes of NumPy operands, as a tensor on the CPU."""
    op = kdsl.build(spec, gpu=GPU, backend="triton", mode="off", config=config or SMALL)
    moved = [
        torch.from_numpy(np.ascontiguousarray(given[n])).to(DEVICE, getattr(torch, dtype))
        for n, (_, dtype) in spec.operands.items()
    ]
    return op(*moved).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=examples(20))
@given(spec=weight_only(DTYPES[:1]), seed=st.integers(0, 99))
def test_any_product_of_stored_weights(dtype: str, spec: Matmul, seed: int) -> None:
    """Every kind of code, zero points, ragged sizes, every epilogue: within the derived bound."""
    spec = replace(spec, dtype=dtype)
    held = weight_only_operands(spec, seed)
    check_weight_only(spec, computed(spec, held), held)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_of_a_kind(kind: str, bits: int) -> None:
    """Each code in each place of a step, times 1: what it stands for, in 16 bits."""
    n, weight = 1 << bits, few_bits(kind, bits, 64)
    spec = Matmul(rows=16, inner=64, columns=4 * n, dtype="float16", weight=weight)
    patterns = (np.arange(4 * n)[:, None] + np.arange(64)[None, :]) % n
    one = np.full((4 * n, 1), 0x3C00, np.int64)
    fields = {"code": patterns, "scale": one, "zero": np.full((4 * n, 1), 5, np.int64)}
    held = weight.pack({k: v for k, v in fields.items() if k in weight.fields}, spec.weight_shape)
    for first in range(0, 64, 16):
        given = {f"weight_{name}": value for name, value in held.items()}
        given["x"] = np.zeros((16, 64), np.float16)
        given["x"][np.arange(16), first + np.arange(16)] = 1
        wanted = matmul(spec, given).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(computed(spec, given).float().numpy(), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", WeightOnlyRunner.families)
def test_the_tuner_tells_right_from_wrong(kind: str, family: str) -> None:
    """The runner passes a right kernel, and finds codes, scales and x of a neighbour."""
    spec = Matmul(rows=21, inner=256, columns=72, dtype="float16", weight=few_bits(kind, 4))
    tunable = WeightOnlyTunable(spec, ("portable",))
    one = tunable.make_runner(DEVICE, codecache.load)
    one.prepare(family, 3)
    one.poison()
    assert not one.check().right
    one.run(tunable.default(targets.get("a100")))
    found = one.check()
    assert found.right, found
    assert found.error > 0
    for name in one.operands:
        held = one.operands[name].clone()
        one.operands[name].copy_(held.roll(1, 0 if name == "x" else 1))
        assert not one.check().right, name
        one.operands[name].copy_(held)
