"""The portable matmul kernel equals the reference: in the interpreter here, and on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdsl
from kdsl.kernels.matmul import launch
from kdsl.kernels.matmul.launch import capability_of
from kdsl.reference.matmul import matmul
from kdsl.specs import Matmul
from kdsl.specs.matmul import ACTIVATIONS
from tests.devices import DEVICE, GPU, examples
from tests.matrices import check, matmuls, operands, packed, packed_matmuls, spec_of

# The interpreter computes with NumPy, which warns of what a GPU does in silence.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
DTYPES = ("float16", "float32") if DEVICE == "cpu" else ("bfloat16", "float16", "float32")
SMALL = {"block_m": 16, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 2}


def capability() -> tuple[int, int]:
    """Of the GPU; the interpreter adds in float32."""
    return (0, 0) if DEVICE == "cpu" else capability_of(torch.device("cuda"))


def computed(spec: Matmul, given: dict[str, Any], **options: Any) -> Any:
    """What the portable kernel makes of NumPy operands, as a tensor on the CPU."""
    op = kdsl.build(spec, gpu=GPU, backend="triton", mode="off", **options)
    moved = [tensor(spec, name, given[name]) for name in spec.operands]
    return op(*moved).cpu()


def tensor(spec: Matmul, name: str, value: Any) -> torch.Tensor:
    """An operand on the device."""
    held = torch.from_numpy(np.ascontiguousarray(value))
    return held.to(DEVICE, getattr(torch, spec.operands[name][1]))


UNITS = ("float16",) if DEVICE == "cpu" else ("float16", "e4m3")
"""Triton's interpreter takes the pattern of e4m3's NaN for 480."""


def without_unit(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """Let the launcher believe that the GPU has no unit for e4m3."""
    if unit == "float16":
        monkeypatch.setattr(launch, "capability_of", lambda device: (8, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=examples(20))
@given(spec=matmuls(DTYPES[:1]), seed=st.integers(0, 99))
def test_any_product(dtype: str, spec: Matmul, seed: int) -> None:
    """Ragged sizes, both codes, zero points, every epilogue: within the derived bound."""
    spec = replace(spec, dtype=dtype)
    given = operands(spec, seed)
    if spec.dtype == "bfloat16":
        for name in ("bias", "residual"):
            if name in given:
                given[name] = torch.from_numpy(given[name]).bfloat16().float().numpy()
    check(spec, computed(spec, given, config=SMALL), given, capability())


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=examples(13))
@given(spec=packed_matmuls(DTYPES[:1]), seed=st.integers(0, 99))
def test_any_product_with_few_bits(dtype: str, spec: Matmul, seed: int) -> None:
    """Four bits of a log codebook or uniform, three bits, on both units, scales of several group
    sizes, ragged sizes: within the derived bound."""
    spec = replace(spec, dtype=dtype)
    given = operands(spec, seed)
    if spec.bias and spec.dtype == "bfloat16":
        given["bias"] = torch.from_numpy(given["bias"]).bfloat16().float().numpy()
    check(spec, computed(spec, given, config=SMALL), given, capability())


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("code", ["int8", "fp8"])
@pytest.mark.parametrize("unit", ["float16", "own"])
def test_every_code_of_a_book(
    bits: int, code: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each code in each place of a word, in each group, times 1: exactly what it stands for."""
    without_unit(monkeypatch, unit)
    n, group = 1 << bits, 64
    weight = packed(bits, code, group)
    spec = spec_of(code, rows=16, inner=128, columns=8 * n, dtype="float32", weight=weight)
    patterns = (np.arange(8 * n)[:, None] + np.arange(128)[None, :]) % n
    halves = np.array([1.0, 0.5], np.float16).view(np.uint16).astype(np.int64)
    fields = {"code": patterns, "scale": np.tile(halves, (8 * n, 1))}
    held = weight.pack(fields, spec.weight_shape)
    one = 0x38 if code == "fp8" else 1
    for first in range(0, 128, 16):
        given = {n: np.zeros(s, t) for n, (s, t) in spec.operands.items()}
        given |= {f"weight_{name}": value for name, value in held.items()}
        given["x_codes"][np.arange(16), first + np.arange(16)] = one
        given["x_scales"] += 1
        found = computed(spec, given, config=SMALL).numpy()
        np.testing.assert_array_equal(found, matmul(spec, given))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize(("code", "asymmetric"), [("int8", False), ("int8", True), ("fp8", False)])
def test_every_epilogue(code: str, asymmetric: bool, activation: str | None) -> None:
    """Each activation behind bias and before a residual, in float32, where nothing hides."""
    spec = spec_of(
        code, asymmetric, dtype="float32", activation=activation, bias=True, residual=True
    )
    given = operands(spec)
    check(spec, computed(spec, given, config=SMALL), given, capability())


