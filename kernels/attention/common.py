"""Leaves, and what the attention templates share: tiles of rows, and where blocks of a list lie.

A template imports these; the generator writes this file's text in place of the import, with
generated leaves, so that a generated file stands alone.
"""

import triton
import triton.language as tl

# --- leaves: replaced by generated functions of the same names ---


@triton.jit
def tile_facts(row, column, head, batch, tables):
    """What the mask knows of a tile beforehand, as bits: looked up a step ahead of its use."""
    return row * 0


@triton.jit
def mask(q, k, qs, ks, row, column, known, head, batch, tables):
    """Whether query token q sees key token k.

    qs and ks are their stored positions, in the last block also past the end, where q and k are the
    last token.  row and column are their mask block, `known` its facts: one for all of a tile.
    """
    return (q >= 0) & (k >= 0)


@triton.jit
def query_index(s, head, tables):
    """The original query token at stored position s."""
    return s + 0


@triton.jit
def key_index(s, head, tables):
    """The original key token at stored position s."""
    return s + 0


# --- end of leaves ---


@triton.jit
def offsets(FIRST: tl.constexpr, N: tl.constexpr, stride):
    """Where columns FIRST to FIRST + N lie in a row, ``[1, N]``: in 64 bits, for they may be far
    apart where another axis is the innermost one."""
    return (FIRST + tl.arange(0, N)).to(tl.int64)[None, :] * stride


@triton.jit
def load_rows(base, tokens, stride_n, stride_d, limit, D0: tl.constexpr, D1: tl.constexpr):
    """Rows of a matrix in two parts of D0 and D1 columns; rows that `limit` excludes read 0."""
    rows = base + tokens.to(tl.int64)[:, None] * stride_n
    first = tl.load(rows + offsets(0, D0, stride_d), mask=limit[:, None], other=0.0)
    if D1:
        second = tl.load(rows + offsets(D0, D1, stride_d), mask=limit[:, None], other=0.0)
    else:
        second = first
    return first, second


@triton.jit
def load_all_rows(base, tokens, stride_n, stride_d, D0: tl.constexpr, D1: tl.constexpr):
    """`load_rows` where every row is inside."""
    rows = base + tokens.to(tl.int64)[:, None] * stride_n
    first = tl.load(rows + offsets(0, D0, stride_d))
    if D1:
        second = tl.load(rows + offsets(D0, D1, stride_d))
    else:
        second = first
    return first, second


@triton.jit
def load_described(
    first, second, batch, head, row, N: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr
):
    """`N` rows through tensor descriptors; rows past the end read 0."""
    a = first.load([batch, head, row, 0]).reshape(N, D0)
    if D1:
        b = second.load([batch, head, row, D0]).reshape(N, D1)
    else:
        b = a
    return a, b


@triton.jit
def listed_block(columns, i, steps, MASK_N: tl.constexpr, BLOCK_N: tl.constexpr):
    """The mask block, of those listed, that step i works in; 0 past the end."""
    return tl.load(columns + i // (MASK_N // BLOCK_N), mask=i < steps, other=0)


@triton.jit
def tile_start(column, i, MASK_N: tl.constexpr, BLOCK_N: tl.constexpr):
    """The stored position at which the tile of step i starts, in that mask block."""
    return column * MASK_N + i % (MASK_N // BLOCK_N) * BLOCK_N
