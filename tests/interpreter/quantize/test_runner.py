"""What the tuner checks candidates with: right kernels pass, each kind of wrong one is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdsl import layouts, targets
from kdsl.kernels.quantize.runner import QuantizeRunner
from kdsl.layouts import Outline
from kdsl.runtime import codecache
from kdsl.runtime.tunables import operations, tunable_for
from kdsl.specs import Quantize

pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
RIGHT = Quantize(
    rows=40,
    columns=256,
    format=layouts.activations(),
    recipe=Outline((("mean", 0), ("signs", 0), ("hadamard", 64))),
    dtype="float16",
)


def runner(spec: Quantize = RIGHT, batch: int = 1) -> tuple[QuantizeRunner, dict[str, Any]]:
    """A runner of a spec on the CPU, and the default for an H100."""
    tunable = tunable_for(spec, {}, batch)
    made: Any = tunable.make_runner("cpu", codecache.load)
    return made, tunable.default(targets.get("h100"))


def ran(spec: Quantize = RIGHT, family: str = "random") -> QuantizeRunner:
    """A runner whose kernel ran on poisoned outputs."""
    one, params = runner(spec)
    one.prepare(family, 3)
    one.poison()
    one.run(params)
    return one


@pytest.mark.parametrize("family", QuantizeRunner.families)
@pytest.mark.parametrize("fmt", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_right_kernel_passes(family: str, fmt: str, dtype: str) -> None:
    """With both kinds of inputs, by token and by group, the error is below half of what it may be
    and is not nothing."""
    for group in (None, 64):
        spec = replace(RIGHT, format=layouts.activations(fmt, group), dtype=dtype)
        check = ran(spec, family).check()
        assert check.right, check
        assert 0 <= check.error < 0.5


def test_a_batch_is_checked_item_by_item() -> None:
    """Modulated, with zero points: each item has its own scale and shift."""
    spec = replace(
        RIGHT, norm="layer", modulate=True, format=layouts.activations("int8", None, True)
    )
    one, params = runner(spec, 3)
    one.prepare("random", 0)
    one.poison()
    one.run(params)
    assert one.check().right
    one.out["zeros"][2, 7] += 3
    assert not one.check().right


def test_nothing_written_is_found() -> None:
    """Poisoned outputs that a kernel leaves alone are no results."""
    one, _ = runner()
    one.prepare("random", 0)
    one.poison()
    assert not one.check().right


@pytest.mark.parametrize("fmt", ["int8", "fp8", "int4"])
def test_a_code_beside_the_right_one_is_found(fmt: str) -> None:
    """One code of all, off by one in its last bit."""
    one = ran(replace(RIGHT, format=layouts.activations(fmt)))
    assert one.check().right
    codes = one.out["codes"].view(torch.uint8)
    codes[0, 7, 13] ^= 1
    check = one.check()
    assert not check.right
    assert check.reason == "a code is off"


def test_a_scale_off_by_little_is_found() -> None:
    """A ten-thousandth: more than float32 loses."""
    one = ran()
    one.out["scales"][0, 5] *= 1.0001
    check = one.check()
    assert not check.right
    assert check.reason == "a scale is off"


def test_numbers_where_nan_belongs_are_found() -> None:
    """A group with NaN in it may not come out as numbers."""
    one = ran(family="special")
    assert one.check().right
    lost = one.out["scales"].isnan()
    assert lost.any()
    one.out["scales"][lost] = 1.0
    assert not one.check().right


@pytest.mark.parametrize(
    "other",
    [
        Outline((("signs", 0), ("hadamard", 64))),
        Outline((("mean", 0), ("hadamard", 64))),
        Outline((("mean", 0), ("signs", 0), ("hadamard", 128))),
        Outline((("mean", 0), ("signs", 0))),
    ],
    ids=["no mean", "no signs", "other blocks", "no rotation"],
)
def test_another_recipe_is_found(other: Outline) -> None:
    """What a kernel of another recipe computes from the same numbers does not pass."""
    one, _ = runner()
    wrong, params = runner(replace(RIGHT, recipe=other))
    one.prepare("random", 0)
    wrong.x = one.x
    wrong.run(params)
    one.out = wrong.out
    assert not one.check().right


def test_the_matrix_the_other_way_round_is_found() -> None:
    """A rotation by the transpose, at an order whose matrix is not symmetric."""
    spec = replace(RIGHT, columns=240, recipe=Outline((("rotate", 20),)))
    one, params = runner(spec)
    one.prepare("random", 0)
    matrix = one.folded.values["matrix"]
    matrix.copy_(matrix.T.clone())
    low = one.folded.values["low"]
    low.copy_(low.T.clone())
    one.run(params)
    assert not one.check().right


def test_the_tuner_finds_it() -> None:
    """One operation, with sizes that are soft and a space whose default is legal on every GPU."""
    assert operations(RIGHT) == ("quantize",)
    tunable = tunable_for(RIGHT)
    assert tunable.op == "quantize"
    assert tunable.sizes() == {"batch": 1, "rows": 40, "columns": 256}
    for target in targets.known():
        assert tunable.legal(tunable.default(target), target) is None
    with pytest.raises(Exception, match="no operation"):
        tunable_for(RIGHT, op="attention")
