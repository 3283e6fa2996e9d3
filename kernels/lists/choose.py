"""Blocks chosen at run time: means of blocks of tokens, and the best columns of rows of scores."""

import triton
import triton.language as tl


@triton.jit
def pool_blocks(
    x, out, x_b, x_h, x_n, x_d, heads, blocks, tokens, head_dim,
    BLOCK: tl.constexpr, STRIP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean of one block of tokens in float32; the last one may be ragged."""
    item, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    base = x + (item // heads).to(tl.int64) * x_b + (item % heads).to(tl.int64) * x_h
    d = tl.arange(0, WIDTH)
    total = tl.zeros([STRIP, WIDTH], tl.float32)
    for i in tl.static_range(0, BLOCK, STRIP):
        token = block * BLOCK + i + tl.arange(0, STRIP)
        inside = (token < tokens)[:, None] & (d < head_dim)[None, :]
        at = token.to(tl.int64)[:, None] * x_n + d[None, :] * x_d
        total += tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(tokens - block * BLOCK, BLOCK)
    mean = tl.sum(total, 0) / count.to(tl.float32)
    tl.store(out + tl.program_id(0).to(tl.int64) * head_dim + d, mean, mask=d < head_dim)


@triton.jit
def choose_blocks(
    scores, always, allowed, kept, a_b, a_h, a_row, a_column, m_b, m_h, m_row, m_column,
    heads, rows, columns, wanted, BY_MASS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Kept columns of one row of float32 scores: the `wanted` best, or those of so much mass.

    The border is found by halving the range of scores, read as integers of the same order: 32
    counts, without a sort.  Equal scores at the border are taken from the lower column on.
    """
    item, row = tl.program_id(0) // rows, tl.program_id(0) % rows
    batch, head = (item // heads).to(tl.int64), (item % heads).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    line = tl.program_id(0).to(tl.int64) * columns + column
    x = tl.load(scores + line, mask=inside, other=-float("inf"))
    if allowed is not None:
        at = batch * m_b + head * m_h + row.to(tl.int64) * m_row + column * m_column
        x = tl.where(tl.load(allowed + at, mask=inside, other=0) != 0, x, -float("inf"))
    x = tl.where(x == 0.0, 0.0, x)  # minus zero is no less than zero
    open_ = x > -float("inf")
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    top = tl.max(x, 0)
    top = tl.where(top > -float("inf"), top, 0.0)  # a row without open columns
    weight = tl.where(open_, tl.exp(x - top), 0.0) if BY_MASS else open_.to(tl.float32)
    goal = wanted * tl.sum(weight, 0) if BY_MASS else tl.minimum(wanted, tl.sum(weight, 0))

    # From minus infinity's key to the one past infinity's.
    low = tl.full([], -0x7F800001, tl.int32)
    high = tl.full([], 0x7F800001, tl.int32)
    for _ in range(32):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = tl.sum(tl.where(key >= middle, weight, 0.0), 0) >= goal
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    above = key > low
    level = (key == low) & open_
    before = tl.sum(tl.where(above, weight, 0.0), 0)
    before += tl.where(level, weight, 0.0) * (tl.cumsum(level.to(tl.int32), 0) - 1)
    chosen = open_ & (above | (level & (before < goal)))
    if always is not None:
        at = batch * a_b + head * a_h + row.to(tl.int64) * a_row + column * a_column
        chosen = chosen | (tl.load(always + at, mask=inside, other=0) != 0)
    tl.store(kept + line, chosen.to(tl.uint8), mask=inside)
