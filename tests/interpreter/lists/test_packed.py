"""Partial blocks as bits: each bit is the mask's value for its pair.

In the interpreter here; `tests/kernels/lists/test_gpu.py` runs the same on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings

from kdsl import masks
from kdsl.grid import Grid
from kdsl.intervals.classify import head_order
from kdsl.kernels.attention import launch
from kdsl.kernels.attention.runner import seen
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.kernels.lists import packed
from kdsl.runtime import codecache
from kdsl.specs import Attention
from tests.devices import DEVICE, examples
from tests.interpreter.strategies import Case, cases

BLOCKS = ((64, 64), (64, 128), (128, 128), (128, 64), (128, 256))


def decoded(words: torch.Tensor, spec: Attention) -> npt.NDArray[np.bool_]:
    """Pairs ``[blocks, queries, keys]`` of words, by the description of `pack_pairs` alone."""
    held = words.cpu().numpy().astype(np.int64) & 0xFFFFFFFF
    query, key = (np.arange(n) for n in spec.block)
    within = key % 128
    lane, bit = within % 8 // 2, within // 8 * 2 + within % 2
    by_query = held[:, query // 64, :, query % 64].swapaxes(0, 1)  # [blocks, queries, words, 4]
    return (by_query[:, :, key // 128, lane] >> bit & 1).astype(np.bool_)


def check(spec: Attention, tables: dict[str, Any], batch: int) -> tuple[int, int]:
    """Hold all bits against the mask; (partial blocks, different ones)."""
    blocks = AttentionTunable(spec, tables, batch).blocks
    assert blocks is not None
    lists = launch.lists(blocks, spec.heads, DEVICE)
    leaf_tables = launch.table_tensors(spec, tables, DEVICE)
    begin, number, words = packed.of_lists(spec, codecache.load, lists, leaf_tables)
    assert {x.dtype for x in (begin, number, words)} == {torch.int32}
    pairs = decoded(words, spec)
    held = (lists.start, lists.full, lists.partial, lists.index, begin, number)
    start, full, partial, index, begin, number = (x.cpu().numpy() for x in held)
    (m, n), count = spec.block, 0
    for item in np.ndindex(start.shape[:2]):
        orders = (head_order(o, item[1]) for o in (spec.query_order, spec.kv_order))
        q, k = (o.index(tables)[np.arange(o.tokens)] for o in orders)
        wanted = np.zeros((start.shape[2] * m, (blocks.columns + 1) * n), np.bool_)
        wanted[: len(q), : len(k)] = seen(spec, item[1], item[0], tables, q, k)
        for row in range(start.shape[2]):
            at = (*item, row)
            for step in range(partial[at]):
                column = index[start[at] + full[at] + step]
                found = pairs[number[begin[at] + step]]
                tile = wanted[row * m : row * m + m, column * n : column * n + n]
                np.testing.assert_array_equal(found, tile)
                count += 1
    return count, len(words)


@settings(max_examples=examples(12))
@given(case=cases(("float16",), (64,), BLOCKS, 200))
def test_bits_equal_the_mask(case: Case) -> None:
    """Any mask, order, ragged length and batch."""
    check(case.spec, case.tables, case.batch)


def test_equal_blocks_share_words() -> None:
    """The diagonal blocks of a causal mask are one, the last ragged row of them another."""
    spec = Attention(tokens=1000, heads=2, head_dim=64, mask=masks.causal(), block=(128, 128))
    assert check(spec, {}, 1) == (8, 2)


def test_a_mask_without_partial_blocks() -> None:
    """There is something to point at, and nothing to read."""
    spec = Attention(tokens=512, heads=2, head_dim=64, mask=masks.everything(), block=(128, 128))
    assert check(spec, {}, 1)[0] == 0


def test_lines_of_one_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hash tells nothing apart, no line takes another's place."""
    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.zeros(a[2], dtype=torch.int64))
    lines = torch.tensor([[1, 2], [3, 4], [1, 2]], dtype=torch.int32)
    number, kept = packed.shared(lines)
    assert torch.equal(kept[number.long()], lines)


def test_video_windows_share_words() -> None:
    """A window of a video grid, whose rows of blocks repeat: fewer words than blocks."""
    grid = Grid(frames=4, height=8, width=16)
    spec = Attention(
        tokens=grid, heads=1, head_dim=64, mask=masks.window(grid, (3, 3, 5)), block=(64, 64)
    )
    count, different = check(spec, {}, 1)
    assert different < count
