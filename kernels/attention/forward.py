"""Block-sparse attention, forward: the portable Triton template (sm_80 and later).

One program computes `BLOCK_M` queries of one head over the key blocks its row lists: full blocks
first, without a mask, then partial ones, where the leaf `mask` decides pair by pair.  Scores and
sums stay in float32, in units of log2.  With identity leaves the file runs as it stands; generated
files differ in the leaves alone.
"""

import triton
import triton.language as tl

from kdsl.kernels.attention.common import (
    key_index,
    listed_block,
    load_all_rows,
    load_described,
    load_rows,
    mask,
    offsets,
    query_index,
    tile_facts,
    tile_start,
)


@triton.jit
def key_rows(at, keys, head, tables, BLOCK_N: tl.constexpr, STORED: tl.constexpr):
    """Where keys and values of stored positions from `at` on lie; past the end, the last one."""
    s = tl.minimum(at + tl.arange(0, BLOCK_N), keys - 1)
    if STORED:
        return s
    else:  # noqa: RET505
        return key_index(s, head, tables)


@triton.jit
def weigh(s, top, total, scale_log2):
    """Weights of new scores, and what older sums shrink by as the maximum moves."""
    new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
    # A row of minus infinities must not make NaN of its own.
    level = tl.where(new_top == -float("inf"), 0.0, new_top)
    p = tl.exp2(s * scale_log2 - level[:, None])
    fade = tl.exp2(top - level)
    return p, fade, new_top, total * fade + tl.sum(p, 1)


