"""Lists of FlashAttention-4, compressed rows, and bits: what goes out comes back the same."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.blocks import Blocks, from_maps, stack_heads
from kdsl.errors import InputError, StoreError, UnsupportedError
from kdsl.grid import Grid
from kdsl.integrations import bsr, flash_attention, flashinfer, packed_bits
from kdsl.integrations.compressed import compress, elements
from kdsl.integrations.partial import whole
from kdsl.integrations.required import required
from kdsl.plans import Plan, load
from kdsl.specs import Attention
from tests.kdsl.integrations.rows import assert_same, some_rows

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
GRID = Grid(height=7, width=9, text=4)


class Lists(NamedTuple):
    """The fields of flash_attn.cute's BlockSparseTensorsTorch (4.0.0b36), in its order."""

    mask_block_cnt: Any
    mask_block_idx: Any
    full_block_cnt: Any = None
    full_block_idx: Any = None
    cu_total_m_blocks: Any = None
    cu_block_idx_offsets: Any = None
    block_size: tuple[int, int] | None = None
    dq_write_order: Any = None
    dq_write_order_full: Any = None
    spt: bool | None = None


@given(some_rows(), st.booleans())
def test_flash_attention_lists(rows: Blocks, backward: bool) -> None:
    """Forward and backward lists round-trip, compact, int32, ascending, through the peer's object;
    a reader that knows only counts and columns finds the same map."""
    made = flash_attention.to_block_sparse_tensors(rows, backward=backward)
    theirs = Lists(**made._asdict())
    back = flash_attention.from_block_sparse_tensors(
        theirs, rows.queries, rows.keys, backward=backward
    )
    assert_same(back, rows)
    assert theirs.block_size == rows.block
    for kind, cut in (("mask", True), ("full", False)):
        count, index = (getattr(theirs, f"{kind}_block_{x}").numpy() for x in ("cnt", "idx"))
        assert count.dtype == index.dtype == np.int32
        assert index.shape[3] == max(count.max(), 1)
        kept = rows.kept(partial=cut, full=not cut)
        kept = kept.swapaxes(-1, -2) if backward else kept
        for at in np.ndindex(*count.shape):
            np.testing.assert_array_equal(index[at][: count[at]], np.flatnonzero(kept[at]))


def test_flash_attention_class() -> None:
    """The peer's own class takes our fields, where it is installed."""
    peer = pytest.importorskip("flash_attn.cute.block_sparsity")
    assert peer.BlockSparseTensorsTorch._fields[: len(Lists._fields)] == Lists._fields
    rows = from_maps(np.eye(3), None, (128, 128), 300, 300)
    made = flash_attention.to_block_sparse_tensors(rows)
    theirs = peer.BlockSparseTensorsTorch(**made._asdict())
    assert_same(flash_attention.from_block_sparse_tensors(theirs, 300, 300), rows)


def test_flash_attention_lists_for_all_heads() -> None:
    """Counts and columns of one head or batch item stand for all; partial lists may stand alone."""
    count, index = np.array([[[1, 0]]]), np.array([[[[1], [0]]]])
    full = np.array([[[0, 1]], [[1, 0]]]), np.array([[[[0], [1]]], [[[0], [0]]]])
    found = flash_attention.from_block_sparse_tensors(Lists(count, index, *full), 40, 40, (32, 32))
    assert found.kept(full=False).tolist() == [[[[False, True], [False, False]]]] * 2
    assert found.kept(partial=False)[:, 0].tolist() == [
        [[False, False], [False, True]],
        [[True, False], [False, False]],
    ]
    alone = flash_attention.from_block_sparse_tensors(Lists(count, index), 40, 40, (32, 32))
    assert alone.partial.tolist() == [[[1, 0]]]


def test_flash_attention_lists_that_cannot_be_read() -> None:
    """Packed sequences, an unknown block size and half a list are errors that say what works."""
    count, index = np.array([[[1, 0]]]), np.array([[[[1], [0]]]])
    read = flash_attention.from_block_sparse_tensors
    with pytest.raises(UnsupportedError, match="packed sequences"):
        read(Lists(count, index, cu_total_m_blocks=[0, 2]), 40, 40, (32, 32))
    with pytest.raises(InputError, match="block size"):
        read(Lists(count, index), 40, 40)
    with pytest.raises(InputError, match="come together"):
        read(Lists(count, index, count), 40, 40, (32, 32))
    with pytest.raises(InputError, match="columns 1 to 1"):
        read(Lists(count, index), 40, 32, (32, 32))


