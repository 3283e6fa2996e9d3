"""The reference's gradients against differences of its forward, and against torch's autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from kdsl import masks, orders
from kdsl.grid import Grid
from kdsl.reference.attention import attention
from kdsl.reference.attention_backward import attention_backward
from kdsl.specs import Attention
from tests.interpreter.strategies import Case, cases

GRID = Grid(height=4, width=5, text=3)


def inputs(spec: Attention, batch: int, seed: int) -> list[Any]:
    """Gaussian q, k, v, dout and dlse in float64."""
    rng = np.random.default_rng(seed)
    queries = (batch, spec.heads, spec.query_grid.tokens, spec.head_dim)
    keys = (batch, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
    return [rng.standard_normal(s) for s in (queries, keys, keys, queries, queries[:3])]


def loss(spec: Attention, tensors: Any, dout: Any, dlse: Any, tables: Any) -> float:
    """A scalar whose gradients are those of the output and the log-sum-exp."""
    out, lse = attention(spec, *tensors, tables)
    return float((out * dout).sum() + (np.where(np.isneginf(lse), 0.0, lse) * dlse).sum())


@given(case=cases())
@settings(max_examples=25)
def test_differences(case: Case) -> None:
    """Along a random direction of each input the loss changes as its gradient says.

    A central difference of step h errs by h^2 / 6 times the third derivative and by rounding over
    h, both near 1e-8 for h = 1e-4 and a loss of some hundreds; a wrong sign or factor is at 1e-2.
    """
    spec = replace(case.spec, queries=case.spec.queries, scale=0.1)
    *tensors, dout, dlse = inputs(spec, case.batch, case.seed)
    gradients = attention_backward(spec, *tensors, dout, case.tables, dlse=dlse)
    rng, h = np.random.default_rng(case.seed), 1e-4
    for i, gradient in enumerate(gradients):
        assert gradient.shape == tensors[i].shape
        way = rng.standard_normal(tensors[i].shape)
        ends = []
        for sign in (h, -h):
            moved = [x + sign * way if j == i else x for j, x in enumerate(tensors)]
            ends.append(loss(spec, moved, dout, dlse, case.tables))
        slope = (ends[0] - ends[1]) / (2 * h)
        size = np.linalg.norm(gradient) * np.linalg.norm(way) + 1e-3
        assert abs(slope - float((gradient * way).sum())) < 1e-6 * size


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("used", ["both", "output"])
def test_autograd(group: int, used: str) -> None:
    """Every element is what torch derives in float64, with grouped heads and an order."""
    torch = pytest.importorskip("torch")
    spec = Attention(
        tokens=GRID,
        heads=4,
        kv_heads=4 // group,
        head_dim=64,
        mask=masks.window(GRID, (3, 3)) | masks.text(GRID),
        order=orders.axes(GRID, "WH"),
        block=(16, 16),
    )
    arrays = inputs(spec, 2, 0)
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in arrays[:3])
    dout, dlse = (torch.from_numpy(x) for x in arrays[3:])
    sees = torch.from_numpy(spec.element_mask.dense(np.arange(23), np.arange(23)))
    far = [x.repeat_interleave(group, 1) for x in (k, v)]
    score = (q @ far[0].transpose(2, 3) * spec.softmax_scale).masked_fill(~sees, -torch.inf)
    value = (score.softmax(-1) @ far[1] * dout).sum()
    if used == "both":
        value = value + (score.logsumexp(-1) * dlse).sum()
    value.backward()
    found = attention_backward(
        spec, *arrays[:3], arrays[3], dlse=arrays[4] if used == "both" else None
    )
    for wanted, gradient in zip((q.grad, k.grad, v.grad), found, strict=True):
        np.testing.assert_allclose(gradient, wanted.numpy(), rtol=1e-12, atol=1e-12)


def test_queries_that_see_nothing() -> None:
    """They have gradient 0 and give none, as do keys that nobody sees."""
    mask = masks.predicate(lambda q, k: (q != 3) & (k != 5) & (k <= q))
    spec = Attention(tokens=20, heads=1, head_dim=64, mask=mask, block=(16, 16))
    q, k, v, dout, dlse = inputs(spec, 1, 1)
    dq, dk, dv = attention_backward(spec, q, k, v, dout, dlse=dlse)
    assert (dq[0, 0, 3] == 0).all()
    assert (dk[0, 0, 5] == 0).all()
    assert (dv[0, 0, 5] == 0).all()
    dout[0, 0, 3] += 100.0
    again = attention_backward(spec, q, k, v, dout, dlse=dlse)
    for before, after in zip((dq, dk, dv), again, strict=True):
        assert np.array_equal(before, after)


def test_not_finite() -> None:
    """NaN in ``v`` or ``dout`` reaches what shares a visited block with it, and nothing else."""
    mask = masks.predicate(lambda q, k: (q // 16 == k // 16) & (k != 18) & (q != 20))
    spec = Attention(tokens=40, heads=1, head_dim=64, mask=mask, block=(16, 16))
    q, k, v, dout, _ = inputs(spec, 1, 2)
    bad = v.copy()
    bad[0, 0, 18, 3] = np.nan
    dq, dk, dv = attention_backward(spec, q, k, bad, dout)
    second = np.arange(16, 32)
    hit = np.isnan(dq[0, 0]).any(1)
    assert hit[np.setdiff1d(second, [20])].all()
    assert not hit[np.setdiff1d(np.arange(40), np.setdiff1d(second, [20]))].any()
    assert np.isnan(dk[0, 0, second]).any(1).all()
    assert np.isfinite(dv).all()
    dout[0, 0, 20, 0] = np.nan
    _, _, dv = attention_backward(spec, q, k, v, dout)
    assert np.isnan(dv[0, 0, second, 0]).all()
    assert np.isfinite(dv[0, 0, second, 1:]).all()
    assert np.isfinite(dv[0, 0, :16]).all()
