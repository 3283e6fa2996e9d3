"""The truth about attention against torch's own attention in float64, and against hand counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.expr import table
from kdsl.grid import Grid
from kdsl.reference.attention import attention
from kdsl.specs import Attention

U64 = 2.0**-53


def torch_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sees: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp by torch, for a boolean mask ``[heads, queries, keys]``."""
    group = q.shape[1] // k.shape[1]
    tq, tk, tv = (torch.from_numpy(x).double() for x in (q, k, v))
    tk, tv = (x.repeat_interleave(group, dim=1) for x in (tk, tv))
    mask = torch.from_numpy(sees).expand(q.shape[0], -1, -1, -1)
    out = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, mask, scale=scale)
    score = (tq @ tk.transpose(2, 3) * scale).masked_fill(~mask, -math.inf)
    none = ~mask.any(-1)
    out = out.masked_fill(none[..., None], 0.0)
    return out.numpy(), score.logsumexp(-1).numpy()


def listed(kept: np.ndarray) -> masks.Mask:
    """The mask that a boolean array ``[queries, keys]`` spells out."""
    held = table(kept.astype(np.uint8))
    return masks.predicate(lambda q, k: held[q, k] != 0)


def close(found: np.ndarray, wanted: np.ndarray, keys: int, head_dim: int) -> None:
    """Equal up to what two orders of the same sums in float64 may differ by.

    Scores are below 40 here: their rounding, times the exponential's slope, and the sums' own.
    """
    allowed = U64 * (40 * (head_dim + 4) + 4 * keys + 8) * 4
    np.testing.assert_allclose(found, wanted, rtol=allowed, atol=allowed * 8)


