"""Blocks of a mask, full, partial or empty, by its leaf: exact, and without the host.

One program decides one block.  It walks the block in strips of pairs and stops as soon as it has
seen a kept pair and a dropped one; uniform blocks are evaluated whole.  With identity leaves the
file runs as it stands.
"""

import triton
import triton.language as tl

from kdsl.kernels.attention.common import (
    key_index,
    mask,
    query_index,
    tile_facts,
)


@triton.jit
def classify_blocks(
    codes, tables, heads, rows, columns, queries, keys,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """Code of one block of ``[batch, heads, rows, columns]``: 0 empty, 1 full, 2 partial."""
    flat = tl.program_id(0)
    column = flat % columns
    row = flat // columns % rows
    item = flat // columns // rows
    batch, head = item // heads, item % heads
    known = tile_facts(row, column, head, batch, tables)
    ks = column * MASK_N + tl.arange(0, MASK_N)
    near = ks < keys
    ks = tl.minimum(ks, keys - 1)
    k_tokens = key_index(ks, head, tables)
    kept = 0
    dropped = 0
    at = row * MASK_M
    end = tl.minimum(at + MASK_M, queries)
    while (at < end) & ((kept == 0) | (dropped == 0)):
        qs = at + tl.arange(0, STRIP)
        inside = (qs < queries)[:, None] & near[None, :]
        qs = tl.minimum(qs, queries - 1)
        q_tokens = query_index(qs, head, tables)
        seen = mask(
            q_tokens[:, None], k_tokens[None, :], qs[:, None], ks[None, :], row, column, known,
            head, batch, tables,
        )  # fmt: skip
        sees = seen & inside
        kept = tl.maximum(kept, tl.max(tl.max(sees.to(tl.int32), 1), 0))
        dropped = tl.maximum(dropped, tl.max(tl.max((sees ^ inside).to(tl.int32), 1), 0))
        at += STRIP
    tl.store(codes + flat.to(tl.int64), tl.where(kept == 0, 0, 1 + dropped).to(tl.uint8))
