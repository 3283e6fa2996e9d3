"""Rows of blocks: every way in and out leads to the same kept blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.blocks import Blocks, from_maps, stack_heads, unpack
from kdsl.errors import InputError
from tests.strategies import token_counts


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, int], int, int]:
    """Full and partial maps ``[batch, heads, rows, columns]`` with block and token counts."""
    block = draw(st.sampled_from(((16, 16), (32, 16), (64, 128))))
    queries, keys = draw(token_counts()), draw(token_counts())
    lead = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    shape = (*lead, -(-queries // block[0]), -(-keys // block[1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kinds = rng.choice(3, shape, p=draw(st.sampled_from(((0.5, 0.3, 0.2), (1, 0, 0), (0, 1, 0)))))
    return kinds == 1, kinds == 2, block, queries, keys


@given(maps())
def test_maps_round_trip(given: tuple[np.ndarray, np.ndarray, tuple[int, int], int, int]) -> None:
    """Maps to rows and back, through bits, and twice through the transpose, change nothing."""
    full, partial, block, queries, keys = given
    rows = from_maps(full, partial, block, queries, keys)
    for same in (rows, rows.transpose().transpose(), unpack(*rows.pack(), block, queries, keys)):
        np.testing.assert_array_equal(same.kept(partial=False), full)
        np.testing.assert_array_equal(same.kept(full=False), partial)
        np.testing.assert_array_equal(same.kept(), full | partial)
        assert (same.block, same.queries, same.keys) == (block, queries, keys)
    turned = rows.transpose()
    np.testing.assert_array_equal(turned.kept(partial=False), full.swapaxes(-1, -2))
    np.testing.assert_array_equal(turned.kept(full=False), partial.swapaxes(-1, -2))
    assert (turned.block, turned.queries, turned.keys) == (block[::-1], keys, queries)


@given(maps())
def test_rows_list_full_blocks_first_in_order(
    given: tuple[np.ndarray, np.ndarray, tuple[int, int], int, int],
) -> None:
    """A row's index entries are its full columns ascending, then its partial ones ascending."""
    rows = from_maps(*given)
    for at in np.ndindex(*rows.start.shape):
        start, n, m = rows.start[at], rows.full[at], rows.partial[at]
        np.testing.assert_array_equal(rows.index[start : start + n], np.flatnonzero(given[0][at]))
        behind = rows.index[start + n : start + n + m]
        np.testing.assert_array_equal(behind, np.flatnonzero(given[1][at]))
    assert {x.dtype for x in (rows.start, rows.full, rows.partial, rows.index)} == {np.dtype("i4")}


@given(maps())
def test_statistics_are_those_of_the_maps(
    given: tuple[np.ndarray, np.ndarray, tuple[int, int], int, int],
) -> None:
    """Density, partial share, spread of row lengths and run length follow from the dense map."""
    full, partial, *_ = given
    kept = full | partial
    found = from_maps(*given).statistics()
    assert found["density"] == pytest.approx(kept.mean())
    assert found["partial_share"] == pytest.approx(partial.sum() / max(kept.sum(), 1))
    lengths = kept.sum(-1).reshape(-1)
    if kept.any():
        assert found["row_max"] == pytest.approx(lengths.max() / lengths.mean())
        spread = np.percentile(lengths, 95) / lengths.mean()
        assert found["row_spread"] == pytest.approx(spread)
        runs = (np.diff(kept.astype(int), axis=-1, prepend=0) == 1).sum()
        assert found["run_length"] == pytest.approx(kept.sum() / runs)
    else:
        assert found["run_length"] == found["row_max"] == 0.0


def test_heads_stack_and_share() -> None:
    """Stacked heads read as their own rows; a head given twice is stored once."""
    rng = np.random.default_rng(1)
    heads = [from_maps(rng.integers(0, 2, (2, 4, 5)) == 1, None, (16, 16), 64, 80).transpose()
             for _ in range(2)]  # fmt: skip
    parts = [Blocks(*(x[:, :1] for x in (h.start, h.full, h.partial)), h.index, h.block, 80, 64)
             for h in heads]  # fmt: skip
    stacked = stack_heads([parts[0], parts[1], parts[0]])
    for h, part in enumerate((parts[0], parts[1], parts[0])):
        np.testing.assert_array_equal(stacked.kept()[:, h], part.kept()[:, 0])
    assert len(stacked.index) == len(parts[0].index) + len(parts[1].index)


def test_rows_may_leave_gaps() -> None:
    """Rows of fixed capacity, as devices make them, are the same format."""
    start = np.array([[[0, 8, 16]]], np.int32)
    full, partial = (np.array([[x]], np.int32) for x in ([2, 0, 1], [1, 0, 2]))
    index = np.full(24, 99, np.int32)
    index[[0, 1, 2, 16, 17, 18]] = [1, 3, 0, 2, 0, 1]
    rows = Blocks(start, full, partial, index, (16, 16), 48, 64)
    kept = rows.kept()[0, 0].astype(int).tolist()
    assert kept == [[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert rows.density == 6 / 12
    np.testing.assert_array_equal(rows.transpose().transpose().kept(), rows.kept())


@pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 40), (40, 0)])
def test_empty_sequences(queries: int, keys: int) -> None:
    """No queries or no keys: rows of the right shape that keep nothing."""
    shape = (1, 1, -(-queries // 16), -(-keys // 16))
    rows = from_maps(np.ones(shape, bool), None, (16, 16), queries, keys)
    assert rows.density == 0.0
    assert rows.transpose().start.shape == (1, 1, shape[3])
    assert unpack(*rows.pack(), (16, 16), queries, keys).kept().shape == shape
    assert rows.statistics()["density"] == 0.0


def test_errors() -> None:
    """Maps that contradict themselves or the token counts are refused."""
    ones = np.ones((1, 1, 2, 2), bool)
    with pytest.raises(InputError, match="marked full and partial at once"):
        from_maps(ones, ones, (16, 16), 32, 32)
    with pytest.raises(InputError, match=r"a block map of \(2, 2\) rows and columns"):
        from_maps(ones, None, (16, 16), 48, 32)
    with pytest.raises(InputError, match="differ in shape"):
        from_maps(ones, ones[..., :1], (16, 16), 32, 32)
    rows = from_maps(ones, None, (16, 16), 32, 32)
    with pytest.raises(InputError, match="must have one shape"):
        Blocks(rows.start, rows.full[..., :1], rows.partial, rows.index, (16, 16), 32, 32)
    with pytest.raises(InputError, match="2 rows of blocks for 64 tokens in blocks of 16"):
        Blocks(rows.start, rows.full, rows.partial, rows.index, (16, 16), 64, 32)
    other = from_maps(ones, None, (32, 16), 64, 32)
    with pytest.raises(InputError, match="the heads' rows differ"):
        stack_heads([rows, other])
