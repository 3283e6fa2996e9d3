"""The merging kernel is one softmax over all keys: in the interpreter here, and on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.runtime.merge import merge
from kdsl.specs import HEAD_DIMS
from tests.devices import DEVICE, examples
from tests.tolerance import SUBNORMAL, U32, UNIT

# The interpreter computes with NumPy, which warns of what a GPU does in silence.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
DTYPES = ("float16", "float32") if DEVICE == "cpu" else ("bfloat16", "float16", "float32")


@settings(max_examples=examples(40))
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 90)),
    head_dim=st.sampled_from(HEAD_DIMS),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    spread=st.sampled_from((1.0, 30.0, 1e4)),
    seed=st.integers(0, 99),
)
def test_any_two_parts(
    shape: tuple[int, int, int],
    head_dim: int,
    dtypes: tuple[str, str, str],
    spread: float,
    seed: int,
) -> None:
    """Parts and results of any dtypes, log-sum-exps near and far apart, minus infinity on either
    side or both: the same as in float64, within each number's roundings."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, *shape, head_dim, generator=generator)
    la, lb = spread * torch.randn(2, *shape, generator=generator)
    kind = torch.rand(shape, generator=generator)
    la[(kind < 0.2) | (kind > 0.9)] = lb[kind > 0.8] = -torch.inf
    a[la == -torch.inf] = b[lb == -torch.inf] = 0
    first, second, wanted = (getattr(torch, name) for name in dtypes)
    a, b = a.to(DEVICE, first), b.to(DEVICE, second)
    la, lb = la.to(DEVICE), lb.to(DEVICE)
    exact = merge(a.double(), la.double(), b.double(), lb.double())
    rule = (a.double().abs(), la.double(), b.double().abs(), lb.double())
    sizes = merge(*rule)[0]
    found, joint = merge(a.clone(), la.clone(), b, lb, wanted)
    assert found.dtype == wanted
    assert joint.dtype == torch.float32
    # A weight exp(-d) has a difference rounded (d e^-d is below 1), two roundings of exp (up to
    # four from a GPU's ex2), those of the sum, its inverse and the product; then the sum of two.
    allowed = sizes * (9 * U32 + UNIT[dtypes[2]]) + SUBNORMAL[dtypes[2]]
    assert bool(((found.double() - exact[0]).abs() <= allowed).all())
    assert torch.equal(joint.isneginf(), exact[1].isneginf())
    # The logarithm of 1 to 2 is off by as much as its argument, and rounded with the level.
    off, level = (x.masked_fill(joint.isneginf(), 0).abs() for x in (joint - exact[1], exact[1]))
    assert bool((off <= U32 * (9 + level)).all())


def test_nan_stays() -> None:
    """A row with NaN in it is NaN, and no other row is."""
    out, lse = torch.ones(2, 1, 1, 40, 64, device=DEVICE), torch.zeros(2, 1, 1, 40, device=DEVICE)
    lse[0, 0, 0, 3] = lse[1, 0, 0, 5] = out[0, 0, 0, 7, 1] = torch.nan
    lse[1, 0, 0, 3] = -torch.inf
    found, joint = merge(out[0], lse[0], out[1], lse[1])
    assert found[0, 0].isnan().sum(-1).nonzero().flatten().tolist() == [3, 5, 7]
    assert joint[0, 0].isnan().nonzero().flatten().tolist() == [3, 5]
