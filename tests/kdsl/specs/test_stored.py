"""Attention over tensors that are in stored order already."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdsl import masks, orders
from kdsl.errors import SpecError
from kdsl.grid import Grid
from kdsl.reference.attention import attention
from kdsl.specs import Attention

GRID = Grid(frames=2, height=3, width=5, text=2)
ORDERS = [orders.axes(GRID, "WHF"), orders.cubes(GRID, (1, 2, 2))]


def spec_of(stored: bool, **fields: object) -> Attention:
    """Four heads, a window, two orders that take turns."""
    plain = {
        "tokens": GRID, "heads": 4, "head_dim": 64, "mask": masks.window(GRID, (1, 3, 3)),
        "order": orders.per_head(ORDERS * 2), "block": (16, 16),
    }  # fmt: skip
    return Attention(**{**plain, "stored": stored, **fields})  # type: ignore[arg-type]


def test_the_reference_takes_permuted_inputs_and_gives_the_original_order() -> None:
    """Permuting q, k and v by each head's order first gives the same output and log-sum-exp."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 4, GRID.tokens, 64)) for _ in range(3))
    out, lse = attention(spec_of(False), q, k, v)
    moved = [
        np.stack([x[:, h, ORDERS[h % 2].index()] for h in range(4)], axis=1) for x in (q, k, v)
    ]
    found, found_lse = attention(spec_of(True), *moved)
    np.testing.assert_array_equal(found, out)
    np.testing.assert_array_equal(found_lse, lse)
    other, _ = attention(spec_of(True), q, k, v)
    assert np.abs(other - out).max() > 0.1


def test_it_is_part_of_the_spec() -> None:
    """JSON, equality and both hashes see it; a spec without it is written as before."""
    stored, plain = spec_of(True), spec_of(False)
    assert Attention.from_json(json.loads(json.dumps(stored.to_json()))) == stored
    assert stored != plain
    assert stored.fingerprint != plain.fingerprint
    assert stored.program != plain.program
    assert "stored" not in plain.to_json()
    assert "stored=True" in repr(stored)


def test_heads_that_share_stored_keys_share_their_order() -> None:
    """Keys lie in memory once, so a group of query heads has one order of them."""
    with pytest.raises(SpecError, match="share keys that are stored in one order"):
        spec_of(True, kv_heads=2)
    spec_of(False, kv_heads=2)
    pairs = orders.per_head([ORDERS[0]] * 2 + [ORDERS[1]] * 2)
    assert spec_of(True, kv_heads=2, order=pairs).group == 2
