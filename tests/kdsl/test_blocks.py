"""Rows of blocks: every way in and out leads to the same kept blocks."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks
from kdsl.blocks import Blocks, from_maps, stack_heads, unpack
from kdsl.errors import InputError, SpecError
from kdsl.intervals import classify
from kdsl.specs import Attention
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


def test_equal_rows_share_their_entries() -> None:
    """A dense mask over a million tokens lists one row, and is read and counted in two seconds."""
    started = time.process_time()
    rows = classify(masks.everything(), 2**20)
    found = rows.statistics()
    assert time.process_time() - started < 2
    assert len(rows.index) == rows.columns == 8192
    assert found == {
        "density": 1.0,
        "partial_share": 0.0,
        "row_spread": 1.0,
        "row_max": 1.0,
        "run_length": 8192.0,
    }


@given(data=st.data())
def test_sharing_changes_no_row(data: st.DataObject) -> None:
    """Rows that repeat, in part or whole, read as the maps they came from; so do their runs."""
    shape = (data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    some = rng.random((3, shape[1])) < data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    kept = some[rng.integers(0, 3, shape[0])]
    mask = masks.blocks("plan", block=(16, 16), shared=True)
    tokens = [16 * n for n in shape]
    spec = Attention(
        queries=tokens[0], keys=tokens[1], heads=1, head_dim=64, mask=mask, block=(16, 16)
    )
    rows = spec.rows({"plan": kept[None].astype(np.uint8)})
    np.testing.assert_array_equal(rows.kept()[0, 0], kept)
    assert len(rows.index) <= kept.sum()
    runs = int((np.diff(kept.astype(int), axis=1, prepend=0) == 1).sum())
    wanted = kept.sum() / runs if runs else 0.0
    assert rows.statistics()["run_length"] == pytest.approx(wanted)


@given(data=st.data())
def test_runs_cross_from_full_to_partial(data: st.DataObject) -> None:
    """Neighbours count as neighbours whichever of the two lists they stand in."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    kinds = rng.choice(3, (2, 3, 4, 11), p=[0.4, 0.3, 0.3])
    rows = from_maps(kinds == 1, kinds == 2, (16, 16), 64, 176)
    runs = int((np.diff((kinds > 0).astype(int), axis=3, prepend=0) == 1).sum())
    assert rows.statistics()["run_length"] == pytest.approx((kinds > 0).sum() / runs)


def test_too_many_kept_blocks_are_an_error_at_once() -> None:
    """Rows that no 32-bit index counts are refused before memory is asked for."""
    with pytest.raises(SpecError, match=r"\d{10} kept blocks\n  try larger blocks"):
        classify(masks.causal(), 10**7)