@triton.jit
def attention_forward(
    q, k, v, o, lse,
    q_tail, k_tail, v_tail,
    start, full, partial, index, tiles, tables,
    q_b, q_h, q_n, q_d,
    k_b, k_h, k_n, k_d,
    v_b, v_h, v_n, v_d,
    o_b, o_h, o_n, o_d,
    list_b, list_h,
    heads, rows, queries, keys, scale_log2,
    GROUP: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr, LSE: tl.constexpr, STORED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * heads * rows * (MASK_M // BLOCK_M)`` programs.

    ``start``, ``full``, ``partial`` hold one entry a row of mask blocks (strides list_b, list_h),
    ``index`` the columns; ``tiles`` orders ``head * rows + row``.  q, k, v are pointers, or with
    DESCRIBED tensor descriptors over [batch, heads, tokens, D0] (and the tails over D1).  With
    STORED they are in stored order already; the output never is.
    """
    SPLIT_M: tl.constexpr = MASK_M // BLOCK_M
    SPLIT_N: tl.constexpr = MASK_N // BLOCK_N
    pid = tl.program_id(0)
    part = pid % SPLIT_M
    tile = tl.load(tiles + (pid // SPLIT_M) % (heads * rows))
    batch = pid // (SPLIT_M * heads * rows)
    head = tile // rows
    row = tile % rows
    kv_head = head // GROUP
    entry = batch.to(tl.int64) * list_b + head.to(tl.int64) * list_h + row
    first = tl.load(start + entry)
    n_full = tl.load(full + entry)
    n_partial = tl.load(partial + entry)
    columns = index + first

    qs = row * MASK_M + part * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = qs < queries
    # Positions past the end look up the last token, so that leaves stay inside their tables.
    qs = tl.minimum(qs, queries - 1)
    q_tokens = query_index(qs, head, tables)
    if DESCRIBED:
        q0, q1 = load_described(
            q, q_tail, batch, head, row * MASK_M + part * BLOCK_M, BLOCK_M, D0, D1
        )
    else:
        q_base = q + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
        q_rows = qs if STORED else q_tokens
        q0, q1 = load_rows(q_base, q_rows, q_n, q_d, inside, D0, D1)
        k_base = k + batch.to(tl.int64) * k_b + kv_head.to(tl.int64) * k_h
        v_base = v + batch.to(tl.int64) * v_b + kv_head.to(tl.int64) * v_h

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc0 = tl.zeros([BLOCK_M, D0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, D1 if D1 else 16], tl.float32)

    # Columns are looked up two steps ahead.  Were a step's loads to wait for a look-up of its own,
    # the compiler would pipeline both, and keep half as many keys and values in flight.
    steps = n_full * SPLIT_N
    column = listed_block(columns, 0, steps, MASK_N, BLOCK_N)
    ahead = listed_block(columns, 1, steps, MASK_N, BLOCK_N)
    at = tile_start(column, 0, MASK_N, BLOCK_N)
    k_rows = key_rows(at, keys, head, tables, BLOCK_N, STORED)
    for i in tl.range(0, steps):
        if DESCRIBED:
            k0, k1 = load_described(k, k_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        else:
            k0, k1 = load_all_rows(k_base, k_rows, k_n, k_d, D0, D1)
        s = tl.dot(q0, k0.T, input_precision=PRECISION)
        if D1:
            s = tl.dot(q1, k1.T, s, input_precision=PRECISION)
        p, fade, top, total = weigh(s, top, total, scale_log2)
        acc0 = acc0 * fade[:, None]
        if DESCRIBED:
            v0, v1 = load_described(v, v_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        else:
            v0, v1 = load_all_rows(v_base, k_rows, v_n, v_d, D0, D1)
        p = p.to(v0.dtype)
        acc0 = tl.dot(p, v0, acc0, input_precision=PRECISION)
        if D1:
            acc1 = tl.dot(p, v1, acc1 * fade[:, None], input_precision=PRECISION)
        column = ahead
        ahead = listed_block(columns, i + 2, steps, MASK_N, BLOCK_N)
        at = tile_start(column, i + 1, MASK_N, BLOCK_N)
        k_rows = key_rows(at, keys, head, tables, BLOCK_N, STORED)

    columns += n_full
    steps = n_partial * SPLIT_N
    column = listed_block(columns, 0, steps, MASK_N, BLOCK_N)
    ahead = listed_block(columns, 1, steps, MASK_N, BLOCK_N)
    known = tile_facts(row, column, head, batch, tables)
    at = tile_start(column, 0, MASK_N, BLOCK_N)
    k_tokens = key_index(tl.minimum(at + tl.arange(0, BLOCK_N), keys - 1), head, tables)
    for i in tl.range(0, steps):
        ks = at + tl.arange(0, BLOCK_N)
        near = ks < keys
        k_rows = ks if STORED else k_tokens
        if DESCRIBED:
            k0, k1 = load_described(k, k_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        else:
            k0, k1 = load_rows(k_base, k_rows, k_n, k_d, near, D0, D1)
        s = tl.dot(q0, k0.T, input_precision=PRECISION)
        if D1:
            s = tl.dot(q1, k1.T, s, input_precision=PRECISION)
        seen = mask(
            q_tokens[:, None], k_tokens[None, :], qs[:, None], ks[None, :], row, column, known,
            head, batch, tables,
        )  # fmt: skip
        s = tl.where(seen & near[None, :], s, -float("inf"))
        p, fade, top, total = weigh(s, top, total, scale_log2)
        acc0 = acc0 * fade[:, None]
        if DESCRIBED:
            v0, v1 = load_described(v, v_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        else:
            v0, v1 = load_rows(v_base, k_rows, v_n, v_d, near, D0, D1)
        p = p.to(v0.dtype)
        acc0 = tl.dot(p, v0, acc0, input_precision=PRECISION)
        if D1:
            acc1 = tl.dot(p, v1, acc1 * fade[:, None], input_precision=PRECISION)
        column = ahead
        known = tile_facts(row, column, head, batch, tables)
        ahead = listed_block(columns, i + 2, steps, MASK_N, BLOCK_N)
        at = tile_start(column, i + 1, MASK_N, BLOCK_N)
        k_tokens = key_index(tl.minimum(at + tl.arange(0, BLOCK_N), keys - 1), head, tables)

    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    share = 1.0 / total
    o_rows = (
        o + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h
        + q_tokens.to(tl.int64)[:, None] * o_n
    )  # fmt: skip
    out = tl.where(nothing[:, None], 0.0, acc0 * share[:, None]).to(o.dtype.element_ty)
    tl.store(o_rows + offsets(0, D0, o_d), out, mask=inside[:, None])
    if D1:
        out = tl.where(nothing[:, None], 0.0, acc1 * share[:, None]).to(o.dtype.element_ty)
        tl.store(o_rows + offsets(D0, D1, o_d), out, mask=inside[:, None])
    if LSE:
        LN2: tl.constexpr = 0.6931471805599453
        value = tl.where(nothing, -float("inf"), (top + tl.log2(total)) * LN2)
        tl.store(lse + (batch * heads + head).to(tl.int64) * queries + q_tokens, value, mask=inside)
