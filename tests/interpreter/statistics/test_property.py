"""The statistics kernel equals the whole map: in the interpreter here, and on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import orders
from kdsl.grid import Grid
from kdsl.runtime.statistics import block_statistics
from kdsl.statistics import sampled_rows
from tests.devices import DEVICE
from tests.maps import check, whole
from tests.strategies import grids, order_of

DTYPES = ("float16", "float32") if DEVICE == "cpu" else ("float16", "float32", "bfloat16")
SIZES = (16, 32, 64, 128, 256)


@settings(max_examples=20 if DEVICE == "cpu" else 40)
@given(data=st.data(), grid=grids(150), seed=st.integers(0, 2**16))
def test_kernel_equals_whole_map(data: st.DataObject, grid: Grid, seed: int) -> None:
    """Random grids with text, ragged blocks, GQA, orders per head, head dimensions and strides."""
    block = data.draw(st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)))
    heads, shared = data.draw(st.sampled_from(((1, 1), (2, 2), (4, 2))))
    dim, dtype = data.draw(st.sampled_from((16, 64, 80))), data.draw(st.sampled_from(DTYPES))
    late = data.draw(st.booleans())
    order = data.draw(order_of(grid))
    if late:
        order = orders.per_head([data.draw(order_of(grid)) for _ in range(heads)])
    generator = torch.Generator().manual_seed(seed)
    shape = (2, grid.tokens, heads, dim)
    q = (1.5 * torch.randn(shape, generator=generator)).to(DEVICE, getattr(torch, dtype))
    k = torch.randn(2, shared, grid.tokens, dim, generator=generator).to(q.device, q.dtype)
    q = q.transpose(1, 2)
    rows = sampled_rows(-(-grid.tokens // block[0]), data.draw(st.integers(1, 3)), seed)
    eps = data.draw(st.sampled_from((0.3, 1.0, 3.0))) / grid.tokens
    found = block_statistics(q, k, order, block=block, rows=rows, eps=eps)
    assert np.isfinite(found.mass).all()
    index = np.broadcast_to(order.index(), (heads, grid.tokens))
    maps = [
        [whole(q[b, h], k[b, h * shared // heads], index[h], dim**-0.5) for h in range(heads)]
        for b in range(2)
    ]
    check(found, maps)


def test_blocks_of_several_tiles() -> None:
    """A block of 256 queries and keys is summed over the tiles that it is cut in."""
    grid, generator = Grid(frames=3, height=9, width=11, text=5), torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, grid.tokens, 16, generator=generator).to(DEVICE, torch.float16)
    order = orders.axes(grid, "HWF")
    found = block_statistics(q, k, order, block=(256, 256))
    check(found, [[whole(q[0, 0], k[0, 0], order.index(), 0.25)]])


def test_probabilities_below_float32_count_nothing() -> None:
    """Scores hundreds apart: what underflows has no mass, is below eps, and nothing is NaN."""
    q = torch.full((1, 1, 40, 16), 30.0, dtype=torch.float16, device=DEVICE)
    k = torch.zeros_like(q)
    k[0, 0, 5] = 10
    found = block_statistics(q, k, orders.identity(Grid(40)), block=(16, 16))
    np.testing.assert_array_equal(found.mass[0, 0], [[1, 0, 0]] * 3)
    np.testing.assert_array_equal(found.below[0, 0, 0], [240, 256, 128])
    np.testing.assert_array_equal(found.below[0, 0, 2], [120, 128, 64])
    np.testing.assert_array_equal(found.incoherence(), [[(16 + 1 + 1) / 3]])


def test_no_rows_and_no_batch() -> None:
    """Nothing to look at is no error, and launches nothing."""
    q = torch.zeros((1, 2, 20, 16), dtype=torch.float16, device=DEVICE)
    order = orders.identity(Grid(20))
    none = np.array([], np.int64)
    assert block_statistics(q, q, order, block=(16, 16), rows=none).mass.shape == (1, 2, 0, 2)
    assert block_statistics(q[:0], q[:0], order, block=(16, 16)).mass.shape == (0, 2, 2, 2)