def gaussian(spec: Attention, batch: int, seed: int = 0) -> list[np.ndarray]:
    """q, k and v."""
    rng = np.random.default_rng(seed)
    keys = (batch, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
    q = (batch, spec.heads, spec.query_grid.tokens, spec.head_dim)
    return [rng.standard_normal(shape) for shape in (q, keys, keys)]


@given(data=st.data())
def test_against_torch(data: st.DataObject) -> None:
    """Grouped heads, masks per head with empty rows, queries that are not the keys, any order."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]))
    queries, keys = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    sees = rng.random((heads, queries, keys)) < data.draw(st.sampled_from([0.05, 0.5, 1.0]))

    def order(tokens: int) -> Any:
        each = [orders.table(rng.permutation(tokens)) for _ in range(heads)]
        return data.draw(st.sampled_from([None, each[0], each]))

    each = [listed(kept) for kept in sees]
    spec = Attention(
        queries=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        dtype="float32",
        mask=each,
        order=order(queries),
        key_order=order(keys),
        scale=data.draw(st.sampled_from([None, 0.3])),
    )
    given = gaussian(spec, data.draw(st.sampled_from([1, 2])))
    out, lse = attention(spec, *given)
    wanted, wanted_lse = torch_attention(*given, sees, spec.softmax_scale)
    close(out, wanted, keys, 64)
    close(np.exp(lse), np.exp(wanted_lse), keys, 64)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(wanted_lse))
    np.testing.assert_array_equal(out[:, ~sees.any(2)], 0.0)


def test_block_maps_count_stored_positions() -> None:
    """A kept block speaks of the tokens that the order put there, not of those of that number."""
    grid = Grid(height=6, width=8)
    order = orders.axes(grid, "WH")
    kept = np.random.default_rng(3).random((2, 3, 3)) < 0.5
    spec = Attention(
        tokens=grid,
        heads=2,
        head_dim=64,
        dtype="float32",
        mask=masks.blocks("plan", order=order, block=(16, 16)),
        order=order,
        block=(16, 16),
    )
    # Token (row, column) of the grid stands at column * 6 + row.
    at = np.array([token % 8 * 6 + token // 8 for token in range(48)]) // 16
    sees = kept[:, at[:, None], at[None, :]]
    given = gaussian(spec, 1)
    out, lse = attention(spec, *given, {"plan": kept.astype(np.uint8)})
    wanted, wanted_lse = torch_attention(*given, sees, 0.125)
    close(out, wanted, 48, 64)
    close(np.exp(lse), np.exp(wanted_lse), 48, 64)


def hand_spec(**fields: Any) -> Attention:
    return Attention(
        **{"tokens": 2, "heads": 1, "head_dim": 64, "dtype": "float32", "scale": 1.0, **fields}
    )


def test_weights_by_hand() -> None:
    """Scores of log 1 and log 3 weigh a quarter and three quarters; the sum's log is log 4."""
    q, k, v = (np.zeros((1, 1, 2, 64)) for _ in range(3))
    q[0, 0, :, 0] = 1
    k[0, 0, :, 0] = [0.0, math.log(3)]
    v[0, 0, :, 5] = [4.0, 8.0]
    out, lse = attention(hand_spec(), q, k, v)
    np.testing.assert_allclose(out[0, 0, :, 5], [7.0, 7.0], rtol=1e-15)
    np.testing.assert_allclose(lse[0, 0], math.log(4), rtol=1e-15)
    out, lse = attention(hand_spec(mask=masks.causal()), q, k, v)
    np.testing.assert_allclose(out[0, 0, :, 5], [4.0, 7.0], rtol=1e-15)
    np.testing.assert_allclose(lse[0, 0], [0.0, math.log(4)], rtol=1e-15, atol=1e-15)


def test_grouped_heads_by_hand() -> None:
    """Query heads 0 and 1 read key head 0, heads 2 and 3 key head 1."""
    spec = hand_spec(heads=4, kv_heads=2)
    q, k = np.zeros((1, 4, 2, 64)), np.zeros((1, 2, 2, 64))
    v = np.broadcast_to(np.array([10.0, 20.0])[None, :, None, None], k.shape)
    out, _ = attention(spec, q, k, v)
    np.testing.assert_allclose(out[0, :, 0, 0], [10, 10, 20, 20], rtol=1e-15)


def test_scores_that_overflow_an_exponential() -> None:
    """Scores of a thousand are shifted before they are raised: weights 1 and 0, no infinity."""
    q, k, v = (np.zeros((1, 1, 2, 64)) for _ in range(3))
    q[..., 0], k[0, 0, :, 0], v[0, 0, :, 0] = 1, [1000.0, -1000.0], [3.0, 5.0]
    out, lse = attention(hand_spec(), q, k, v)
    assert out[0, 0, 0, 0] == 3.0
    assert lse[0, 0, 0] == 1000.0


def test_rows_that_see_nothing() -> None:
    """They are 0 and minus infinity, also with NaN all around; so is everything without keys."""
    q, k, v = (np.full((1, 1, 2, 64), np.nan) for _ in range(3))
    out, lse = attention(hand_spec(mask=masks.nothing()), q, k, v)
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    spec = hand_spec(tokens=None, queries=2, keys=0)
    out, lse = attention(spec, q, k[:, :, :0], v[:, :, :0])
    assert out.shape == (1, 1, 2, 64)
    assert (out == 0).all()
    assert np.isneginf(lse).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_values_reach_the_blocks_that_visit_them() -> None:
    """A NaN value of a hidden key reaches the queries of a visited block, and no other block."""
    spec = hand_spec(
        tokens=64,
        block=(16, 16),
        mask=masks.predicate(lambda q, k: (k // 16 == q // 16) & (k != 3)),
    )
    q, k, v = gaussian(spec, 1)
    v[0, 0, 3] = np.nan
    out, _ = attention(spec, q, k, v)
    assert np.isnan(out[0, 0, :16]).all()
    assert np.isfinite(out[0, 0, 16:]).all()
    k[0, 0, 40] = np.inf
    out, lse = attention(spec, q, k, v)
    assert np.isfinite(lse[0, 0, :32]).all()
    assert not np.isfinite(lse[0, 0, 32:48]).any()


def test_some_rows_alone() -> None:
    """``rows`` picks original queries, in the order asked for, with the same numbers."""
    spec = hand_spec(tokens=50, mask=masks.window(7), order=orders.table(np.arange(50)[::-1]))
    given = gaussian(spec, 2)
    out, lse = attention(spec, *given)
    picked = np.array([49, 0, 7])
    some, some_lse = attention(spec, *given, rows=picked)
    close(some, out[:, :, picked], 50, 64)
    close(some_lse, lse[:, :, picked], 50, 64)
