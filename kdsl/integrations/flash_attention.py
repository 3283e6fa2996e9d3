"""FlashAttention: the block sparsity of version 4, and packed sequences of different lengths.

**Block sparsity** (``flash_attn.cute.block_sparsity``).  Its ``BlockSparseTensorsTorch`` lists
partial blocks (``mask_block_*``), for which the kernel asks a ``mask_mod`` that is given to the
call, and full blocks (``full_block_*``).  Lists of width N' hold what a row has at most; forward
lists are by query block, those of the backward by key block.

**Packed sequences** (``flash_attn_varlen_func``).  Tensors are ``[tokens, heads, head_dim]``;
sequence i has tokens ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``, of queries and keys each its own.
`varlen` calls an operator whose spec has the capacity as its tokens and `kdsl.masks.varlen` as (a
part of) its mask; `varlen_tables` makes the tables alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdsl.blocks import Blocks
from kdsl.errors import InputError, UnsupportedError
from kdsl.integrations import listed
from kdsl.integrations.required import required, tensor


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


Window = tuple[int | None, int | None]


def varlen_tables(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    queries: int,
    causal: bool = False,
    window: Window = (None, None),
    name: str = "varlen",
) -> dict[str, Any]:
    """The tables of `kdsl.masks.varlen`, int32 ``[queries]``, from cumulative lengths.

    ``cu_seqlens_q`` and ``cu_seqlens_k`` (default: the same) are integers ``[sequences + 1]`` from
    0; the tables are arrays of their kind, on their device, and nothing waits for it.  Query i of
    lengths (n, m) stands at key ``i + m - n`` of its sequence: with ``causal`` it sees keys up to
    there, with ``window`` those at most (left, right) away, where None is no limit.  ``queries`` is
    the capacity: queries behind the last sequence see nothing.
    """
    cu_q = cu_seqlens_q
    cu_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    if cu_q.ndim != 1 or cu_q.shape != cu_k.shape or cu_q.shape[0] < 1:
        raise InputError(
            f"cu_seqlens of shapes {tuple(cu_q.shape)} and {tuple(cu_k.shape)}",
            hint="[sequences + 1] each, from 0",
        )
    left, right = window
    right = (0 if right is None else min(right, 0)) if causal else right
    xp, at, where = _sequences(cu_q, queries)
    last = max(cu_q.shape[0] - 2, 0)
    low = xp.clip(where, 0, last)
    high = xp.clip(low + 1, 0, cu_q.shape[0] - 1)
    # What the query's place is among the keys: both sequences end together.
    place = at + cu_k[high] - cu_q[high]
    first, end = cu_k[low] + at * 0, cu_k[high] + at * 0
    if left is not None:
        first = xp.maximum(first, place - left)
    if right is not None:
        end = xp.minimum(end, place + right + 1)
    inside = (at < cu_q[-1]) & (first < end)
    return {
        f"{name}_first": _int32(xp.where(inside, first, first * 0)),
        f"{name}_end": _int32(xp.where(inside, end, end * 0)),
    }


def _sequences(cu: Any, tokens: int) -> tuple[Any, Any, Any]:
    """The library of an array, all positions, and the sequence that each lies in."""
    if isinstance(cu, np.ndarray):
        at = np.arange(tokens)
        return np, at, np.searchsorted(cu, at, side="right") - 1
    torch = required("torch")
    at = torch.arange(tokens, device=cu.device)
    return torch, at, torch.searchsorted(cu.to(at.dtype).contiguous(), at, right=True) - 1


def _int32(x: Any) -> Any:
    return x.astype(np.int32) if isinstance(x, np.ndarray) else x.int()


def varlen(
    op: Any,
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    causal: bool = False,
    window: Window = (None, None),
    tables: Mapping[str, Any] | None = None,
    name: str = "varlen",
) -> Any:
    """An operator on packed sequences: ``q [queries, heads, head_dim]``, ``k, v [keys, ...]``.

    The output has q's shape; with ``return_lse`` a pair with the log-sum-exp ``[heads, queries]``.
    ``op`` is built from a spec of a capacity (its tokens) with `kdsl.masks.varlen` in its mask;
    fewer tokens are padded, which copies them.  ``tables`` are values of its other tables.
    """
    spec = op.spec
    capacity = (spec.query_grid.tokens, *[spec.key_grid.tokens] * 2)
    packed = []
    for letter, x, most in zip("qkv", (q, k, v), capacity, strict=True):
        if x.ndim != 3 or x.shape[0] > most:
            raise InputError(
                f"{letter} has shape {tuple(x.shape)}",
                where="[tokens, heads, head_dim]",
                hint=f"at most {most} tokens, or a spec with more",
            )
        packed.append(_padded(x, most))
    made = varlen_tables(
        cu_seqlens_q, cu_seqlens_k, queries=capacity[0], causal=causal, window=window, name=name
    )
    found = op(*packed, tables={**(tables or {}), **made})
    tokens = q.shape[0]
    if not spec.return_lse:
        return found[0].swapaxes(0, 1)[:tokens]
    out, lse = found
    return out[0].swapaxes(0, 1)[:tokens], lse[0, :, :tokens]


def _padded(x: Any, tokens: int) -> Any:
    """``[1, heads, tokens, head_dim]`` of packed tokens, zeros behind them."""
    missing = tokens - x.shape[0]
    if missing and isinstance(x, np.ndarray):
        x = np.pad(x, ((0, missing), (0, 0), (0, 0)))
    elif missing:
        x = required("torch").nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
    return x.swapaxes(0, 1)[None]
