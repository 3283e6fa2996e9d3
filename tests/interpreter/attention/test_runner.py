"""What the tuner checks candidates with: right kernels pass, each kind of wrong one is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdsl import Attention, Grid, masks, orders
from kdsl.kernels.attention.runner import AttentionRunner, tolerance
from kdsl.runtime import codecache
from kdsl.runtime.tunables import tunable_for

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
    return_lse=True,
)


def runner(spec: Attention = RIGHT, batch: int = 1) -> AttentionRunner:
    """A runner of a spec on the CPU."""
    made: Any = tunable_for(spec, {}, batch).make_runner("cpu", codecache.load)
    return made


def checked(one: AttentionRunner, other: AttentionRunner, family: str) -> Any:
    """Check ``one`` on what the kernel of ``other`` computes from the same inputs."""
    one.prepare(family, 3)
    other.q, other.k, other.v = one.q, one.k, one.v
    other.poison()
    other.run(PARAMS)
    one.out, one.lse = other.out, other.lse
    return one.check()


@pytest.mark.parametrize("family", AttentionRunner.families)
@pytest.mark.parametrize(("dtype", "batch"), [("float16", 1), ("float32", 2)])
def test_a_right_kernel_passes(family: str, dtype: str, batch: int) -> None:
    """With grouped heads, an order, text, a ragged end, for both kinds of inputs: the error is
    below a third of what is allowed."""
    one = runner(replace(RIGHT, tokens=GRID, queries=None, keys=None, dtype=dtype), batch)
    check = checked(one, one, family)
    assert check.right
    assert 0 < check.error < check.tolerance / 3


def test_nothing_written_is_found() -> None:
    """Poisoned outputs that a kernel leaves alone are no results."""
    one = runner()
    one.prepare("random", 0)
    one.poison()
    check = one.check()
    assert not check.right
    assert "not written" in check.reason
    one.run(PARAMS)
    one.lse.fill_(float("nan"))
    assert "log-sum-exp" in one.check().reason


@pytest.mark.parametrize(
    "mask",
    [
        masks.window(GRID, (3, 3, 5)) | masks.text(GRID),
        masks.window(GRID, (3, 3, 3)),
        masks.window(GRID, (3, 1, 3)) | masks.text(GRID),
    ],
    ids=["one key too many on each side", "text forgotten", "rows forgotten"],
)
def test_a_wrong_mask_is_found(mask: Any) -> None:
    """A mask with keys too many or too few shows where queries point at its border."""
    spec = replace(RIGHT, tokens=GRID, queries=None, keys=None, mask=mask)
    check = checked(runner(), runner(spec), "pointed")
    assert check.error > 10 * check.tolerance


def test_one_leaking_key_is_found() -> None:
    """Over a long row, one key seen too many is far beyond the tolerance for pointing queries,
    though for Gaussian inputs of 16 bits it would be lost in rounding."""
    spec = Attention(tokens=512, heads=1, head_dim=64, dtype="float16", mask=masks.causal(),
                     block=(32, 32))  # fmt: skip
    leaky = replace(
        spec, tokens=512, queries=None, keys=None, mask=masks.predicate(lambda q, k: k <= q + 1)
    )
    check = checked(runner(spec), runner(leaky), "pointed")
    assert check.error > 10 * check.tolerance


def test_a_wrong_order_is_found() -> None:
    """Values read from the wrong tokens are found with either kind of inputs."""
    spec = replace(RIGHT, tokens=GRID, queries=None, keys=None, order=None, key_order=None)
    for family in AttentionRunner.families:
        one = runner(spec)
        one.prepare(family, 3)
        one.run(PARAMS)
        one.out = one.out.roll(1, dims=2)
        assert not one.check().right


def test_queries_that_see_nothing() -> None:
    """Their output is 0 and their log-sum-exp minus infinity; anything else is found."""
    spec = replace(
        RIGHT,
        tokens=GRID,
        queries=None,
        keys=None,
        order=None,
        key_order=None,
        mask=masks.predicate(lambda q, k: (q % 2 == 0) & (k <= q)),
    )
    one = runner(spec)
    assert checked(one, one, "random").right
    assert checked(one, one, "pointed").right
    hidden = next(int(r) for r in one.samples[0].rows if int(r) % 2)
    one.out[0, one.samples[0].head, hidden, 0] = 1e-3
    assert not one.check().right


def test_seeds_and_samples() -> None:
    """The same seed fills the same inputs, another one others; samples hold both ends of the
    sequence and both sides of a block's border."""
    one, other = runner(), runner()
    for family in AttentionRunner.families:
        one.prepare(family, 1)
        other.prepare(family, 1)
        assert one.q.equal(other.q)
        assert one.k.equal(other.k)
        assert one.v.equal(other.v)
        other.prepare(family, 2)
        assert not one.v.equal(other.v)
    for sample in one.samples:
        assert {0, 31, 32, GRID.tokens - 1} <= set(sample.rows.tolist())
        seen = sample.mask[np.arange(len(sample.rows)), sample.targets]
        assert seen.any()
        assert not seen.all()


def test_the_tolerance_grows_with_length_and_coarseness() -> None:
    """Coarser numbers and longer rows may be further off, and a float32 kernel hardly at all."""
    by_dtype = [
        tolerance(replace(RIGHT, tokens=GRID, queries=None, keys=None, dtype=dtype))
        for dtype in ("float32", "float16", "bfloat16")
    ]
    assert by_dtype == sorted(by_dtype)
    assert by_dtype[0] < 1e-4
    assert by_dtype[2] < 0.02
    short, long = (
        tolerance(Attention(tokens=n, heads=1, head_dim=64, dtype="float32")) for n in (64, 65536)
    )
    assert short < long < 1e-2
