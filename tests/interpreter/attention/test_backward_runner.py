"""What the tuner checks backward kernels with: right ones pass, each kind of wrong one is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdsl import Attention, Grid, masks, orders
from kdsl.kernels.attention.backward.runner import BackwardRunner, tolerance
from kdsl.kernels.attention.backward.tunable import PARTS
from kdsl.runtime import codecache
from kdsl.runtime.tunables import operations, tunable_for

GRID = Grid(frames=2, height=5, width=7, text=6)
PARAMS = {"block_m": 32, "block_n": 32, "num_warps": 4, "num_stages": 1, "loads": "pointer"}
RIGHT = Attention(
    tokens=GRID,
    heads=4,
    kv_heads=2,
    head_dim=64,
    dtype="float16",
    mask=masks.window(GRID, (3, 3, 3)) | masks.text(GRID),
    order=orders.axes(GRID, "HWF"),
    block=(32, 32),
)
SPREAD = orders.per_head([orders.axes(GRID, name) for name in ("HWF", "FHW", "WHF", "FWH")])
EACH = pytest.mark.parametrize("part", PARTS)


def changed(**fields: Any) -> Attention:
    """The right spec with other fields."""
    return replace(RIGHT, **fields)


def runner(part: str, spec: Attention = RIGHT, batch: int = 1) -> BackwardRunner:
    """A runner of a spec's kernel on the CPU."""
    op = f"attention_backward_{part}"
    assert op in operations(spec)
    made: Any = tunable_for(spec, {}, batch, op).make_runner("cpu", codecache.load)
    return made


def checked(one: BackwardRunner, other: BackwardRunner, family: str) -> Any:
    """Check ``one`` on what the kernel of ``other`` computes from the same inputs."""
    one.prepare(family, 3)
    other.given = replace(one.given, tables=other.given.tables)
    other.poison()
    other.run(PARAMS)
    one.made = other.made
    return one.check()


@EACH
@pytest.mark.parametrize("family", BackwardRunner.families)
@pytest.mark.parametrize(
    ("fields", "batch"),
    [
        ({}, 1),
        ({"dtype": "float32"}, 2),
        ({"order": SPREAD, "key_order": SPREAD}, 1),
    ],
    ids=["grouped", "float32", "orders that differ in a group"],
)
def test_a_right_kernel_passes(part: str, family: str, fields: Any, batch: int) -> None:
    """With grouped heads, orders, text, a ragged end: the error is below a third of what is
    allowed."""
    one = runner(part, changed(**fields), batch)
    check = checked(one, one, family)
    assert check.right
    assert 0 < check.error < check.tolerance / 3


@EACH
def test_nothing_written_is_found(part: str) -> None:
    """Poisoned gradients that a kernel leaves alone are no results."""
    one = runner(part)
    one.prepare("random", 0)
    one.poison()
    check = one.check()
    assert not check.right
    assert "not written" in check.reason


@EACH
@pytest.mark.parametrize(
    "mask",
    [
        masks.window(GRID, (3, 3, 5)) | masks.text(GRID),
        masks.window(GRID, (3, 3, 3)),
        masks.window(GRID, (3, 1, 3)) | masks.text(GRID),
    ],
    ids=["one key too many on each side", "text forgotten", "rows forgotten"],
)
def test_a_wrong_mask_is_found(part: str, mask: Any) -> None:
    """A mask with pairs too many or too few shows where queries and keys point at its border."""
    check = checked(runner(part), runner(part, changed(mask=mask)), "pointed")
    assert check.error > 10 * check.tolerance


@EACH
def test_one_leaking_key_is_found(part: str) -> None:
    """Over a long row, one pair seen too many is far beyond the tolerance for pointing queries."""
    spec = Attention(tokens=512, heads=1, head_dim=64, dtype="float16", mask=masks.causal(),
                     block=(32, 32))  # fmt: skip
    leaky = replace(spec, mask=masks.predicate(lambda q, k: k <= q + 1))
    check = checked(runner(part, spec), runner(part, leaky), "pointed")
    assert check.error > 10 * check.tolerance


@EACH
def test_gradients_of_other_tokens_are_found(part: str) -> None:
    """Gradients written to the wrong tokens are found with either kind of inputs."""
    for family in BackwardRunner.families:
        one = runner(part)
        one.prepare(family, 3)
        one.run(PARAMS)
        one.made = {name: tuple(x.roll(1, dims=2) for x in xs) for name, xs in one.made.items()}
        assert not one.check().right


def test_a_forgotten_head_is_found() -> None:
    """dK and dV that lack a head of the group are wrong."""
    one = runner("keys")
    one.prepare("random", 3)
    one.given.do[:, 1::2] = 0
    one.run(PARAMS)
    one.prepare("random", 3)
    assert not one.check().right


def test_the_tolerance_grows_with_length_and_coarseness() -> None:
    """Coarser numbers and longer rows may be further off, and a float32 kernel hardly at all."""
    by_dtype = [
        tolerance(changed(dtype=dtype), "queries") for dtype in ("float32", "float16", "bfloat16")
    ]
    assert by_dtype == sorted(by_dtype)
    assert by_dtype[0] < 1e-4
    assert by_dtype[2] < 0.03
