"""flashinfer's block-sparse wrappers (``flashinfer.sparse``).

``BlockSparseAttentionWrapper`` takes one pattern for all heads, in compressed rows, with truths for
the pairs of partial blocks; ``VariableBlockSparseAttentionWrapper`` one map for each head of keys,
with the size of every row and column, and whole blocks only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdsl.blocks import Blocks, from_maps
from kdsl.errors import InputError, UnsupportedError
from kdsl.integrations.compressed import compress, elements, expand
from kdsl.integrations.partial import Choice, whole
from kdsl.integrations.required import integers, tensor
from kdsl.specs import Attention


class BlockSparse(NamedTuple):
    """What ``BlockSparseAttentionWrapper.plan`` takes first, and its ``mask``.

    ``wrapper.plan(*made[:6], heads, kv_heads, head_dim, mask=made.mask)``.  ``M`` and ``N`` are
    multiples of ``R`` and ``C``: q, k and v are padded to them where they are longer than the
    sequences, and ``mask [blocks, R, C]`` hides what is padded.  It is None where all blocks are
    whole.
    """

    indptr: Any
    indices: Any
    M: int
    N: int
    R: int
    C: int
    mask: Any


class VariableBlockSparse(NamedTuple):
    """What ``VariableBlockSparseAttentionWrapper.plan`` takes first.

    ``block_mask_map [kv_heads, rows, columns]`` bool; ``block_row_sz [kv_heads, rows]`` and
    ``block_col_sz [kv_heads, columns]`` int32, the last one of each ragged.
    """

    block_mask_map: Any
    block_row_sz: Any
    block_col_sz: Any


def to_block_sparse(
    rows: Blocks,
    spec: Attention | None = None,
    *,
    head: int = 0,
    batch: int = 0,
    tables: Mapping[str, Any] | None = None,
    device: Any = None,
) -> BlockSparse:
    """The rows of one head, for the wrapper with one pattern; ``spec`` masks partial blocks."""
    indptr, indices, partial = compress(rows, head, batch)
    ragged = bool(rows.queries % rows.block[0] or rows.keys % rows.block[1])
    held = elements(rows, spec, head, batch, tables) if partial.any() or ragged else None
    return BlockSparse(
        tensor(indptr, device),
        tensor(indices, device),
        rows.rows * rows.block[0],
        rows.columns * rows.block[1],
        *rows.block,
        None if held is None else tensor(held, device),
    )


def from_block_sparse(given: Any, queries: int | None = None, keys: int | None = None) -> Blocks:
    """Rows of one head from an object with the fields of `BlockSparse`.

    ``queries`` and ``keys`` say how many of its ``M`` and ``N`` tokens are none of padding.
    """
    mask = getattr(given, "mask", None)
    truths = None if mask is None else integers("mask", mask, 3) != 0
    queries, keys = int(given.M if queries is None else queries), int(keys or given.N)
    return expand(given.indptr, given.indices, (int(given.R), int(given.C)), queries, keys, truths)


def to_variable(
    rows: Blocks, kv_heads: int, *, partial: Choice = "raise", device: Any = None
) -> VariableBlockSparse:
    """One map for each head of keys, whole blocks; ``partial`` chooses what partial ones become.

    UnsupportedError where rows differ by batch item, or between the query heads of a group.
    """
    rows = whole(rows, partial, hint="to_block_sparse(rows, spec), head by head")
    kept = rows.kept()
    if (kept != kept[:1]).any():
        raise UnsupportedError("the rows differ by batch item", hint="one wrapper for each")
    heads = kept.shape[1]
    if heads == 1:
        kept = np.broadcast_to(kept, (len(kept), kv_heads, *kept.shape[2:]))
    elif heads % kv_heads:
        raise InputError(f"{kv_heads} heads of keys for rows of {heads} heads")
    groups = kept[0].reshape(kv_heads, -1, *kept.shape[2:])
    if (groups != groups[:, :1]).any():
        raise UnsupportedError(
            "query heads that share keys have rows of their own",
            hint="a wrapper for each query head: to_variable of its rows, k and v repeated",
        )
    height, width = _sizes(rows.queries, rows.block[0]), _sizes(rows.keys, rows.block[1])
    sizes = (np.tile(n, (kv_heads, 1)).astype(np.int32) for n in (height, width))
    return VariableBlockSparse(tensor(groups[:, 0], device), *(tensor(n, device) for n in sizes))


def _sizes(tokens: int, block: int) -> Any:
    """Tokens of each block: all as long as the first, but for the last."""
    return np.diff(np.append(np.arange(0, tokens, block), tokens))


def from_variable(given: Any) -> Blocks:
    """Rows from an object with the fields of `VariableBlockSparse`, one head for each of keys.

    UnsupportedError where blocks differ in size: here only the last one of a sequence may be short.
    """
    kept = integers("block_mask_map", given.block_mask_map, 3) != 0
    sides = []
    for name, count in (("block_row_sz", kept.shape[1]), ("block_col_sz", kept.shape[2])):
        sizes = integers(name, getattr(given, name), 2)
        if sizes.shape != (len(kept), count) or (sizes <= 0).any():
            raise InputError(
                f"{name} of shape {sizes.shape}", hint=f"{(len(kept), count)} sizes of at least 1"
            )
        tokens, block = int(sizes[0].sum()), int(sizes[0, 0])
        if not np.array_equal(sizes, np.tile(_sizes(tokens, block), (len(kept), 1))):
            raise UnsupportedError(
                f"blocks of {np.unique(sizes).tolist()} tokens",
                where=name,
                hint="blocks of one size, the last one shorter; or predicate masks over a table",
            )
        sides.append((tokens, block))
    (queries, height), (keys, width) = sides
    return from_maps(kept, None, (height, width), queries, keys)
