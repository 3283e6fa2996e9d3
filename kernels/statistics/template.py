"""Statistics of the blocks of an attention map that is never written: Triton, sm_80 and later.

One program takes `BLOCK_M` queries of one row of blocks of one head.  It walks the keys twice: for
each query's log-sum-exp, then for the sum, the largest and the small ones of the probabilities in
every block.  Walking twice costs no more than a pass of attention over all queries would, for few
rows are looked at in each order, and other rows in every one.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(base, tokens, stride_n, stride_d, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a matrix of D columns as WIDTH, a power of two; what is outside reads 0."""
    columns = tl.arange(0, WIDTH)
    rows = base + tokens.to(tl.int64)[:, None] * stride_n + columns[None, :] * stride_d
    return tl.load(rows, mask=inside[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def scores(
    q, base, index, at, tokens, stride_n, stride_d, scale_log2,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores in units of log2 against the keys stored from `at` on; minus infinity past the end."""
    ks = at + tl.arange(0, BLOCK_N)
    near = ks < tokens
    k_tokens = tl.load(index + ks, mask=near, other=0)
    k = load_tile(base, k_tokens, stride_n, stride_d, near, D, WIDTH)
    s = tl.dot(q, k.T, input_precision=PRECISION) * scale_log2
    return tl.where(near[None, :], s, -float("inf")), near


@triton.jit
def block_statistics(
    q, k, index, looked,
    mass, peak, below,
    q_b, q_h, q_n, q_d,
    k_b, k_h, k_n, k_d,
    index_h,
    heads, count, tokens, columns, scale_log2, eps,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * heads * count * (MASK_M // BLOCK_M)`` programs.

    ``looked`` holds the numbers of the ``count`` block rows, ``index`` the original tokens at
    stored positions (stride index_h between heads).  The results are ``[batch, heads, count,
    MASK_M // BLOCK_M, columns]``, contiguous: sums of probabilities, largest ones, entries below
    eps.
    """
    PARTS: tl.constexpr = MASK_M // BLOCK_M
    SPLIT_N: tl.constexpr = MASK_N // BLOCK_N
    pid = tl.program_id(0)
    part = pid % PARTS
    line = (pid // PARTS) % count
    head = (pid // (PARTS * count)) % heads
    batch = pid // (PARTS * count * heads)
    row = tl.load(looked + line)
    index += head.to(tl.int64) * index_h

    qs = row * MASK_M + part * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = qs < tokens
    q_tokens = tl.load(index + qs, mask=inside, other=0)
    q_base = q + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
    k_base = k + batch.to(tl.int64) * k_b + (head // GROUP).to(tl.int64) * k_h
    q_rows = load_tile(q_base, q_tokens, q_n, q_d, inside, D, WIDTH)

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for at in tl.range(0, tokens, BLOCK_N):
        s, _ = scores(
            q_rows, k_base, index, at, tokens, k_n, k_d, scale_log2, D, WIDTH, BLOCK_N, PRECISION
        )
        new_top = tl.maximum(top, tl.max(s, 1))
        level = tl.where(new_top == -float("inf"), 0.0, new_top)
        total = total * tl.exp2(top - level) + tl.sum(tl.exp2(s - level[:, None]), 1)
        top = new_top
    lse = tl.where(total > 0.0, top + tl.log2(total), float("inf"))

    out = pid.to(tl.int64) * columns
    # Two axes to the end: Triton 3.7 cannot reduce a vector of queries on sm_100.
    held = tl.zeros([BLOCK_M, 1], tl.float32)
    highest = tl.zeros([BLOCK_M, 1], tl.float32)
    small = tl.zeros([BLOCK_M, 1], tl.int32)
    for step in tl.range(0, columns * SPLIT_N):
        s, near = scores(
            q_rows, k_base, index, step * BLOCK_N, tokens, k_n, k_d, scale_log2, D, WIDTH, BLOCK_N,
            PRECISION,
        )  # fmt: skip
        counted = inside[:, None] & near[None, :]
        p = tl.where(counted, tl.exp2(s - lse[:, None]), 0.0)
        goes_on = step % SPLIT_N != 0
        held = tl.where(goes_on, held, 0.0) + tl.sum(p, 1, keep_dims=True)
        highest = tl.maximum(tl.where(goes_on, highest, 0.0), tl.max(p, 1, keep_dims=True))
        less = tl.where(counted & (p < eps), 1, 0)
        small = tl.where(goes_on, small, 0) + tl.sum(less, 1, keep_dims=True)
        column = step // SPLIT_N
        ends = step % SPLIT_N == SPLIT_N - 1
        tl.store(mass + out + column, tl.sum(held), mask=ends)
        tl.store(peak + out + column, tl.max(highest), mask=ends)
        tl.store(below + out + column, tl.sum(small), mask=ends)
