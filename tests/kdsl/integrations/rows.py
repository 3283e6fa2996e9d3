"""Rows of blocks for the tests of formats."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from kdsl.blocks import Blocks, from_maps
from tests.strategies import token_counts


@st.composite
def some_rows(draw: st.DrawFn, batch: int = 2, partial: bool = True) -> Blocks:
    """Full and partial blocks by chance, empty rows and ragged ends among them."""
    block = draw(st.sampled_from(((16, 16), (32, 16), (64, 128))))
    queries, keys = draw(token_counts()), draw(token_counts())
    lead = draw(st.integers(1, batch)), draw(st.integers(1, 3))
    shape = (*lead, -(-queries // block[0]), -(-keys // block[1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    share = draw(st.sampled_from(((0.5, 0.3, 0.2), (1, 0, 0), (0, 1, 0), (0.9, 0.05, 0.05))))
    kinds = rng.choice(3, shape, p=share)
    kinds[:, :, rng.integers(shape[2])] = 0
    return from_maps(kinds == 1, kinds == 2 if partial else None, block, queries, keys)


def assert_same(found: Blocks, wanted: Blocks) -> None:
    """The same blocks, full and partial ones, of the same sequences."""
    assert (found.block, found.queries, found.keys) == (wanted.block, wanted.queries, wanted.keys)
    np.testing.assert_array_equal(found.kept(partial=False), wanted.kept(partial=False))
    np.testing.assert_array_equal(found.kept(full=False), wanted.kept(full=False))