def masked_spec(ragged: bool = True) -> Attention:
    """Full, partial and empty blocks, in stored orders of their own for each head."""
    grid = GRID if ragged else Grid(height=8, width=8)
    order = orders.per_head([orders.axes(grid, "WH"), orders.cubes(grid, (2, 4))])
    mask = masks.window(grid, (5, 7)) | masks.text(grid)
    return Attention(tokens=grid, heads=2, head_dim=64, mask=mask, order=order, block=(16, 16))


def dense(spec: Attention, head: int) -> Any:
    """The mask over stored positions."""
    index = spec.query_order.parts[head].index()
    at = np.arange(len(index))
    return spec.element_mask.dense(index, index, head=head, stored=(at, at))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("peer", ["scipy", "torch"])
def test_bsr_holds_the_mask_pair_by_pair(peer: str, ragged: bool) -> None:
    """A matrix made of a spec's rows is the mask itself, and reads back to the same rows."""
    if peer == "scipy":
        pytest.importorskip("scipy")
    spec = masked_spec(ragged)
    rows, n = spec.rows(), spec.query_grid.tokens
    make: Any = bsr.to_scipy if peer == "scipy" else bsr.to_torch
    made = [make(rows, spec, head=h) for h in range(2)]
    for head, matrix in enumerate(made):
        values = np.asarray(matrix.toarray() if peer == "scipy" else matrix.to_dense())
        np.testing.assert_array_equal(values[:n, :n], dense(spec, head))
        assert not values[n:].any()
        assert not values[:, n:].any()
    assert rows.partial.any()
    assert_same(bsr.from_bsr(made, n, n), rows)


@pytest.mark.parametrize("peer", ["scipy", "torch"])
@given(rows=some_rows(batch=1, partial=False))
def test_bsr_round_trip(peer: str, rows: Blocks) -> None:
    """Whole blocks with empty rows and ragged ends survive a matrix a head, also by structure
    alone."""
    if peer == "scipy":
        pytest.importorskip("scipy")
    make: Any = bsr.to_scipy if peer == "scipy" else bsr.to_torch
    made = [make(rows, head=h) for h in range(rows.start.shape[1])]
    assert_same(bsr.from_bsr(made, rows.queries, rows.keys), rows)
    assert_same(bsr.from_bsr(made, rows.queries, rows.keys, values=False), rows)


def test_bsr_values_say_what_is_seen() -> None:
    """A block of zeros is left out, one with some zeros is partial, unless values mean nothing."""
    values = np.zeros((3, 16, 16), np.float32)
    values[1], values[2, 0, 0] = 2, 1
    parts = (torch.tensor(x) for x in ([0, 2, 3], [0, 1, 1], values))
    matrix = torch.sparse_bsr_tensor(*parts, size=(32, 32), check_invariants=True)
    found = bsr.from_bsr(matrix)
    assert found.full.tolist() == [[[1, 0]]]
    assert found.partial.tolist() == [[[0, 1]]]
    assert bsr.from_bsr(matrix, values=False).full.tolist() == [[[2, 1]]]


def test_bsr_that_cannot_be_read() -> None:
    """Other layouts, wrong lengths and no matrices are errors; partial blocks need the spec."""
    matrix = bsr.to_torch(from_maps(np.ones((2, 2)), None, (16, 16), 32, 32))
    for given_, match in (
        (matrix.to_dense(), "no block sparse rows"),
        ([], "no matrices"),
    ):
        with pytest.raises(InputError, match=match):
            bsr.from_bsr(given_)
    for tokens in (16, 33):
        with pytest.raises(InputError, match=f"{tokens} tokens in a matrix of 32"):
            bsr.from_bsr(matrix, tokens)
    spec = masked_spec()
    with pytest.raises(InputError, match="rows do not say") as error:
        bsr.to_torch(spec.rows())
    assert "spec=" in error.value.hint
    with pytest.raises(InputError, match="not of this spec"):
        bsr.to_torch(spec.rows(), masked_spec(ragged=False))
    with pytest.raises(InputError, match="head 5"):
        bsr.to_torch(spec.rows(), spec, head=5)


