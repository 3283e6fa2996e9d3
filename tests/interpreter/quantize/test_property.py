"""The quantize kernel equals the reference: in the interpreter here, and on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kdsl
from kdsl import layouts, targets
from kdsl.kernels.quantize.config import candidates
from kdsl.layouts import Outline, rotations
from kdsl.layouts.hadamard import hadamard
from kdsl.runtime.builder import device_target
from kdsl.runtime.operator import Operator
from kdsl.specs import Quantize
from tests.devices import DEVICE, GPU, examples
from tests.quantizing import check, inputs, quantizes, values

# The interpreter computes with NumPy, which warns of what a GPU does in silence.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
DTYPES = ("float16", "float32") if DEVICE == "cpu" else ("bfloat16", "float16", "float32")
HADAMARD = Outline((("signs", 0), ("hadamard", 64)))


def built(spec: Quantize, tables: Any = None, config: Any = None) -> Operator:
    """The kernel of a spec on this device."""
    return kdsl.build(spec, gpu=GPU, tables=tables, config=config, backend="triton", mode="off")


def compare(spec: Quantize, batch: int | None = None, seed: int = 0, config: Any = None) -> None:
    """Run a spec on random numbers and hold it against the reference."""
    tables, given = values(spec, seed), inputs(spec, batch, seed, DEVICE)
    check(spec, built(spec, tables, config)(*given), given, tables)


@settings(max_examples=examples(40))
@given(data=st.data(), spec=quantizes(DTYPES), seed=st.integers(0, 2**16))
def test_kernel_equals_reference(data: st.DataObject, spec: Quantize, seed: int) -> None:
    """Any recipe, norm, activation, format and grouping, any legal configuration, ragged rows,
    with and without a batch axis."""
    target = device_target() if GPU is None else targets.get(GPU)
    assert target is not None
    legal = candidates(spec, target)
    # Two float32 matrices of 128 columns and their remainders do not fit a multiprocessor.
    assume(legal)
    config = legal[data.draw(st.integers(0, len(legal) - 1))]
    compare(spec, data.draw(st.sampled_from((None, 1, 3))), seed, config.to_json())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", ["int8", "fp8", "int4"])
def test_rows_of_zeros_and_of_no_numbers(dtype: str, fmt: str) -> None:
    """Zeros get scale 0; NaN and infinities make their own group's scale NaN and codes 0, and leave
    all other groups alone; numbers next to nothing do not become large ones."""
    spec = Quantize(
        rows=8, columns=256, format=layouts.activations(fmt, 128), recipe=HADAMARD, dtype=dtype
    )
    tables, (x,) = values(spec), inputs(spec, None, 0, DEVICE)
    x[1] = 0
    x[2, 3] = torch.nan
    x[3, 200] = torch.inf
    x[4, 7], x[4, 8] = torch.inf, -torch.inf
    x[5] = 1e-38 if dtype != "float16" else 6e-8
    x[6, :128] = 0
    codes, scales = built(spec, tables)(x)
    check(spec, (codes, scales), (x,), tables)
    lost = scales.isnan().cpu().numpy()
    np.testing.assert_array_equal(np.argwhere(lost), [[2, 0], [3, 1], [4, 0]])
    assert (scales[1] == 0).all()
    assert scales[6, 0] == 0
    assert scales[6, 1] > 0
    held = spec.format.unpack(
        {"codes": codes.cpu().numpy(), "scales": scales.cpu().numpy()}, (8, 256)
    )
    assert not held["code"][np.repeat(lost, 128, axis=1)].any()
    assert not held["code"][1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: str) -> None:
    """Rows of a wider tensor, batch items far apart, and a view that starts in the middle."""
    spec = Quantize(
        rows=5, columns=128, format=layouts.activations(), recipe=HADAMARD, dtype=dtype, norm="rms"
    )
    tables, op = values(spec), built(spec, values(spec))
    wide = inputs(replace(spec, columns=384), 3, 1, DEVICE)[0]
    for x in (wide[:, :, 128:256], wide[:, :, 1:129], wide[1, :, 200:328], wide[:, :, ::3]):
        check(spec, op(x), (x,), tables)


def test_modulation_of_all_items_and_of_each() -> None:
    """Scale and shift without a batch axis serve every item."""
    spec = Quantize(
        rows=4,
        columns=96,
        format=layouts.activations(),
        dtype="float32",
        norm="layer",
        modulate=True,
    )
    x, scale, shift = inputs(spec, 3, 0, DEVICE)
    op = built(spec)
    check(spec, op(x, scale[0], shift[0]), (x, scale[0], shift[0]), {})
    check(spec, op(x, scale, shift), (x, scale, shift), {})


@pytest.mark.parametrize("block", [12, 20, 28, 40, 60, 108, 180])
def test_hadamard_matrices_that_are_not_symmetric(block: int) -> None:
    """x times the matrix, not times its transpose: at orders of Paley's constructions."""
    recipe = Outline((("hadamard", block),))
    spec = Quantize(
        rows=7, columns=2 * block, format=layouts.activations(), recipe=recipe, dtype="float16"
    )
    compare(spec)
    x = torch.zeros((7, 2 * block), device=DEVICE, dtype=torch.float16)
    x[0, 1] = 1
    codes = built(spec)(x)[0].cpu().numpy()
    np.testing.assert_array_equal(codes[0, :block], 127 * hadamard(block)[1].astype(np.int64))


def test_two_rotations_with_an_order_between() -> None:
    """DuQuant's R1 P R2 as the calibration finds it: one kernel, and the same numbers."""
    x = inputs(
        Quantize(rows=64, columns=256, format=layouts.activations(), dtype="float32"),
        None,
        0,
        DEVICE,
    )[0]
    recipe = rotations.two_rotations(x.cpu().numpy(), 64, steps=8)
    for dtype in DTYPES:
        spec = Quantize(
            rows=64, columns=256, format=layouts.activations("int8"), recipe=recipe, dtype=dtype
        )
        assert [kind for kind, _ in spec.recipe.steps] == ["rotate", "channels", "rotate"]
        tables = layouts.tables(recipe)
        given = (x.to(getattr(torch, dtype)),)
        check(spec, built(spec, tables)(*given), given, tables)


def test_a_whole_row_of_many_blocks() -> None:
    """Widths whose number of blocks is no power of two, a scale for the whole of a row: the largest
    entry may lie in any block."""
    for columns in (1152, 3072):
        spec = Quantize(
            rows=3, columns=columns, format=layouts.activations(), recipe=HADAMARD, dtype="float16"
        )
        tables, (x,) = values(spec), inputs(spec, None, 2, DEVICE)
        x[0, -1], x[1, 64 * 7] = 500, 500
        check(spec, built(spec, tables)(x), (x,), tables)


def test_no_rows_of_a_batch() -> None:
    """A batch of nothing gives buffers of nothing and launches nothing."""
    spec = Quantize(rows=4, columns=64, format=layouts.activations("int4"), dtype="float32")
    codes, scales = built(spec)(torch.zeros((0, 4, 64), device=DEVICE))
    assert (tuple(codes.shape), tuple(scales.shape)) == ((0, 4, 32), (0, 4, 1))


def test_arrays_come_back_as_arrays() -> None:
    """NumPy in, NumPy out, through the kernel."""
    spec = Quantize(rows=4, columns=64, format=layouts.activations(), dtype="float16")
    x = inputs(spec, None, 0)[0]
    codes, scales = built(spec)(x.numpy())
    check(spec, (torch.from_numpy(codes), torch.from_numpy(scales)), (x,), {})
