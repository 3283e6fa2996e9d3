"""Lists of blocks made by kernels against those that NumPy makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.blocks import Blocks, from_maps
from kdsl.errors import InputError
from kdsl.kernels.attention import launch as attention
from kdsl.kernels.lists import launch as lists
from tests.devices import DEVICE

Bools = npt.NDArray[np.bool_]
FORMS = ("bytes", "strided", "bits", "codes")


@dataclass(frozen=True)
class Maps:
    """Full and partial maps of blocks of (16, 32) tokens, and how many tokens there are."""

    full: Bools
    partial: Bools
    queries: int
    keys: int

    @property
    def blocks(self) -> Blocks:
        """What NumPy makes of them."""
        return from_maps(self.full, self.partial, (16, 32), self.queries, self.keys)


@st.composite
def maps(draw: st.DrawFn) -> Maps:
    """Any density by row, with empty and whole rows, many ties, ragged ends or not."""
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (batch, heads, rows, columns)
    share = rng.choice([0.0, 0.2, 0.5, 1.0], shape[:3])
    kept = rng.random(shape) < share[..., None]
    partial = kept & (rng.random(shape) < draw(st.sampled_from([0.0, 0.4, 1.0])))
    short = draw(st.booleans()), draw(st.booleans())
    return Maps(kept & ~partial, partial, rows * 16 - short[0] * 5, columns * 32 - short[1] * 7)


def made(m: Maps, form: str, **options: Any) -> lists.Rows:
    """Lists from maps in one of their forms."""
    full, partial = (torch.from_numpy(x.copy()).to(DEVICE) for x in (m.full, m.partial))
    columns = m.full.shape[-1]
    if form == "codes":
        codes = full.to(torch.uint8) + 2 * partial.to(torch.uint8)
        return lists.from_map(codes, codes=True, **options)
    if form == "bits":
        bits = (torch.from_numpy(x).to(DEVICE) for x in m.blocks.pack())
        return lists.from_map(*bits, columns=columns, **options)
    if form == "strided":
        full, partial = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (full, partial))
    return lists.from_map(full, partial, **options)


def arrays(rows: lists.Rows) -> tuple[npt.NDArray[Any], ...]:
    """start, full, partial, index on the host."""
    held = (rows.start, rows.full, rows.partial, rows.index)
    return tuple(x.cpu().numpy() for x in held)


def listed(start: Any, full: Any, partial: Any, index: Any) -> list[tuple[list[int], list[int]]]:
    """Full and partial entries of each line, in the order in which they stand."""
    flat = zip(start.reshape(-1), full.reshape(-1), partial.reshape(-1), strict=True)
    return [(index[s : s + f].tolist(), index[s + f : s + f + p].tolist()) for s, f, p in flat]


def uploaded(blocks: Blocks, heads: int, summed: int = 1) -> attention.Lists:
    """What the host makes and uploads."""
    return attention.lists(blocks, heads, DEVICE, summed)


def as_lists(held: attention.Lists) -> list[tuple[list[int], list[int]]]:
    """The same of the host's."""
    return listed(*(x.cpu().numpy() for x in held.tensors[:4]))


@settings(max_examples=12)
@given(m=maps(), form=st.sampled_from(FORMS))
def test_lists_and_order_equal_the_hosts(m: Maps, form: str) -> None:
    """Every line lists what the host's upload lists, in its order, from every form of a map; the
    order of tiles is the same number by number."""
    heads = m.full.shape[1]
    wanted = uploaded(m.blocks, heads)
    rows = made(m, form, ragged=bool(m.keys % 32))
    assert listed(*arrays(rows)) == as_lists(wanted)
    assert not rows.overflow.any()
    assert torch.equal(lists.order(rows, heads), wanted.tiles)


