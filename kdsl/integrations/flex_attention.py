"""FlexAttention in torch: ``BlockMask`` and its ``mask_mod``.

A ``BlockMask`` lists full blocks, and partial ones, for which its ``mask_mod`` is asked pair by
pair.  Its numbers are positions in q, k and v as they were given: stored positions of ours.

What is carried: the lists, exactly, in both directions; masks of ours as a ``mask_mod``
(`mask_mod`), orders and tables included.  A ``mask_mod`` becomes a mask of ours (`mask_of`) where
it is arithmetic and comparisons of its four indices.  One that calls torch or reads captured
tensors does not: a table of the spec says the same (`kdsl.masks.same` for document ids).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdsl.blocks import Blocks
from kdsl.errors import InputError, SpecError
from kdsl.expr.evaluate import table_values
from kdsl.integrations import listed, torch_reader
from kdsl.integrations.partial import Choice, whole
from kdsl.integrations.required import required, tensor
from kdsl.masks import Mask, predicate
from kdsl.orders import Order
from kdsl.specs import Attention

MaskMod = Callable[[Any, Any, Any, Any], Any]
"""``mask_mod(batch, head, q_idx, kv_idx)`` in torch: whether a query sees a key."""


def from_block_mask(block_mask: Any) -> Blocks:
    """Rows of blocks from a ``BlockMask``; its ``mask_mod`` is not among them, see `mask_of`.

    Lists without full blocks (``separate_full_blocks=False``) come as partial ones.
    """
    queries, keys = (int(n) for n in block_mask.seq_lengths)
    size = block_mask.BLOCK_SIZE
    block = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def pair(kind: str) -> listed.Pair:
        count = getattr(block_mask, f"{kind}kv_num_blocks")
        index = getattr(block_mask, f"{kind}kv_indices")
        lead = (1,) * (3 - count.ndim) + tuple(count.shape[-3:-1])
        return (
            count.reshape(*lead[:2], count.shape[-1]),
            index.reshape(*lead[:2], *index.shape[-2:]),
        )

    full = pair("full_") if block_mask.full_kv_num_blocks is not None else None
    return listed.read(pair(""), full, block, queries, keys)


def to_block_mask(
    rows: Blocks,
    mask_mod: MaskMod | None = None,
    *,
    partial: Choice = "raise",
    device: Any = None,
) -> Any:
    """A ``BlockMask`` of rows of blocks, with the lists of its backward.

    ``mask_mod`` decides inside partial blocks (`mask_mod` makes it from a spec).  Without one there
    must be no partial blocks, or a choice of what they become; the ``mask_mod`` is then the map of
    blocks itself, so that FlexAttention outside of torch.compile, which looks at it alone, agrees.
    """
    if mask_mod is None:
        rows = whole(rows, partial, hint="mask_mod=flex_attention.mask_mod(spec)")
        mask_mod = _map_of(rows, device)
    made = [
        tensor(x, device)
        for cut in (True, False)
        for x in listed.write(rows, partial=cut, width=max(rows.columns, 1))
    ]
    flex = required("torch.nn.attention.flex_attention", "torch")
    return flex.BlockMask.from_kv_blocks(
        *made, BLOCK_SIZE=rows.block, mask_mod=mask_mod, seq_lengths=(rows.queries, rows.keys)
    )


def _map_of(rows: Blocks, device: Any) -> MaskMod:
    """Whether a pair lies in a kept block."""
    kept = tensor(rows.kept(), device)
    height, width = rows.block

    def in_kept_block(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        item, head = (i if n > 1 else i * 0 for i, n in zip((b, h), kept.shape[:2], strict=True))
        return kept[item, head, q_idx // height, kv_idx // width]

    return in_kept_block


def mask_mod(
    spec: Attention, tables: Mapping[str, Any] | None = None, device: Any = None
) -> MaskMod:
    """The mask of a spec as a ``mask_mod`` over stored positions, its orders within.

    ``tables`` holds values of open tables; they are copied to ``device`` once.
    """
    mask = spec.element_mask
    held: dict[str, Any] = {}
    for t in mask.tables():
        values = np.array(table_values(t, tables), np.int64)
        held[t.name] = tensor(values, device)
    index_q = _tokens(spec.query_order, tables, device)
    index_k = _tokens(spec.kv_order, tables, device)

    # Heads of one expression share a reading of it; what is traced below knows no trees.
    shared: dict[str, list[int]] = {}
    for head, expr in enumerate(mask.variants):
        shared.setdefault(expr.key, []).append(head)
    readers = [(torch_reader.reader(mask.variants[own[0]], held), own) for own in shared.values()]

    def sees(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        indices = {"batch": b, "head": h, "qs": q_idx, "ks": kv_idx}
        for name, at, index in (("q", q_idx, index_q), ("k", kv_idx, index_k)):
            indices[name] = at if index is None else index[h if len(index) > 1 else 0, at]
        seen: Any = False
        for read, heads in readers:
            mine: Any = len(readers) == 1
            for i in heads if len(readers) > 1 else ():
                mine = (h == i) | mine
            seen = (read(indices) & mine) | seen
        # A mask that speaks of no index must still be a tensor.
        return (q_idx == q_idx) & seen

    return sees


def _tokens(order: Order, tables: Mapping[str, Any] | None, device: Any) -> Any:
    """Original tokens by stored position, ``[heads or 1, tokens]``; None for the identity."""
    if order.is_identity:
        return None
    return tensor(np.stack([part.index(tables) for part in order.parts]), device)


def mask_of(mask_mod: MaskMod) -> Mask:
    """A ``mask_mod`` of arithmetic and comparisons as a mask.

    Its positions are taken for original tokens.  A ``BlockMask`` does not ask it in full blocks:
    the same is ``blocks("full") | (blocks("partial") & mask_of(block_mask.mask_mod))``.
    """
    try:
        return predicate(lambda q, k, head, batch: mask_mod(batch, head, q, k))
    except (SpecError, InputError):
        raise
    except (AttributeError, RuntimeError, ValueError) as error:
        raise SpecError(
            f"the mask_mod does what expressions cannot: {error}",
            where=repr(mask_mod),
            hint="a mask of kdsl.masks, with tables for what the mask_mod captures",
        ) from error
