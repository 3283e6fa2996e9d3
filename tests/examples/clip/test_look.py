"""What dropping blocks does to outputs and to one token's view."""

from __future__ import annotations

import numpy as np
import pytest

from examples.clip import look
from examples.clip.axis_orders import stored_to_original
from examples.clip.calibrate import Calibration
from examples.clip.heads import HEADS, Projected


def _masked(made: Projected, found: Calibration, head: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole map of a head in original order, and which entries its blocks keep."""
    q, k = made.q[0, head].astype(np.float64), made.k[0, head].astype(np.float64)
    p = np.exp(q @ k.T / 8)
    index = stored_to_original(found.grid, found.orders[head])
    rows, columns = found.settings.block
    keep = np.empty(p.shape, bool)
    stored = np.kron(found.blocks[head], np.ones((rows, columns))).astype(bool)
    keep[np.ix_(index, index)] = stored[: len(p), : len(p)]
    return p, keep


@pytest.mark.parametrize("head", range(len(HEADS)))
def test_errors_are_those_of_masked_attention(
    head: int, small_made: Projected, small_found: Calibration
) -> None:
    """The streamed error equals that of the whole masked map, computed in original order."""
    p, keep = _masked(small_made, small_found, head)
    v = small_made.v[0, head]
    dense = p / p.sum(1, keepdims=True) @ v
    sparse = (p * keep) / (p * keep).sum(1, keepdims=True) @ v
    wanted = np.linalg.norm(sparse - dense) / np.linalg.norm(dense)
    assert look.mask_errors(small_made, small_found)[head] == pytest.approx(wanted, rel=1e-3)


def test_errors_of_the_clip_are_small_but_real(made: Projected, found: Calibration) -> None:
    """Keeping 95 % of the mass costs each head some accuracy, and under 10 % of it."""
    assert all(1e-3 < error < 0.1 for error in look.mask_errors(made, found))


@pytest.mark.parametrize("token", [0, 100, 209])
def test_a_glance_is_a_row_of_the_map(
    token: int, small_made: Projected, small_found: Calibration
) -> None:
    """Dense and sparse rows come back in original order, each summing to 1."""
    head = 2
    p, keep = _masked(small_made, small_found, head)
    seen = look.glance(small_made, small_found, head, token)
    np.testing.assert_allclose(seen.dense, p[token] / p[token].sum(), atol=1e-6)
    left = p[token] * keep[token]
    np.testing.assert_allclose(seen.sparse, left / left.sum(), atol=1e-6)
    np.testing.assert_array_equal(seen.sparse > 0, keep[token])
