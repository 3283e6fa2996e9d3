"""Packed sequences of different lengths: each is attention by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.errors import InputError, SpecError
from kdsl.grid import Grid
from kdsl.integrations.flash_attention import varlen, varlen_tables
from kdsl.runtime import build
from kdsl.specs import Attention

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")


def cumulative(lengths: list[int]) -> Any:
    """``cu_seqlens`` of some lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def seen(n: int, m: int, causal: bool, window: Any) -> Any:
    """Which of m keys each of n queries sees: both end together."""
    away = np.arange(m)[None, :] - (np.arange(n)[:, None] + m - n)
    left, right = window
    out = np.ones((n, m), bool)
    if causal:
        out &= away <= 0
    if left is not None:
        out &= away >= -left
    if right is not None:
        out &= away <= right
    return out


lengths = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6)
limits = st.sampled_from((None, 0, 1, 5))


@given(lengths, st.booleans(), st.tuples(limits, limits), st.integers(0, 9))
def test_tables(pairs: list[tuple[int, int]], causal: bool, window: Any, spare: int) -> None:
    """Queries see their own sequence's keys, aligned at its end, and padding sees nothing; torch
    and NumPy agree.  Sequences without queries or keys are among them."""
    ns, ms = ([p[i] for p in pairs] for i in range(2))
    queries, keys = sum(ns) + spare + 1, sum(ms) + 1
    cu_q, cu_k = cumulative(ns), cumulative(ms)
    made = varlen_tables(cu_q, cu_k, queries=queries, causal=causal, window=window)
    wanted = np.zeros((queries, keys), bool)
    for i, (n, m) in enumerate(pairs):
        here = np.ix_(range(cu_q[i], cu_q[i] + n), range(cu_k[i], cu_k[i] + m))
        wanted[here] = seen(n, m, causal, window)
    mask = masks.varlen(queries, keys)
    found = mask.dense(np.arange(queries), np.arange(keys), tables=made)
    np.testing.assert_array_equal(found, wanted)
    torch = pytest.importorskip("torch")
    other = varlen_tables(
        torch.tensor(cu_q), torch.tensor(cu_k), queries=queries, causal=causal, window=window
    )
    for name, values in made.items():
        assert other[name].dtype == torch.int32
        np.testing.assert_array_equal(other[name].numpy(), values)


def test_tables_wait_for_nothing() -> None:
    """On tensors without values the tables come out all the same: no value is looked at."""
    torch = pytest.importorskip("torch")
    cu = torch.empty(5, dtype=torch.int32, device="meta")
    made = varlen_tables(cu, cu, queries=64, causal=True, window=(4, 4))
    assert {(x.shape, x.dtype, x.device.type) for x in made.values()} == {
        ((64,), torch.int32, "meta")
    }


def packed(seed: int, tokens: int, heads: int) -> Any:
    """``[tokens, heads, 64]`` of noise."""
    return np.random.default_rng(seed).standard_normal((tokens, heads, 64)).astype(np.float32)


@pytest.mark.parametrize("causal", [False, True])
def test_each_sequence_by_itself(causal: bool) -> None:
    """Grouped queries, uneven lengths, an empty sequence and padding: outputs and log-sum-exps are
    those of each sequence alone."""
    ns, ms = [5, 0, 17, 9, 4], [5, 3, 30, 0, 2]
    spec = Attention(
        queries=40, keys=48, heads=4, kv_heads=2, head_dim=64, dtype="float32",
        mask=masks.varlen(40, 48), block=(16, 16), return_lse=True,
    )  # fmt: skip
    op = build(spec, backend="reference")
    q, k, v = packed(0, sum(ns), 4), packed(1, sum(ms), 2), packed(2, sum(ms), 2)
    cu_q, cu_k = cumulative(ns), cumulative(ms)
    out, lse = varlen(op, q, k, v, cu_q, cu_k, causal=causal)
    assert out.shape == q.shape
    assert lse.shape == (4, sum(ns))
    for i, (n, m) in enumerate(zip(ns, ms, strict=True)):
        own = slice(cu_q[i], cu_q[i] + n)
        if not n:
            continue
        if not m:
            assert not out[own].any()
            assert np.isneginf(lse[:, own]).all()
            continue
        one = Attention(
            queries=n, keys=m, heads=4, kv_heads=2, head_dim=64, dtype="float32",
            mask=masks.causal(m - n) if causal else masks.everything(), return_lse=True,
            block=(16, 16),
        )  # fmt: skip
        its = (x[s].swapaxes(0, 1)[None] for x, s in (
            (q, own), (k, slice(cu_k[i], cu_k[i] + m)), (v, slice(cu_k[i], cu_k[i] + m)),
        ))  # fmt: skip
        wanted, wanted_lse = build(one, backend="reference")(*its)
        # Sums over the same pairs in float64, rounded to float32 once.
        np.testing.assert_allclose(out[own].swapaxes(0, 1), wanted[0], atol=1e-6)
        np.testing.assert_allclose(lse[:, own], wanted_lse[0], atol=1e-6)


def test_blocks_of_other_sequences_are_skipped() -> None:
    """Blocks between sequences are not visited, those inside one are full but for the diagonal, in
    a stored order too."""
    tables = varlen_tables(np.array([0, 32, 96, 100]), queries=128, causal=True)
    spec = Attention(tokens=128, heads=1, head_dim=64, mask=masks.varlen(128), block=(16, 16))
    rows = spec.rows(tables)
    kept, full = (x[0, 0].astype(int) for x in (rows.kept(), rows.kept(partial=False)))
    wanted = np.zeros((8, 8), int)
    wanted[:2, :2] = np.tri(2)
    wanted[2:6, 2:6] = np.tri(4)
    np.testing.assert_array_equal(full, wanted - np.diag(np.diag(wanted)))
    wanted[6, 6] = 1
    np.testing.assert_array_equal(kept, wanted)
    grid = Grid(height=8, width=16)
    order = orders.axes(grid, "WH")
    turned = Attention(
        tokens=grid, heads=1, head_dim=64, mask=masks.varlen(grid), order=order, block=(16, 16)
    )
    dense = turned.element_mask.dense(order.index(), order.index(), tables=tables)
    each = dense.reshape(8, 16, 8, 16).any((1, 3))
    np.testing.assert_array_equal(turned.rows(tables).kept()[0, 0], each)


def test_wrong_lengths() -> None:
    """Tokens past the capacity, other axes and other cu_seqlens are errors; keys past the capacity
    are found where the table's values are checked."""
    spec = Attention(tokens=32, heads=2, head_dim=64, dtype="float32", mask=masks.varlen(32))
    op = build(spec, backend="reference")
    x = packed(0, 33, 2)
    with pytest.raises(InputError, match="q has shape"):
        varlen(op, x, x, x, np.array([0, 33]))
    with pytest.raises(InputError, match="cu_seqlens of shapes"):
        varlen(op, x[:9], x[:9], x[:9], np.array([0, 9]), np.array([0, 4, 9]))
    with pytest.raises(InputError, match=r"holds 0\.\.40"):
        varlen(op, x[:9], x[:9], x[:9], np.array([0, 9]), np.array([0, 40]))
    with pytest.raises(SpecError, match="queries="):
        masks.varlen("many")  # type: ignore[arg-type]
