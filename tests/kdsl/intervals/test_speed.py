"""How long classification may take: the limits a user notices when a spec is built."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kdsl import masks, orders
from kdsl.blocks import Blocks
from kdsl.grid import Grid
from kdsl.intervals import classify

VIDEO = Grid(frames=129, height=90, width=160)


def median_of_three(classified: Callable[[], Blocks]) -> tuple[float, Blocks]:
    """Seconds of processor time (others share the machine), and the rows."""
    taken = []
    for _ in range(3):
        begin = time.process_time()
        found = classified()
        taken.append(time.process_time() - begin)
    return sorted(taken)[1], found


def test_a_million_tokens_causal_window() -> None:
    """Causal & window of 4,096 over 1,048,576 tokens in blocks of 128: under 150 ms."""
    mask = masks.causal() & masks.window(4096)
    taken, found = median_of_three(lambda: classify(mask, 1 << 20))
    # Row r keeps its own block in part, 31 whole ones before it, and part of the 32nd.
    assert int(found.full.sum()) == sum(min(r, 31) for r in range(8192))
    assert int(found.partial.sum()) == 8192 + 8192 - 32
    assert taken < 0.150


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        (orders.axes(VIDEO, "FHW"), 868_185),
        (orders.axes(VIDEO, "HWF"), 1_300_727),
        (orders.cubes(VIDEO, (4, 8, 8)), 357_219),
    ],
    ids=["FHW", "HWF", "cubes"],
)
def test_a_video_window(order: orders.Order, kept: int) -> None:
    """A (5, 9, 9) window of 1,857,600 tokens in blocks of 128: under a second in each order."""
    mask = masks.window(VIDEO, (5, 9, 9))
    taken, found = median_of_three(lambda: classify(mask, VIDEO, query_order=order))
    assert int(found.counts.sum()) == kept
    assert taken < 1.0
