"""Operators on rows of blocks that are given: what they share, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import kdsl
from kdsl import masks
from kdsl.blocks import from_maps
from kdsl.errors import InputError, UnsupportedError
from kdsl.runtime.given_rows import take_rows


def operator(queries: int, heads: int = 2, **options: object) -> kdsl.Operator:
    """Everything sees everything, for a GPU that is not there."""
    spec = kdsl.Attention(
        queries=queries, keys=300, heads=heads, head_dim=64, mask=masks.everything(), block=(64, 64)
    )
    return kdsl.build(spec, **{"gpu": "a100", "mode": "off", **options})  # type: ignore[arg-type]


def rows(queries: int, heads: int = 2, seed: int = 0):
    """Random blocks."""
    size = (heads, -(-queries // 64), 5)
    kept = np.random.default_rng(seed).random(size) < 0.5
    return from_maps(kept, None, (64, 64), queries, 300)


def test_one_source_for_all_sizes() -> None:
    """Sizes, heads and rows are in no source; statistics and the operator's identity are of the
    rows."""
    made = [(operator(q, h), rows(q, h, q)) for q, h in ((200, 2), (300, 2), (130, 6))]
    for op, given in made:
        take_rows(op, given)
        assert op.blocks() is given
        assert op.cost()["density"] == pytest.approx(given.density)
    assert len({op.source for op, _ in made}) == 1
    other = operator(200)
    take_rows(other, rows(200, seed=9))
    assert other.identity != made[0][0].identity


def test_wrong_rows_are_refused() -> None:
    """Rows of other sizes, the reference, and masks with tables of their own."""
    with pytest.raises(InputError, match="200 x 300"):
        take_rows(operator(300), rows(200))
    with pytest.raises(UnsupportedError, match="without tables"):
        take_rows(operator(200, backend="reference", gpu=None), rows(200))
    mask = masks.blocks("plan", block=(64, 64))
    spec = kdsl.Attention(tokens=300, heads=2, head_dim=64, mask=mask, block=(64, 64))
    op = kdsl.build(spec, gpu="a100", mode="off")
    with pytest.raises(UnsupportedError):
        take_rows(op, rows(300))
