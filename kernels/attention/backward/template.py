"""Block-sparse attention, backward: the portable Triton template (sm_80 and later).

Three kernels, none of which adds into memory that another program adds to, so that gradients come
out the same, bit for bit, every time:

`attention_backward_rows`     what each query's weights and their gradients are taken against
`attention_backward_keys`     dK and dV of `BLOCK_N` keys, over the query blocks that visit them
`attention_backward_queries`  dQ of `BLOCK_M` queries, over the key blocks that they visit

The last two compute the scores again, as exp2 of their difference to the forward's log-sum-exp.
Blocks come full ones first, without a mask, then partial ones, where the leaf `mask` decides.
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
def product(a0, a1, b0, b1, D1: tl.constexpr, PRECISION: tl.constexpr):
    """``a @ b.T`` of tiles in two parts of columns, float32."""
    out = tl.dot(a0, b0.T, input_precision=PRECISION)
    if D1:
        out = tl.dot(a1, b1.T, out, input_precision=PRECISION)
    return out


@triton.jit
def add_product(sum0, sum1, w, b0, b1, D1: tl.constexpr, PRECISION: tl.constexpr):
    """``sum + w @ b``, the weights rounded to the dtype of b."""
    w = w.to(b0.dtype)
    sum0 = tl.dot(w, b0, sum0, input_precision=PRECISION)
    if D1:
        sum1 = tl.dot(w, b1, sum1, input_precision=PRECISION)
    return sum0, sum1


@triton.jit
def store_rows(
    base, tokens, stride_n, stride_d, inside, x0, x1, D0: tl.constexpr, D1: tl.constexpr
):
    """Rows in two parts of columns, rounded to the dtype of the memory."""
    rows = base + tokens.to(tl.int64)[:, None] * stride_n
    kind = base.dtype.element_ty
    tl.store(rows + offsets(0, D0, stride_d), x0.to(kind), mask=inside[:, None])
    if D1:
        tl.store(rows + offsets(D0, D1, stride_d), x1.to(kind), mask=inside[:, None])


@triton.jit
def attention_backward_rows(
    o, do, lse, dlse, level, delta,
    o_b, o_h, o_n, o_d,
    do_b, do_h, do_n, do_d,
    heads, queries,
    D0: tl.constexpr, D1: tl.constexpr, BLOCK: tl.constexpr, DLSE: tl.constexpr,
):  # fmt: skip
    """For each query: ``level``, its log-sum-exp in units of log2, infinity where it sees nothing;
    ``delta``, the sum of ``do * o``, less the gradient of the log-sum-exp.

    Launch with ``batch * heads * cdiv(queries, BLOCK)`` programs.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    tiles = tl.cdiv(queries, BLOCK)
    pid = tl.program_id(0)
    item = pid // tiles
    batch, head = (item // heads).to(tl.int64), (item % heads).to(tl.int64)
    rows = pid % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = rows < queries
    o0, o1 = load_rows(o + batch * o_b + head * o_h, rows, o_n, o_d, inside, D0, D1)
    d0, d1 = load_rows(do + batch * do_b + head * do_h, rows, do_n, do_d, inside, D0, D1)
    sums = tl.sum(o0.to(tl.float32) * d0.to(tl.float32), 1)
    if D1:
        sums += tl.sum(o1.to(tl.float32) * d1.to(tl.float32), 1)
    at = item.to(tl.int64) * queries + rows
    if DLSE:
        sums -= tl.load(dlse + at, mask=inside, other=0.0)
    natural = tl.load(lse + at, mask=inside, other=0.0)
    natural = tl.where(natural == -float("inf"), float("inf"), natural * LOG2E)
    tl.store(level + at, natural, mask=inside)
    tl.store(delta + at, sums, mask=inside)


@triton.jit
def over_queries(
    dk0, dk1, dv0, dv1, k0, k1, v0, v1, k_tokens, ks,
    q, do, q_tail, do_tail, level, delta,
    q_n, q_d, do_n, do_d,
    lines, steps, column, head, batch, tables, queries, scale_log2,
    D0: tl.constexpr, D1: tl.constexpr, MASK_M: tl.constexpr, BLOCK_M: tl.constexpr,
    DESCRIBED: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the listed blocks of one head's queries add to dK and dV of a tile of keys.

    Scores stand transposed, keys by queries.  A query past the end has a level of infinity: its
    weights are 0.
    """
    # Lines are looked up two steps ahead, see the forward kernel.
    row = listed_block(lines, 0, steps, MASK_M, BLOCK_M)
    ahead = listed_block(lines, 1, steps, MASK_M, BLOCK_M)
    if PARTIAL:
        known = tile_facts(row, column, head, batch, tables)
    at = tile_start(row, 0, MASK_M, BLOCK_M)
    q_tokens = query_index(tl.minimum(at + tl.arange(0, BLOCK_M), queries - 1), head, tables)
    for i in tl.range(0, steps):
        qs = at + tl.arange(0, BLOCK_M)
        inside = qs < queries
        if DESCRIBED:
            q0, q1 = load_described(q, q_tail, batch, head, at, BLOCK_M, D0, D1)
        elif PARTIAL:
            q0, q1 = load_rows(q, q_tokens, q_n, q_d, inside, D0, D1)
        else:
            q0, q1 = load_all_rows(q, q_tokens, q_n, q_d, D0, D1)
        s = product(k0, k1, q0, q1, D1, PRECISION)
        if PARTIAL:
            seen = mask(
                q_tokens[None, :], k_tokens[:, None], qs[None, :], ks[:, None], row, column,
                known, head, batch, tables,
            )  # fmt: skip
            s = tl.where(seen & inside[None, :], s, -float("inf"))
            tops = tl.load(level + q_tokens, mask=inside, other=float("inf"))
            means = tl.load(delta + q_tokens, mask=inside, other=0.0)
        else:
            tops = tl.load(level + q_tokens)
            means = tl.load(delta + q_tokens)
        p = tl.exp2(s * scale_log2 - tops[None, :])
        if DESCRIBED:
            do0, do1 = load_described(do, do_tail, batch, head, at, BLOCK_M, D0, D1)
        elif PARTIAL:
            do0, do1 = load_rows(do, q_tokens, do_n, do_d, inside, D0, D1)
        else:
            do0, do1 = load_all_rows(do, q_tokens, do_n, do_d, D0, D1)
        dv0, dv1 = add_product(dv0, dv1, p, do0, do1, D1, PRECISION)
        ds = p * (product(v0, v1, do0, do1, D1, PRECISION) - means[None, :])
        dk0, dk1 = add_product(dk0, dk1, ds, q0, q1, D1, PRECISION)
        row = ahead
        if PARTIAL:
            known = tile_facts(row, column, head, batch, tables)
        ahead = listed_block(lines, i + 2, steps, MASK_M, BLOCK_M)
        at = tile_start(row, i + 1, MASK_M, BLOCK_M)
        q_tokens = query_index(tl.minimum(at + tl.arange(0, BLOCK_M), queries - 1), head, tables)
    return dk0, dk1, dv0, dv1


@triton.jit
def attention_backward_keys(
    q, k, v, do, level, delta, dk, dv,
    q_tail, do_tail,
    start, full, partial, index, tiles, tables,
    q_b, q_h, q_n, q_d,
    k_b, k_h, k_n, k_d,
    v_b, v_h, v_n, v_d,
    do_b, do_h, do_n, do_d,
    dk_b, dk_h, dk_n, dk_d,
    dv_b, dv_h, dv_n, dv_d,
    list_b, list_h,
    heads, columns, queries, keys, scale, scale_log2,
    GROUP: tl.constexpr, SUMMED: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * (heads // SUMMED) * columns * (MASK_N // BLOCK_N)`` programs.

    The lists are by key block and hold query blocks; ``tiles`` orders ``lead * columns + column``,
    where a lead stands for SUMMED query heads.  dK and dV are summed over those heads, one after
    the other, and have one head a lead.  With DESCRIBED q and do are tensor descriptors.
    """
    SPLIT_N: tl.constexpr = MASK_N // BLOCK_N
    pid = tl.program_id(0)
    part = pid % SPLIT_N
    leads = heads // SUMMED
    tile = tl.load(tiles + (pid // SPLIT_N) % (leads * columns))
    batch = pid // (SPLIT_N * leads * columns)
    lead = tile // columns
    column = tile % columns
    kv_head = lead * SUMMED // GROUP

    ks = column * MASK_N + part * BLOCK_N + tl.arange(0, BLOCK_N)
    near = ks < keys
    ks = tl.minimum(ks, keys - 1)
    # Heads that are summed here store their keys in one order.
    k_tokens = key_index(ks, lead * SUMMED, tables)
    # Past the end the last key stands in: another one's weights need not be finite numbers.
    k_base = k + batch.to(tl.int64) * k_b + kv_head.to(tl.int64) * k_h
    v_base = v + batch.to(tl.int64) * v_b + kv_head.to(tl.int64) * v_h
    k0, k1 = load_all_rows(k_base, k_tokens, k_n, k_d, D0, D1)
    v0, v1 = load_all_rows(v_base, k_tokens, v_n, v_d, D0, D1)

    dk0 = tl.zeros([BLOCK_N, D0], tl.float32)
    dk1 = tl.zeros([BLOCK_N, D1 if D1 else 16], tl.float32)
    dv0 = tl.zeros([BLOCK_N, D0], tl.float32)
    dv1 = tl.zeros([BLOCK_N, D1 if D1 else 16], tl.float32)
    for member in range(SUMMED):
        head = lead * SUMMED + member
        entry = batch.to(tl.int64) * list_b + head.to(tl.int64) * list_h + column
        lines = index + tl.load(start + entry)
        n_full = tl.load(full + entry)
        n_partial = tl.load(partial + entry)
        line = (batch * heads + head).to(tl.int64) * queries
        if DESCRIBED:
            q_base, do_base = q, do
        else:
            q_base = q + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
            do_base = do + batch.to(tl.int64) * do_b + head.to(tl.int64) * do_h
        dk0, dk1, dv0, dv1 = over_queries(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, k_tokens, ks,
            q_base, do_base, q_tail, do_tail, level + line, delta + line, q_n, q_d, do_n, do_d,
            lines, n_full * (MASK_M // BLOCK_M), column, head, batch, tables, queries, scale_log2,
            D0, D1, MASK_M, BLOCK_M, DESCRIBED, False, PRECISION,
        )  # fmt: skip
        dk0, dk1, dv0, dv1 = over_queries(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, k_tokens, ks,
            q_base, do_base, q_tail, do_tail, level + line, delta + line, q_n, q_d, do_n, do_d,
            lines + n_full, n_partial * (MASK_M // BLOCK_M), column, head, batch, tables, queries,
            scale_log2, D0, D1, MASK_M, BLOCK_M, DESCRIBED, True, PRECISION,
        )  # fmt: skip

    dk_base = dk + batch.to(tl.int64) * dk_b + lead.to(tl.int64) * dk_h
    dv_base = dv + batch.to(tl.int64) * dv_b + lead.to(tl.int64) * dv_h
    store_rows(dk_base, k_tokens, dk_n, dk_d, near, dk0 * scale, dk1 * scale, D0, D1)
    store_rows(dv_base, k_tokens, dv_n, dv_d, near, dv0, dv1, D0, D1)


@triton.jit
def over_keys(
    dq0, dq1, q0, q1, do0, do1, tops, means, q_tokens, qs,
    k, v, k_tail, v_tail,
    k_n, k_d, v_n, v_d,
    columns, steps, row, head, kv_head, batch, tables, keys, scale_log2,
    D0: tl.constexpr, D1: tl.constexpr, MASK_N: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the listed blocks of keys add to dQ of a tile of queries."""
    column = listed_block(columns, 0, steps, MASK_N, BLOCK_N)
    ahead = listed_block(columns, 1, steps, MASK_N, BLOCK_N)
    if PARTIAL:
        known = tile_facts(row, column, head, batch, tables)
    at = tile_start(column, 0, MASK_N, BLOCK_N)
    k_tokens = key_index(tl.minimum(at + tl.arange(0, BLOCK_N), keys - 1), head, tables)
    for i in tl.range(0, steps):
        ks = at + tl.arange(0, BLOCK_N)
        near = ks < keys
        if DESCRIBED:
            k0, k1 = load_described(k, k_tail, batch, kv_head, at, BLOCK_N, D0, D1)
            v0, v1 = load_described(v, v_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        elif PARTIAL:
            k0, k1 = load_rows(k, k_tokens, k_n, k_d, near, D0, D1)
            v0, v1 = load_rows(v, k_tokens, v_n, v_d, near, D0, D1)
        else:
            k0, k1 = load_all_rows(k, k_tokens, k_n, k_d, D0, D1)
            v0, v1 = load_all_rows(v, k_tokens, v_n, v_d, D0, D1)
        s = product(q0, q1, k0, k1, D1, PRECISION)
        if PARTIAL:
            seen = mask(
                q_tokens[:, None], k_tokens[None, :], qs[:, None], ks[None, :], row, column,
                known, head, batch, tables,
            )  # fmt: skip
            s = tl.where(seen & near[None, :], s, -float("inf"))
        p = tl.exp2(s * scale_log2 - tops[:, None])
        ds = p * (product(do0, do1, v0, v1, D1, PRECISION) - means[:, None])
        dq0, dq1 = add_product(dq0, dq1, ds, k0, k1, D1, PRECISION)
        column = ahead
        if PARTIAL:
            known = tile_facts(row, column, head, batch, tables)
        ahead = listed_block(columns, i + 2, steps, MASK_N, BLOCK_N)
        at = tile_start(column, i + 1, MASK_N, BLOCK_N)
        k_tokens = key_index(tl.minimum(at + tl.arange(0, BLOCK_N), keys - 1), head, tables)
    return dq0, dq1


@triton.jit
def attention_backward_queries(
    q, k, v, do, level, delta, dq,
    q_tail, k_tail, v_tail, do_tail,
    start, full, partial, index, tiles, tables,
    q_b, q_h, q_n, q_d,
    k_b, k_h, k_n, k_d,
    v_b, v_h, v_n, v_d,
    do_b, do_h, do_n, do_d,
    dq_b, dq_h, dq_n, dq_d,
    list_b, list_h,
    heads, rows, queries, keys, scale, scale_log2,
    GROUP: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * heads * rows * (MASK_M // BLOCK_M)`` programs; lists as forward.

    With DESCRIBED q, k, v and do are tensor descriptors.
    """
    SPLIT_M: tl.constexpr = MASK_M // BLOCK_M
    pid = tl.program_id(0)
    part = pid % SPLIT_M
    tile = tl.load(tiles + (pid // SPLIT_M) % (heads * rows))
    batch = pid // (SPLIT_M * heads * rows)
    head = tile // rows
    row = tile % rows
    kv_head = head // GROUP
    entry = batch.to(tl.int64) * list_b + head.to(tl.int64) * list_h + row
    columns = index + tl.load(start + entry)
    n_full = tl.load(full + entry)
    n_partial = tl.load(partial + entry)

    at = row * MASK_M + part * BLOCK_M
    qs = at + tl.arange(0, BLOCK_M)
    inside = qs < queries
    qs = tl.minimum(qs, queries - 1)
    q_tokens = query_index(qs, head, tables)
    if DESCRIBED:
        q0, q1 = load_described(q, q_tail, batch, head, at, BLOCK_M, D0, D1)
        do0, do1 = load_described(do, do_tail, batch, head, at, BLOCK_M, D0, D1)
        k_base, v_base = k, v
    else:
        q_base = q + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
        do_base = do + batch.to(tl.int64) * do_b + head.to(tl.int64) * do_h
        q0, q1 = load_rows(q_base, q_tokens, q_n, q_d, inside, D0, D1)
        do0, do1 = load_rows(do_base, q_tokens, do_n, do_d, inside, D0, D1)
        k_base = k + batch.to(tl.int64) * k_b + kv_head.to(tl.int64) * k_h
        v_base = v + batch.to(tl.int64) * v_b + kv_head.to(tl.int64) * v_h
    line = (batch * heads + head).to(tl.int64) * queries
    tops = tl.load(level + line + q_tokens, mask=inside, other=float("inf"))
    means = tl.load(delta + line + q_tokens, mask=inside, other=0.0)

    dq0 = tl.zeros([BLOCK_M, D0], tl.float32)
    dq1 = tl.zeros([BLOCK_M, D1 if D1 else 16], tl.float32)
    dq0, dq1 = over_keys(
        dq0, dq1, q0, q1, do0, do1, tops, means, q_tokens, qs,
        k_base, v_base, k_tail, v_tail, k_n, k_d, v_n, v_d,
        columns, n_full * (MASK_N // BLOCK_N), row, head, kv_head, batch, tables, keys, scale_log2,
        D0, D1, MASK_N, BLOCK_N, DESCRIBED, False, PRECISION,
    )  # fmt: skip
    dq0, dq1 = over_keys(
        dq0, dq1, q0, q1, do0, do1, tops, means, q_tokens, qs,
        k_base, v_base, k_tail, v_tail, k_n, k_d, v_n, v_d,
        columns + n_full, n_partial * (MASK_N // BLOCK_N), row, head, kv_head, batch, tables, keys,
        scale_log2, D0, D1, MASK_N, BLOCK_N, DESCRIBED, True, PRECISION,
    )  # fmt: skip

    # A query that sees nothing has gradient 0, also beside values that are not finite.
    nothing = (tops == float("inf"))[:, None]
    dq0 = tl.where(nothing, 0.0, dq0 * scale)
    dq1 = tl.where(nothing, 0.0, dq1 * scale)
    dq_base = dq + batch.to(tl.int64) * dq_b + head.to(tl.int64) * dq_h
    store_rows(dq_base, q_tokens, dq_n, dq_d, inside, dq0, dq1, D0, D1)
