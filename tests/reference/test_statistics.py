"""The chunked statistics equal those of the whole map, and the metrics what they are defined as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import orders
from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.reference import statistics as reference
from kdsl.reference.attention import attention
from kdsl.runtime.statistics import block_statistics, output_error
from kdsl.specs import Attention
from kdsl.statistics import BlockStatistics, block_sizes, sampled_rows, text_blocks
from tests.maps import check, whole
from tests.strategies import grids, order_of

BLOCKS = st.sampled_from(((16, 16), (32, 16), (16, 64), (64, 64)))


def gaussian(seed: int, grid: Grid, heads: int, shared: int, dim: int = 16) -> tuple[Any, Any, Any]:
    """q, k, v whose scores have a deviation of about 1.5."""
    rng = np.random.default_rng(seed)
    q = 1.5 * rng.standard_normal((2, heads, grid.tokens, dim))
    k, v = rng.standard_normal((2, 2, shared, grid.tokens, dim))
    return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)


@settings(max_examples=25)
@given(data=st.data(), grid=grids(150), block=BLOCKS, seed=st.integers(0, 2**16))
def test_streamed_equals_whole(
    data: st.DataObject, grid: Grid, block: tuple[int, int], seed: int
) -> None:
    """Mass, maximum and count of random grids with text, ragged blocks, GQA and orders per head."""
    heads, shared = data.draw(st.sampled_from(((1, 1), (2, 2), (4, 2))))
    order = orders.per_head([data.draw(order_of(grid)) for _ in range(heads)])
    q, k, _ = gaussian(seed, grid, heads, shared)
    rows = sampled_rows(-(-grid.tokens // block[0]), data.draw(st.integers(1, 3)), seed)
    found = block_statistics(q, k, order, block=block, rows=rows)
    maps = [
        [whole(q[b, h], k[b, h * shared // heads], order.index()[h], 0.25) for h in range(heads)]
        for b in range(2)
    ]
    check(found, maps)
    np.testing.assert_allclose(found.mass.sum(-1), 1, rtol=1e-6)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block row at a time gives the same numbers as all together."""
    grid = Grid(frames=3, height=5, width=7, text=9)
    q, k, v = gaussian(0, grid, 2, 1)
    order, rows = orders.axes(grid, "HWF"), np.arange(8)
    kept = np.random.default_rng(0).random((2, 8, 8)) < 0.5
    shape: dict[str, Any] = {"block": (16, 16), "rows": rows, "scale": 0.25}

    def all_of() -> list[Any]:
        s = reference.block_statistics(q, k, order.index(), eps=0.01, **shape)
        e = reference.output_error(q, k, v, order.index(), kept, **shape)
        return [s.mass, s.peak, s.below, *e]

    wanted = all_of()
    monkeypatch.setattr(reference, "ENTRIES", 1)
    for a, b in zip(all_of(), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@settings(max_examples=25)
@given(grid=grids(150), block=BLOCKS, seed=st.integers(0, 2**16), sigma=st.floats(0.2, 1.0))
def test_metrics_are_their_definitions(
    grid: Grid, block: tuple[int, int], seed: int, sigma: float
) -> None:
    """M_sparse and M_quant of the statistics equal those computed from the blocks themselves."""
    q, k, _ = gaussian(seed, grid, 1, 1)
    index, rows = orders.identity(grid).index(), np.arange(-(-grid.tokens // block[0]))
    eps = 0.7 / grid.tokens
    found = reference.block_statistics(q, k, index, block=block, rows=rows, eps=eps, scale=0.25)
    inside = ~np.logical_or.outer(text_blocks(grid, block[0]), text_blocks(grid, block[1]))
    for b in range(2):
        m = whole(q[b, 0], k[b, 0], index, 0.25)
        sparse = reference.sparse_blocks(m.p, block, eps, sigma)
        assert found.sparse(sigma)[b, 0] == pytest.approx(sparse)
        assert found.incoherence()[b, 0] == pytest.approx(reference.incoherence(m.p, block))
        picked = [m.cut(block, int(r), int(c)) for r, c in np.argwhere(inside)]
        if picked:
            sparse = np.mean([(x < eps).sum() >= sigma * x.size for x in picked])
            assert found.sparse(sigma, inside)[b, 0] == pytest.approx(sparse)
            rough = np.mean([x.max() / x.mean() for x in picked])
            assert found.incoherence(inside)[b, 0] == pytest.approx(rough)


def test_metrics_by_hand() -> None:
    """Two of four blocks have three quarters of their entries below 0.1; Psi is 4, 1, 2 and 1."""
    p = np.array(
        [[0.8, 0.0, 0.1, 0.1], [0.0, 0.0, 0.1, 0.1], [0.2, 0.0, 0.0, 0.0], [0.2] + [0] * 3]
    )
    assert reference.sparse_blocks(p, (2, 2), 0.1, 0.75) == 0.5
    assert reference.incoherence(p, (2, 2)) == (4 + 1 + 2 + 1) / 4


def test_error_of_a_mask_is_attentions_own() -> None:
    """The error of kept blocks equals that of the two operators' references, head by head."""
    grid = Grid(frames=3, height=5, width=7, text=9)
    q, k, v = gaussian(1, grid, 4, 2, 64)
    order = orders.per_head([orders.axes(grid, a) for a in ("FHW", "HWF", "WFH", "FWH")])
    kept = np.random.default_rng(0).random((4, 8, 8)) < 0.5
    kept[0, 3] = False  # queries that see nothing give 0
    from kdsl.masks import blocks

    common: dict[str, Any] = {"tokens": grid, "heads": 4, "kv_heads": 2, "head_dim": 64}
    mask = blocks("kept", order=order, block=(16, 16))
    dense, _ = attention(Attention(**common), q, k, v)
    spec = Attention(**common, mask=mask, order=order, block=(16, 16))
    sparse, _ = attention(spec, q, k, v, {"kept": kept.astype(np.uint8)})
    wanted = np.linalg.norm(sparse - dense, axis=(2, 3)) / np.linalg.norm(dense, axis=(2, 3))
    found = output_error(q, k, v, order, kept, block=(16, 16))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    # Some block rows alone: the queries that are stored there.
    rows = np.array([1, 4, 7])
    for head, index in enumerate(order.index()):
        tokens = np.concatenate([index[16 * r : 16 * r + 16] for r in rows])
        off, size = (np.linalg.norm(x[:, head, tokens]) for x in (sparse - dense, dense))
        some = output_error(q[:1], k[:1], v[:1], order, kept, block=(16, 16), rows=rows)
        both = output_error(q[1:], k[1:], v[1:], order, kept, block=(16, 16), rows=rows)
        parts = [np.linalg.norm(dense[b, head, tokens]) for b in range(2)]
        changed = (some[0, head] * parts[0]) ** 2 + (both[0, head] * parts[1]) ** 2
        assert np.sqrt(changed) == pytest.approx(off, rel=1e-4)
        assert size > 0


def test_text_blocks() -> None:
    """Blocks that hold any text token, at either end; 226 tokens of text reach into a fourth."""
    grid = Grid(frames=13, height=30, width=45, text=226)
    assert np.flatnonzero(text_blocks(grid, 64)).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(text_blocks(Grid(50, text=20, text_at="end"), 16)).tolist() == [3, 4]
    assert not text_blocks(Grid(50), 16).any()
    assert block_sizes(50, 16).tolist() == [16, 16, 16, 2]


@given(rows=st.integers(1, 200), every=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_sample_has_one_row_of_each_stretch(rows: int, every: int, seed: int) -> None:
    """Sampled block rows are increasing, in range, one for every stretch of ``every``."""
    picked = sampled_rows(rows, every, seed)
    assert (picked // every).tolist() == list(range(-(-rows // every)))
    assert picked[-1] < rows


def test_bad_input_is_named() -> None:
    """Shapes, orders, blocks and rows that do not fit say what would."""
    q = np.zeros((1, 2, 20, 16), np.float32)
    order = orders.identity(Grid(20))
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((q[0], q, order), {}, "q is no tensor"),
        ((q, q[:, :, 1:], order), {}, "kv_heads that divide"),
        ((q, q[:, [0, 0, 1]], order), {}, "kv_heads that divide"),
        ((q, q, orders.identity(Grid(21))), {}, "an order over 21 tokens for 20"),
        ((q, q, orders.per_head([order] * 3)), {}, "orders for 3 heads of 2"),
        ((q, q, order), {"block": (64, 60)}, "blocks of"),
        ((q, q, order), {"block": (16, 16), "rows": [1, 1]}, "0 to 1"),
        ((q, q, order), {"block": (16, 16), "rows": [2]}, "0 to 1"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(InputError, match=message):
            block_statistics(*arguments, **options)
    with pytest.raises(InputError, match="kept has shape"):
        output_error(q, q, q, order, np.ones((2, 3, 3), bool), block=(16, 16))
    with pytest.raises(InputError, match="v has shape"):
        output_error(q, q, q[:, :1], order, np.ones((2, 2, 2), bool), block=(16, 16))
    mass = np.zeros((1, 1, 2, 2))
    with pytest.raises(InputError, match="statistics of shapes"):
        BlockStatistics(np.arange(3), (16, 16), 20, 0.1, mass, mass, mass.astype(int))
