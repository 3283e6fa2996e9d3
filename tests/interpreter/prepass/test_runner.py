"""What the tuner checks candidates with: right kernels pass, each kind of wrong one is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdsl import Grid, layouts, orders, targets
from kdsl.kernels.prepass.runner import PrepassRunner
from kdsl.runtime import codecache
from kdsl.runtime.tunables import operations, tunable_for
from kdsl.specs import Prepass
from tests.devices import DEVICE

pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
GRID = Grid(frames=3, height=6, width=9, text=5)
RIGHT = Prepass(
    tokens=GRID, heads=4, kv_heads=2, head_dim=64, dtype="float16", norm="rms", rope="half",
    layout=layouts.int8_qk_fp8_pv(), order=orders.axes(GRID, "HWF"), smooth=True, pool=(64, 128),
)  # fmt: skip
UNSIGNED = replace(RIGHT, layout=layouts.int8_qk_int8_pv("thread"))


def ran(spec: Prepass = RIGHT, family: str = "random", batch: int = 1) -> PrepassRunner:
    """A runner whose kernels ran on poisoned outputs."""
    tunable = tunable_for(spec, {}, batch)
    one: Any = tunable.make_runner(DEVICE, codecache.load)
    one.prepare(family, 3)
    one.poison()
    one.run(tunable.default(targets.get("h100")))
    return one


@pytest.mark.parametrize("family", PrepassRunner.families)
@pytest.mark.parametrize("norm", [None, "rms", "rms_token", "layer"])
def test_right_kernels_pass(norm: str | None, family: str) -> None:
    """With both kinds of inputs, 8-bit and 16-bit v."""
    for layout in (RIGHT.layout, UNSIGNED.layout, layouts.int8_qk()):
        check = ran(replace(RIGHT, norm=norm, layout=layout), family).check()
        assert check.right, check
        assert check.error > 0


def test_nothing_written_is_found() -> None:
    """Poisoned outputs that no kernel wrote are no results, each of them."""
    one = ran(UNSIGNED)
    kept = {n: x.clone() for n, x in one.out.items()}
    for name in UNSIGNED.outputs:
        one.poison()
        for other, x in kept.items():
            if other != name:
                one.out[other].copy_(x)
        assert not one.check().right, name


@pytest.mark.parametrize("name", ["q", "k"])
def test_wrong_codes_and_scales_are_found(name: str) -> None:
    """A code one off, a scale a thousandth off, codes of two tokens exchanged, a mean of a block
    off by a millionth of its size."""
    one = ran()
    kept = {n: x.clone() for n, x in one.out.items()}
    for spoil in range(4):
        codes, scale = one.out[name], one.out[f"{name}_scale"]
        if spoil == 0:
            codes[0, 1, 77, 9] += 1 if codes[0, 1, 77, 9] < 100 else -1
        elif spoil == 1:
            scale[0, 1, 0] *= 1.001
        elif spoil == 2:
            codes[0, 0, [4, 5]] = codes[0, 0, [5, 4]].clone()
        else:
            one.out[f"{name}_pool"][0, 0, 1, 3] += 1e-3
        assert not one.check().right, spoil
        for other, x in kept.items():
            one.out[other].copy_(x)


def test_wrong_means_and_values_are_found() -> None:
    """K's mean, v's codes, scale, sums and padding."""
    one = ran()
    kept = {n: x.clone() for n, x in one.out.items()}
    spoils: list[Any] = [
        lambda out: out["k_mean"][0, 1, 4].add_(1e-3),
        lambda out: out["v"].view(torch.int8)[0, 0, 7, 11].add_(1),
        lambda out: out["v"].view(torch.int8)[0, 0, 7, -1].add_(1),
        lambda out: out["v_scale"][0, 1, 0, 9].mul_(1.0001),
    ]
    for i, spoil in enumerate(spoils):
        spoil(one.out)
        assert not one.check().right, i
        for name, x in kept.items():
            one.out[name].copy_(x)
    one = ran(UNSIGNED)
    one.out["v_sum"][0, 0, 2, 3] += 1
    assert not one.check().right


def test_v_that_only_moves_is_compared_bit_by_bit() -> None:
    """16-bit v in stored order."""
    one = ran(replace(RIGHT, layout=layouts.int8_qk()))
    assert one.check().right
    one.out["v"][0, 1, 7, 3] *= 1.01
    assert not one.check().right


def test_the_tunable() -> None:
    """One operation; facts, sizes and a default that is legal on every kind of GPU."""
    assert operations(RIGHT) == ("prepass",)
    tunable = tunable_for(RIGHT, {}, 2)
    assert tunable.sizes()["tokens"] == 167
    for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090"):
        target = targets.get(name)
        assert tunable.legal(tunable.default(target), target) is None
