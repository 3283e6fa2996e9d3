"""Offsets past 2**31 elements along every axis of every tensor, of which little is touched."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import pytest
import torch

from kdsl import masks, orders
from kdsl.grid import Grid
from kdsl.kernels.attention import generate
from kdsl.kernels.attention import launch as forward
from kdsl.kernels.attention.backward import launch as backward
from kdsl.kernels.attention.config import Config
from kdsl.runtime import codecache
from kdsl.specs import Attention

NO_RESERVE = 0x4000
"""Linux: address space alone, memory only for pages that are written."""
GRID = Grid(height=4, width=5)
SHAPE = (2, 4, GRID.tokens, 64)
CONFIG = Config(16, 16, 4, 1)
AXES = {"batch": 0, "heads": 1, "tokens": 2, "columns": 3}


def spread(like: torch.Tensor, axis: int) -> torch.Tensor:
    """A copy whose last entries along an axis lie more than 2**31 elements behind its first.

    Where there are more than two, the stride itself fits 32 bits, and only its products do not.
    """
    apart = 2**31 // (like.shape[axis] - 1) + 64
    rest = [n for i, n in enumerate(like.shape) if i != axis]
    inner = torch.empty(rest, device="meta").stride()
    strides = [*inner[:axis], apart, *inner[axis:]]
    size = 1 + sum((n - 1) * s for n, s in zip(like.shape, strides, strict=True))
    kind = torch.empty(0, dtype=like.dtype).element_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    held = mmap.mmap(-1, size * kind, flags=flags)
    out = torch.frombuffer(held, dtype=like.dtype).as_strided(like.shape, strides)
    return out.copy_(like)


def spec() -> Attention:
    """Full and partial blocks, an order, two query heads a key head."""
    mask = masks.window(GRID, (3, 5)) | masks.sink(4)
    return Attention(
        tokens=GRID, heads=4, kv_heads=2, head_dim=64, dtype="float16", mask=mask, block=(16, 16),
        order=orders.axes(GRID, "WH"), return_lse=True,
    )  # fmt: skip


def drawn(*shapes: Sequence[int]) -> list[torch.Tensor]:
    """Noise in float16."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(tuple(s), generator=g).half() for s in shapes]


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_offsets_past_32_bits(axis: int) -> None:
    """Wherever elements lie, output, log-sum-exp and gradients are the same, bit for bit: of what
    all four kernels read, and of what they write."""
    s = spec()
    kv = (SHAPE[0], 2, *SHAPE[2:])
    q, k, v, do = drawn(SHAPE, kv, kv, SHAPE)
    tables = forward.table_tensors(s, {}, "cpu")
    held = forward.lists(s.rows(), s.heads, "cpu")
    turned = backward.inverted(s.rows(), s, "cpu")
    first = codecache.load(generate.source(s))
    module = codecache.load(generate.source(s, backward.TEMPLATE))

    def run(place: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        there = [place(x) for x in (q, k, v)]
        empty = [place(torch.full_like(x, torch.nan)) for x in (q, q, k, v)]
        out, lse = forward.launch(first, s, CONFIG, held, tuple(there), tables, out=empty[0])  # type: ignore[arg-type]
        level, delta = backward.rows(module, s, out, lse, place(do))
        given = backward.Given(*there, place(do), level, delta, tables)
        backward.queries_into(module, s, CONFIG, held, given, empty[1])
        backward.keys_into(module, s, CONFIG, turned, given, empty[2], empty[3])
        return [lse, level, delta, *empty]

    for found, wanted in zip(run(lambda x: spread(x, axis)), run(torch.clone), strict=True):
        assert torch.equal(found, wanted)
