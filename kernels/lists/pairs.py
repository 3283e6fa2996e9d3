"""Which pairs of listed blocks a mask keeps, by its leaf: one bit a pair, as the kernels take them.

A program decides 64 queries of one block.  Lane 0 to 3 of the four that share a row in a tensor
core's tile has columns 8 i + 2 lane + (0, 1): they are the bits 2 i + (0, 1) of its word, a word
for each 128 columns.  Pairs past either end are not kept.  With identity leaves the file runs as it
stands.
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
def pack_pairs(
    words, batches, heads, rows, columns, tables, queries, keys,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Words ``[blocks, MASK_M / 64, WORDS, 64, 4]`` of the blocks that four lists name.

    Launch with ``blocks * (MASK_M // 64)`` programs.
    """
    GROUPS: tl.constexpr = MASK_M // 64
    block = tl.program_id(0) // GROUPS
    group = tl.program_id(0) % GROUPS
    batch = tl.load(batches + block)
    head = tl.load(heads + block)
    row = tl.load(rows + block)
    column = tl.load(columns + block)
    known = tile_facts(row, column, head, batch, tables)
    line = tl.arange(0, 64)
    qs = row * MASK_M + group * 64 + line
    near_q = qs < queries
    # Positions past the end look up the last token, so that leaves stay inside their tables.
    qs = tl.minimum(qs, queries - 1)
    q_tokens = query_index(qs, head, tables)
    flat = tl.arange(0, 128)
    bit = flat % 32
    across = bit // 2 * 8 + flat // 32 * 2 + bit % 2
    for chunk in tl.static_range(WORDS):
        at = chunk * 128 + across
        ks = column * MASK_N + at
        near_k = (at < MASK_N) & (ks < keys)
        ks = tl.minimum(ks, keys - 1)
        k_tokens = key_index(ks, head, tables)
        seen = mask(
            q_tokens[:, None], k_tokens[None, :], qs[:, None], ks[None, :], row, column, known,
            head, batch, tables,
        )  # fmt: skip
        seen = seen & near_q[:, None] & near_k[None, :]
        bits = tl.where(seen, 1 << bit[None, :], 0)
        packed = tl.sum(tl.reshape(bits, [64, 4, 32]), 2)
        place = (block.to(tl.int64) * GROUPS + group) * WORDS + chunk
        where = place * 256 + line[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(words + where, packed)
