"""Repeated launches of the quantize kernel, on a made-up driver: what would it read?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from benchmarks import made_up
from kdsl import layouts
from kdsl.kernels.launching import direct
from kdsl.kernels.quantize import launch
from kdsl.kernels.quantize.arguments import Folded
from kdsl.kernels.quantize.config import Config
from kdsl.kernels.quantize.facts import view
from kdsl.kernels.quantize.runner import made_up as values_for
from kdsl.layouts import Outline
from kdsl.runtime import codecache
from kdsl.specs import Quantize
from tests.recording import Driver, addresses


def test_later_launches_read_their_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a known kind hands the driver its own tensors, buffers and the recipe's values;
    other shapes, strides and alignment are other kinds."""
    spec = Quantize(
        rows=32, columns=256, format=layouts.activations(), norm="layer", modulate=True,
        recipe=Outline((("signs", 0), ("hadamard", 64))),
    )  # fmt: skip
    driver = Driver()
    monkeypatch.setattr(direct, "driver", lambda: driver)
    names = codecache.load(launch.source()).quantize_tiles.arg_names
    kernel = made_up.Kernel(names, driver)
    module = SimpleNamespace(quantize_tiles=kernel)
    made = launch.Launcher(module, spec, Config(block_m=view(spec).slots))
    folded = Folded.of(spec, spec.recipe.recipe(values_for(spec), spec.columns), "cpu")

    def called(x: Any, scale: Any, shift: Any) -> int:
        before = len(driver.read)
        out = made.outputs(x)
        made(x, folded, out, scale, shift)
        if len(driver.read) > before:
            given = (x, scale, shift, *out.values())
            held = [t for t in folded.values.values() if t is not None]
            assert addresses(*given, *held) <= driver.read[-1][1]
        return len(driver.read) - before

    sets = [[torch.randn(s).bfloat16() for s in ((32, 256), (256,), (256,))] for _ in range(3)]
    assert [called(*s) for s in sets] == [0, 1, 1]
    x, scale, shift = sets[0]
    assert called(torch.stack([x, x]), scale, shift) == 0
    assert called(torch.randn(32, 512).bfloat16()[:, :256], scale, shift) == 0
    assert called(torch.randn(1 + x.numel()).bfloat16()[1:].view(x.shape), scale, shift) == 0
    assert called(x, scale, shift) == 1
    assert not kernel.launches