@settings(max_examples=8)
@given(m=maps(), form=st.sampled_from(FORMS))
def test_inverted_lists_equal_the_hosts(m: Maps, form: str) -> None:
    """Columns list their rows as the host's transposed rows do, from a map and from lists; tiles
    that sum heads are ordered as the host orders them."""
    heads = m.full.shape[1]
    ragged = bool(m.queries % 16)
    rows = made(m, form, ragged=ragged, turned=True)
    for summed in {1, heads}:
        wanted = uploaded(m.blocks.transpose(), heads, summed)
        assert listed(*arrays(rows)) == as_lists(wanted)
        assert torch.equal(lists.order(rows, heads, summed), wanted.tiles)
    again = lists.inverted(made(m, form), ragged=ragged)
    assert listed(*arrays(again)) == as_lists(wanted)


@settings(max_examples=8)
@given(m=maps(), form=st.sampled_from(FORMS), capacity=st.integers(0, 40), turned=st.booleans())
def test_rows_that_do_not_fit_become_dense(m: Maps, form: str, capacity: int, turned: bool) -> None:
    """A line beyond the capacity lists every entry as partial and says so; all others are exact,
    and no place before the shared one belongs to two lines."""
    blocks = m.blocks.transpose() if turned else m.blocks
    rows = made(m, form, turned=turned, capacity=capacity)
    counts = blocks.counts.reshape(-1)
    over = counts > capacity
    assert np.array_equal(rows.overflow.cpu().numpy().reshape(-1), over)
    exact = listed(blocks.start, blocks.full, blocks.partial, blocks.index)
    dense = ([], list(range(blocks.columns)))
    found = listed(*arrays(rows))
    assert found == [dense if o else e for o, e in zip(over, exact, strict=True)]
    assert len(rows.index) <= max(1, counts.size * min(capacity, blocks.columns) + blocks.columns)


def test_long_rows() -> None:
    """Rows of more than one chunk, in either direction, with a capacity below them."""
    rng = np.random.default_rng(0)
    kept = rng.random((1, 1, 2, 1030)) < 0.5
    partial = kept & (rng.random(kept.shape) < 0.3)
    m = Maps(kept & ~partial, partial, 2 * 16, 1030 * 32 - 1)
    assert listed(*arrays(made(m, "bits", ragged=True))) == as_lists(uploaded(m.blocks, 1))
    swapped = Maps(*(x.swapaxes(2, 3) for x in (m.full, m.partial)), 1030 * 16, 2 * 32)
    rows = made(swapped, "bytes", turned=True)
    assert listed(*arrays(rows)) == as_lists(uploaded(swapped.blocks.transpose(), 1))
    wanted = uploaded(swapped.blocks, 1)
    assert torch.equal(lists.order(made(swapped, "bytes"), 1), wanted.tiles)
    assert bool(made(m, "codes", capacity=100).overflow.all())


def test_one_map_for_all_heads() -> None:
    """A shared map has lists of one head, and the order of tiles names every head."""
    kept = np.random.default_rng(1).random((1, 1, 9, 11)) < 0.4
    m = Maps(kept, np.zeros_like(kept), 9 * 16, 11 * 32)
    rows = made(m, "bytes")
    assert rows.strides == (0, 0)
    assert torch.equal(lists.order(rows, 5), uploaded(m.blocks, 5).tiles)


def test_full_and_partial_at_once_is_partial() -> None:
    """A block that both maps keep is listed once, as partial, which is right whatever is meant."""
    both = torch.ones(1, 1, 1, 4, dtype=torch.bool, device=DEVICE)
    rows = lists.from_map(both, both)
    assert listed(*arrays(rows)) == [([], [0, 1, 2, 3])]


def test_bad_maps_are_refused() -> None:
    """Shapes, dtypes and capacities that make no sense are errors that say what would."""
    good = torch.ones(1, 2, 3, 4, dtype=torch.uint8, device=DEVICE)
    for call in (
        lambda: lists.from_map(good[0]),
        lambda: lists.from_map(good.float()),
        lambda: lists.from_map(good, good[:, :1]),
        lambda: lists.from_map(good, columns=64),
        lambda: lists.from_map(good.bool(), codes=True),
        lambda: lists.from_map(good, capacity=-1),
    ):
        with pytest.raises(InputError):
            call()