def test_activations_at_their_ends() -> None:
    """Far out, at zero and where exponentials overflow: identity, zero, and no NaN."""
    far = np.array([-1e4, -100, -20, -3, -0.0, 0.0, 3, 20, 100, 1e4], np.float32)
    for activation in ACTIVATIONS:
        spec = spec_of(
            rows=1, inner=16, columns=len(far), dtype="float32", bias=True, activation=activation
        )
        given = {n: np.zeros(s, t) for n, (s, t) in spec.operands.items()} | {"bias": far}
        found = computed(spec, given, config=SMALL).numpy()[0]
        np.testing.assert_allclose(found, matmul(spec, given)[0], rtol=1e-5, atol=1e-6)
        assert (found[-2:] == far[-2:]).all()
        assert (found[:2] == 0).all()


def test_rows_without_numbers_stay_apart() -> None:
    """A row whose scale is NaN, as Quantize gives it for a row with NaN, is NaN alone."""
    spec = spec_of(bias=True, activation="gelu_tanh")
    given = operands(spec)
    given["x_scales"][5] = np.nan
    given["x_codes"][5] = 0
    found = computed(spec, given, config=SMALL)
    lost = found.isnan()
    assert lost[5].all()
    assert lost.sum() == spec.columns
    check(spec, found, given, capability())


@pytest.mark.parametrize("unit", UNITS)
def test_nan_codes_are_nan(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """e4m3's NaN reaches its row or column, in the unit's arithmetic and in float16's."""
    without_unit(monkeypatch, unit)
    spec = spec_of("fp8", dtype="float32")
    given = operands(spec)
    given["weight_codes"][3, 7] = 0x7F
    given["x_codes"][2, 9] = 0xFF
    found = computed(spec, given, config=SMALL)
    lost = found.isnan()
    assert lost[:, 3].all()
    assert lost[2].all()
    assert lost.sum() == spec.rows + spec.columns - 1


@pytest.mark.parametrize("unit", ["float16", "e4m3"])
def test_every_code_is_multiplied(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 254 finite e4m3 patterns, subnormal ones too, times 1: exactly what they stand for."""
    without_unit(monkeypatch, unit)
    patterns = np.setdiff1d(np.arange(256), (0x7F, 0xFF)).astype(np.uint8)
    spec = spec_of("fp8", rows=len(patterns), inner=16, columns=16, dtype="float32")
    given = {n: np.zeros(s, t) for n, (s, t) in spec.operands.items()}
    given["x_codes"][:, 0], given["weight_codes"][:, 0] = patterns, 0x38
    given["x_scales"] += 1
    given["weight_scales"] += 1
    found = computed(spec, given, config=SMALL).numpy()
    np.testing.assert_array_equal(found, matmul(spec, given))


def test_any_strides_of_rows() -> None:
    """Rows of x, weight and residual may lie apart; columns that do are copied."""
    spec = spec_of(residual=True, bias=True)
    given = operands(spec)
    op = kdsl.build(spec, gpu=GPU, backend="triton", mode="off", config=SMALL)
    moved = {n: tensor(spec, n, given[n]) for n in spec.operands}
    wanted = op(*moved.values())
    for name in ("x_codes", "weight_codes", "residual"):
        t = moved[name]
        wide = torch.zeros((t.shape[0], t.shape[1] + 24), dtype=t.dtype, device=t.device)
        wide[:, 8:-16] = t
        moved[name] = wide[:, 8:-16]
    assert torch.equal(op(*moved.values()), wanted)
    moved["residual"] = moved["residual"].T.contiguous().T
    assert torch.equal(op(*moved.values()), wanted)


def test_bound_operands() -> None:
    """Bound weights and bias give the same numbers, and the sums that zero points meet are made
    once; NumPy in, NumPy out."""
    spec = spec_of("int8", True, bias=True)
    given = operands(spec)
    op = kdsl.build(spec, gpu=GPU, backend="triton", mode="off", config=SMALL)
    fixed = {n: v for n, v in given.items() if n.startswith(("weight", "bias"))}
    bound = op.bind(fixed)
    rest = [given[n] for n in spec.operands if n not in fixed]
    found = bound(*rest)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, op(*given.values()))
    check(spec, found, given, capability())


def test_every_tile_gives_the_same_integers() -> None:
    """int8 sums are exact: tiles, steps and groups change no bit of the result."""
    spec = spec_of("int8", True, rows=130, columns=200, inner=272, dtype="float32", bias=True)
    given = operands(spec)
    first = computed(spec, given, config=SMALL)
    for change in (
        {"block_m": 64, "block_n": 64, "block_k": 128},
        {"block_m": 32, "block_n": 128, "group": 1},
        {"block_m": 128, "block_n": 64, "num_stages": 3, "group": 4},
    ):
        assert torch.equal(computed(spec, given, config={**SMALL, **change}), first)
    assert torch.equal(
        computed(replace(spec, residual=True), given | {"residual": np.zeros((130, 200))},
                 config=SMALL), first
    )  # fmt: skip
