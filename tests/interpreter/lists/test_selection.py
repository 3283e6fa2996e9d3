"""Blocks chosen by kernels against the reference in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.errors import InputError
from kdsl.kernels.lists import selection
from kdsl.reference import selection as truth
from tests.devices import DEVICE


def on(x: Any) -> torch.Tensor:
    """An array on the device."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(DEVICE)


@settings(max_examples=10)
@given(
    tokens=st.integers(1, 70),
    block=st.sampled_from([16, 64]),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([64, 80]),
)
def test_scores(tokens: int, block: int, group: int, head_dim: int) -> None:
    """Means of ragged blocks in any strides, and scores of grouped heads: within the rounding of
    float32 sums, 2**-24 a term of at most 64 x 80 products of size one."""
    rng = np.random.default_rng(tokens)
    q = rng.standard_normal((2, tokens, 2 * group, head_dim)).astype(np.float32)
    k = rng.standard_normal((2, 2, tokens + 9, head_dim)).astype(np.float32)
    q_t = on(q).transpose(1, 2)
    held = q.swapaxes(1, 2)
    allowed = 64 * 2.0**-24 * float(np.abs(q).max())
    np.testing.assert_allclose(
        selection.pool(q_t, block).cpu(), truth.pool(held, block), rtol=0, atol=allowed
    )
    found = selection.scores(q_t, on(k), (block, 32), 0.125).cpu()
    wanted = truth.scores(held, k, (block, 32), 0.125)
    bound = (64 + head_dim) * 2.0**-24 * head_dim * float(np.abs(q).max() * np.abs(k).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.125 * bound)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Scores with many ties and both zeros, always kept blocks, allowed blocks; maps may spread."""
    shape = (draw(st.integers(1, 2)), 2, draw(st.integers(1, 4)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score = rng.integers(-3, 4, shape) * rng.choice([0.5, -0.0, 1.0], shape)
    always = rng.random(shape[2:]) < 0.1 if draw(st.booleans()) else None
    allowed = rng.random((1, 1, *shape[2:])) < 0.7 if draw(st.booleans()) else None
    return score.astype(np.float32), always, allowed


@settings(max_examples=30)
@given(problem=problems(), count=st.integers(0, 45))
def test_topk(problem: Any, count: int) -> None:
    """Exactly the reference's blocks, also where scores tie at the border."""
    score, always, allowed = problem
    maps = [None if x is None else on(x) for x in (always, allowed)]
    found = selection.topk(on(score), count, *maps)
    some = [d if x is None else x for x, d in ((always, False), (allowed, True))]
    assert found.dtype == torch.bool
    assert np.array_equal(found.cpu().numpy(), truth.topk(score, count, *some))


@settings(max_examples=30)
@given(problem=problems(), mass=st.floats(0.01, 1.0))
def test_topp(problem: Any, mass: float) -> None:
    """The reference's blocks; where they differ, its set for a mass within rounding is meant:
    float32 sums of at most 40 weights err by less than 64 units of 2**-24."""
    score, always, allowed = problem
    maps = [None if x is None else on(x) for x in (always, allowed)]
    found = selection.topp(on(score), mass, *maps).cpu().numpy()
    some = [d if x is None else x for x, d in ((always, False), (allowed, True))]
    least = truth.topp(score, mass * (1 - 2.0**-18), *some)
    most = truth.topp(score, mass * (1 + 2.0**-18), *some)
    assert not (least & ~found).any()
    assert not (found & ~most).any()


def test_bad_input_is_refused() -> None:
    """Counts, masses, scores and maps that make no sense are errors."""
    good = torch.zeros(1, 1, 2, 3, device=DEVICE)
    for call in (
        lambda: selection.topk(good, -1),
        lambda: selection.topp(good, 0.0),
        lambda: selection.topk(good.double(), 1),
        lambda: selection.topk(good[0], 1),
        lambda: selection.topk(good, 1, good),
    ):
        with pytest.raises(InputError):
            call()
