"""The statistics kernel on a GPU: the interpreter's suite with bfloat16, and a real shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdsl import orders
from kdsl.grid import Grid
from kdsl.runtime.statistics import block_statistics, output_error
from kdsl.statistics import sampled_rows
from tests.devices import DEVICE
from tests.interpreter.statistics.test_property import *  # noqa: F403

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]


def test_a_video_models_map() -> None:
    """At 32,760 tokens, grouped and in stored order, the kernel agrees with NumPy in float32."""
    grid = Grid(frames=21, height=30, width=52)
    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(1, 2, grid.tokens, 128, generator=generator, device="cuda").bfloat16()
    k = torch.randn(1, 1, grid.tokens, 128, generator=generator, device="cuda").bfloat16()
    order = orders.axes(grid, "HWF")
    rows = sampled_rows(-(-grid.tokens // 64), 64)
    found = block_statistics(q, k, order, rows=rows)
    wanted = block_statistics(q.float().cpu().numpy(), k.float().cpu().numpy(), order, rows=rows)
    # Scores up to about 6 in float32 sums of 128 products: probabilities agree to 1e-4.
    np.testing.assert_allclose(found.mass, wanted.mass, rtol=1e-4)
    np.testing.assert_allclose(found.peak, wanted.peak, rtol=1e-4)
    assert abs(found.below - wanted.below).max() <= 2


def test_error_of_a_mask_by_the_operators() -> None:
    """Dense against block-sparse by our kernels equals the chunked NumPy computation."""
    grid = Grid(frames=4, height=12, width=20, text=30)
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, grid.tokens, 64, generator=generator, device="cuda").half()
    order = orders.per_head([orders.axes(grid, "HWF"), orders.axes(grid, "WFH")])
    kept = np.random.default_rng(0).random((2, 16, 16)) < 0.5
    found = output_error(q, k, v, order, kept)
    arrays = (x.float().cpu().numpy() for x in (q, k, v))
    np.testing.assert_allclose(found, output_error(*arrays, order, kept), rtol=2e-3)
