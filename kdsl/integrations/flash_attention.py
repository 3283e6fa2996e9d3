"""FlashAttention-4's block sparsity (``flash_attn.cute.block_sparsity``).

Its ``BlockSparseTensorsTorch`` lists partial blocks (``mask_block_*``), for which the kernel asks a
``mask_mod`` that is given to the call, and full blocks (``full_block_*``).  Lists of width N' hold
what a row has at most; forward lists are by query block, those of the backward by key block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kdsl.blocks import Blocks
from kdsl.errors import InputError, UnsupportedError
from kdsl.integrations import listed
from kdsl.integrations.required import tensor


class Fields(NamedTuple):
    """The fields of ``BlockSparseTensorsTorch`` that rows of blocks determine, in its order.

    ``BlockSparseTensorsTorch(**fields._asdict())`` makes the peer's object.  Counts are
    ``[batch, heads, rows]``, columns ``[batch, heads, rows, width]``, int32, ascending;
    ``block_size`` is (queries, keys), in the lists of the backward too.
    """

    mask_block_cnt: Any
    mask_block_idx: Any
    full_block_cnt: Any
    full_block_idx: Any
    block_size: tuple[int, int]


def to_block_sparse_tensors(rows: Blocks, device: Any = None, *, backward: bool = False) -> Fields:
    """Rows of blocks as FlashAttention-4 lists them, as torch tensors on ``device``.

    With ``backward`` by key block: what its gradients need beside the forward's lists.  Partial
    blocks need the call's ``mask_mod``: lists alone would show them whole.
    """
    by = rows.transpose() if backward else rows
    (cut, cut_at), (full, full_at) = (
        [tensor(x, device) for x in listed.write(by, partial=kind)] for kind in (True, False)
    )
    return Fields(cut, cut_at, full, full_at, rows.block)


def from_block_sparse_tensors(
    tensors: Any,
    queries: int,
    keys: int,
    block: tuple[int, int] | None = None,
    *,
    backward: bool = False,
) -> Blocks:
    """Rows from an object with the fields of ``BlockSparseTensorsTorch``.

    ``block`` is (queries, keys) a block where the object does not say.  With ``backward`` its lists
    are by key block; the result is by query block either way.
    """
    if getattr(tensors, "cu_total_m_blocks", None) is not None:
        raise UnsupportedError(
            "these lists are of packed sequences of different lengths",
            where="cu_total_m_blocks",
            hint="one object a sequence; or one packed sequence and masks.varlen",
        )
    said = getattr(tensors, "block_size", None)
    block = block if said is None else (int(said[0]), int(said[1]))
    if block is None:
        raise InputError("the lists do not say their block size", hint="block=(128, 128)")
    pairs = [
        (getattr(tensors, f"{kind}_block_cnt", None), getattr(tensors, f"{kind}_block_idx", None))
        for kind in ("mask", "full")
    ]
    for kind, pair in zip(("mask", "full"), pairs, strict=True):
        if (pair[0] is None) != (pair[1] is None) or (kind == "mask" and pair[0] is None):
            raise InputError(f"{kind}_block_cnt and {kind}_block_idx come together")
    full = pairs[1] if pairs[1][0] is not None else None
    if not backward:
        return listed.read(pairs[0], full, block, queries, keys)
    return listed.read(pairs[0], full, block[::-1], keys, queries).transpose()