@given(some_rows(batch=1, partial=False))
def test_flashinfer_one_pattern(rows: Blocks) -> None:
    """The plan of one head reads back; its sizes are whole blocks, and its mask hides padding."""
    heads = []
    for head in range(rows.start.shape[1]):
        made = flashinfer.to_block_sparse(rows, head=head)
        height, width = rows.block
        assert (rows.rows * height, rows.columns * width) == (made.M, made.N)
        exact = (rows.queries, rows.keys) == (made.M, made.N)
        assert (made.mask is None) == exact
        heads.append(flashinfer.from_block_sparse(made, rows.queries, rows.keys))
    assert_same(stack_heads(heads), rows)


def test_flashinfer_masks_partial_blocks() -> None:
    """Blocks times their masks are the mask of the spec, pair by pair."""
    spec = masked_spec()
    n = spec.query_grid.tokens
    for head in range(2):
        made = flashinfer.to_block_sparse(spec.rows(), spec, head=head)
        found = np.zeros((made.M, made.N), bool)
        row = np.repeat(np.arange(made.M // made.R), np.diff(made.indptr))
        for r, c, block in zip(row, made.indices, made.mask, strict=True):
            found[r * 16 : r * 16 + 16, c * 16 : c * 16 + 16] = block
        np.testing.assert_array_equal(found[:n, :n], dense(spec, head))
        one = Blocks(
            *(getattr(spec.rows(), f)[:, head : head + 1] for f in ("start", "full", "partial")),
            spec.rows().index, spec.block, n, n,
        )  # fmt: skip
        assert_same(flashinfer.from_block_sparse(made, n, n), one)


@given(some_rows(batch=1, partial=False))
def test_flashinfer_maps(rows: Blocks) -> None:
    """Maps with sizes keep ragged ends, for as many heads of keys as rows have, or for one set."""
    heads = rows.start.shape[1]
    made = flashinfer.to_variable(rows, heads)
    assert int(made.block_row_sz[0].sum()) == rows.queries
    assert made.block_mask_map.dtype == torch.bool
    back = flashinfer.from_variable(made)
    # A sequence within one block says nothing of how long a longer one's blocks would be.
    size = tuple(min(b, n) for b, n in zip(rows.block, (rows.queries, rows.keys), strict=True))
    np.testing.assert_array_equal(back.kept(), rows.kept())
    assert (back.block, back.queries, back.keys) == (size, rows.queries, rows.keys)


def test_flashinfer_maps_that_cannot_be() -> None:
    """Partial blocks, rows by query head under shared keys, by batch, and uneven blocks: errors."""
    spec = masked_spec()
    with pytest.raises(InputError, match="partial"):
        flashinfer.to_variable(spec.rows(), 2)
    kinds = np.eye(2, dtype=bool)[None].repeat(2, 0)
    kinds[1] = ~kinds[1]
    with pytest.raises(UnsupportedError, match="share keys"):
        flashinfer.to_variable(from_maps(kinds, None, (16, 16), 32, 32), 1)
    kept = np.zeros((2, 1, 2, 2), bool)
    kept[1, 0, 0, 0] = True
    with pytest.raises(UnsupportedError, match="batch"):
        flashinfer.to_variable(from_maps(kept, None, (16, 16), 32, 32), 1)
    uneven = SimpleNamespace(
        block_mask_map=kept[0], block_row_sz=np.array([[3, 5]]), block_col_sz=np.array([[4, 4]])
    )
    with pytest.raises(UnsupportedError, match="3, 5"):
        flashinfer.from_variable(uneven)
    made = flashinfer.to_variable(from_maps(kept[:1], None, (16, 16), 32, 32), 2)
    assert made.block_mask_map.shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("indptr", "indices", "said"),
    [
        ([0, 1], [0], "indptr of 2 entries"),
        ([1, 1, 1], [0], "indptr of 3 entries"),
        ([0, 2, 1], [0], "indptr of 3 entries"),
        ([0, 1, 3], [0, 1], "ends at 3"),
        ([0, 1, 2], [0, 2], "indices 0 to 2"),
        ([0, 2, 2], [1, 1], "twice"),
    ],
)
def test_broken_compressed_rows(indptr: list[int], indices: list[int], said: str) -> None:
    """Starts that fall or do not fit, and columns that are not there, are named."""
    given_ = SimpleNamespace(indptr=np.array(indptr), indices=np.array(indices), M=32, N=32, R=16,
                             C=16)  # fmt: skip
    with pytest.raises(InputError, match=said):
        flashinfer.from_block_sparse(given_)


@given(some_rows())
def test_elements_and_columns_agree(rows: Blocks) -> None:
    """Compressed rows ascend, full and partial blocks together, for every head and batch item."""
    for b, h in np.ndindex(*rows.start.shape[:2]):
        indptr, indices, cut = compress(rows, h, b)
        for r in range(rows.rows):
            here = slice(indptr[r], indptr[r + 1])
            np.testing.assert_array_equal(indices[here], np.flatnonzero(rows.kept()[b, h, r]))
            np.testing.assert_array_equal(cut[here], rows.kept(full=False)[b, h, r][indices[here]])
    full = whole(rows, "full")
    np.testing.assert_array_equal(full.kept(partial=False), rows.kept())
    np.testing.assert_array_equal(whole(rows, "drop").kept(), rows.kept(partial=False))
    assert elements(full).sum() <= full.counts[0, 0].sum() * np.prod(rows.block)
    with pytest.raises(InputError, match="partial="):
        whole(rows, "fill")  # type: ignore[arg-type]


@given(rows=some_rows())
def test_bits_in_a_file(rows: Blocks, tmp_path_factory: Any) -> None:
    """A file of bits, and a plan that holds them, give the same rows back."""
    pytest.importorskip("safetensors")
    folder: Path = tmp_path_factory.mktemp("bits")
    packed_bits.save(rows, folder / "rows.safetensors")
    assert_same(packed_bits.load(folder / "rows.safetensors"), rows)
    arrays = packed_bits.to_payload(rows, "layer0") | packed_bits.to_payload(rows, "layer1")
    Plan("attention", "test", arrays).save(folder / "plan.safetensors")
    plan = load(folder / "plan.safetensors", "attention")
    for name in ("layer0", "layer1"):
        assert_same(packed_bits.from_plan(plan, name), rows)


def test_broken_files_of_bits(tmp_path: Path) -> None:
    """No file, another file, damaged bytes, bits of another size, and a block in both maps."""
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    with pytest.raises(StoreError, match="cannot be read"):
        packed_bits.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match="cannot be read"):
        packed_bits.load(path)
    good = {
        "full": np.ones((1, 1, 2, 1), np.uint8),
        "partial": np.zeros((1, 1, 2, 1), np.uint8),
        "sizes": np.array([16, 16, 32, 32]),
    }
    for change, said in (
        ({"more": np.zeros(1)}, "the file holds"),
        ({"sizes": np.array([16, 16, 48, 32])}, "bits of uint8"),
        ({"sizes": np.array([0, 16, 48, 32])}, "sizes"),
        ({"partial": np.ones((1, 1, 2, 1), np.uint8)}, "full and partial at once"),
        ({"full": np.ones((1, 1, 2, 1), np.int32)}, "bits of int32"),
    ):
        path.write_bytes(numpy.save({**good, **change}))
        with pytest.raises(StoreError, match=said):
            packed_bits.load(path)
    with pytest.raises(StoreError, match="cannot be written"):
        packed_bits.save(from_maps(np.ones((2, 2)), None, (16, 16), 32, 32), tmp_path / "no" / "x")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a peer that is not there says which, and how to get it."""
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(UnsupportedError, match="scipy is not installed") as error:
        bsr.to_scipy(from_maps(np.ones((2, 2)), None, (16, 16), 32, 32))
    assert error.value.hint == "pip install scipy"
    with pytest.raises(UnsupportedError, match="no_such_peer"):
        required("no_such_peer.sparse")
