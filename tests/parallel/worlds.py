"""Masks to divide: random ones, and those that are hard."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from kdsl.blocks import from_maps
from kdsl.parallel.work import BlockWork

KINDS = ("dense", "random", "banded", "one dense head", "empty rows", "empty columns", "empty")


def kept(kind: str, heads: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A map of kept blocks ``[heads, rows, columns]``."""
    rng = np.random.default_rng(seed)
    density = rng.uniform(0.05, 0.8, (heads, 1, 1))
    out = rng.random((heads, rows, columns)) < density
    away = np.abs(np.arange(rows)[:, None] / rows - np.arange(columns)[None] / columns)
    if kind == "dense":
        out[:] = True
    if kind == "banded":
        out[:] = away[None] < density / 2
    if kind == "one dense head":
        out &= rng.random(out.shape) < 0.1
        out[rng.integers(heads)] = True
    if kind == "empty rows":
        out[:, rng.random(rows) < 0.5] = False
    if kind == "empty columns":
        out[:, :, : columns // 2] = False
    if kind == "empty":
        out[:] = False
    return out


def made(
    kind: str,
    heads: int,
    queries: int,
    keys: int | None = None,
    *,
    block: tuple[int, int] = (16, 16),
    kv_heads: int | None = None,
    seed: int = 0,
) -> BlockWork:
    """Work of a kind of mask."""
    keys = keys or queries
    rows, columns = -(-queries // block[0]), -(-keys // block[1])
    blocks = from_maps(kept(kind, heads, rows, columns, seed), None, block, queries, keys)
    return BlockWork.of(blocks, heads, kv_heads)


@st.composite
def works(draw: st.DrawFn) -> BlockWork:
    """Any work: heads 1 to 12, ragged lengths, grouped heads, all kinds of masks."""
    kv_heads, group = draw(st.sampled_from((1, 2, 3, 5, 12))), draw(st.sampled_from((1, 1, 2, 4)))
    return made(
        draw(st.sampled_from(KINDS)),
        kv_heads * group,
        draw(st.integers(1, 200)),
        draw(st.integers(1, 200)),
        kv_heads=kv_heads,
        seed=draw(st.integers(0, 2**16)),
    )
