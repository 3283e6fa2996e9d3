"""Block-sparse attention on quantized q, k and v, forward: the portable Triton template.

INT8 (or INT4) codes of q and k; v in 16 bits, e4m3 (sm_89 and later) or INT8.  Steps are those of
the 16-bit template beside it, with which it shares leaves, lists and loads.  Scores are exact
integers until they meet their scales; weights are rounded against the running maximum, with static
scales; products of 8-bit weights are added to float32 sums step by step, so that no sum lives in
the matrix unit for longer than a step (two-level accumulation, SageAttention2).
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
def lanes(BLOCK_N: tl.constexpr, LANES: tl.constexpr):
    """The keys of a tile, by the places of v's tokens: with LANES in the order of `lane_order`."""
    at = tl.arange(0, BLOCK_N)
    if LANES:
        return (at & -16) | ((at & 2) << 2) | ((at & 12) >> 1) | (at & 1)
    else:  # noqa: RET505
        return at


@triton.jit
def load_columns(base, at, stride, FIRST: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Channels FIRST to FIRST + N of transposed v, and its tokens from position `at` on."""
    channels = (FIRST + tl.arange(0, N)).to(tl.int64)[:, None] * stride
    return tl.load(base + channels + (at + tl.arange(0, BLOCK_N))[None, :])


@triton.jit
def load_values(
    v, v_tail, base, rows, near, batch, head, at, stride, stride_d,
    D0: tl.constexpr, D1: tl.constexpr, BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr, DESCRIBED: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """A tile of v in its two parts, ``[BLOCK_N, D]``; transposed ones are whole tiles always."""
    if TRANSPOSED:
        if DESCRIBED:
            a = v.load([batch, head, 0, at]).reshape(D0, BLOCK_N).T
        else:
            a = load_columns(base, at, stride, 0, D0, BLOCK_N).T
        if D1:
            if DESCRIBED:
                b = v_tail.load([batch, head, D0, at]).reshape(D1, BLOCK_N).T
            else:
                b = load_columns(base, at, stride, D0, D1, BLOCK_N).T
        else:
            b = a
    elif DESCRIBED:
        a, b = load_described(v, v_tail, batch, head, at, BLOCK_N, D0, D1)
    elif BOUNDED:
        a, b = load_rows(base, rows, stride, stride_d, near, D0, D1)
    else:
        a, b = load_all_rows(base, rows, stride, stride_d, D0, D1)
    return a, b


@triton.jit
def score(q0, q1, k0, k1, D1: tl.constexpr):
    """Products of codes, exact."""
    s = tl.dot(q0, k0.T, out_dtype=tl.int32)
    if D1:
        s = tl.dot(q1, k1.T, s, out_dtype=tl.int32)
    return s.to(tl.float32)


@triton.jit
def scaled(s, q_scale, k_scale, at, keys, place,
           K_SPAN: tl.constexpr, K_PERIOD: tl.constexpr, K_WIDTH: tl.constexpr,
           BLOCK_N: tl.constexpr):  # fmt: skip
    """Scores but for a factor of their rows, and that factor: keys of one group share its scale."""
    EACH: tl.constexpr = K_PERIOD // K_WIDTH
    if EACH == 1 and K_SPAN % BLOCK_N == 0:
        factor = q_scale * tl.load(k_scale + at // K_SPAN)
    else:
        ks = tl.minimum(at + place, keys - 1)
        group = ks // K_SPAN * EACH + ks % K_PERIOD // K_WIDTH
        s = s * tl.load(k_scale + group)[None, :]
        factor = q_scale
    # What the mask drops is minus infinity, also where a group of zeros has scale 0.
    return s, tl.where(factor == 0.0, 1e-37, factor)


@triton.jit
def weigh(s, factor, top, total, SHIFT: tl.constexpr):
    """Weights of new scores times 2**SHIFT, and what older sums shrink by as the maximum moves."""
    new_top = tl.maximum(top, tl.max(s, 1) * factor)
    # A row of minus infinities must not make NaN of its own.
    level = tl.where(new_top == -float("inf"), 0.0, new_top)
    p = tl.exp2(s * factor[:, None] - (level - SHIFT)[:, None])
    fade = tl.exp2(top - level)
    return p, fade, new_top, total * fade + tl.sum(p, 1)


@triton.jit
def gather(p, fade, acc, v, sums, FIRST: tl.constexpr, N: tl.constexpr, ONE: tl.constexpr):
    """The output's part FIRST to FIRST + N after a step.

    ONE is the code of a weight of one (0: weights in v's dtype).  Unsigned codes travel as signed
    ones, 128 less; `sums` is what the 128 adds.
    """
    if ONE == 0:
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    elif ONE == 256:
        acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v)
    else:
        # Truncated after adding a half: weights are not negative.
        codes = (p + 0.5).to(tl.int32)
        if ONE == 255:
            start = tl.broadcast_to((sums * 128)[None, :], [p.shape[0], N])
            product = tl.dot((codes - 128).to(tl.int8), v, start, out_dtype=tl.int32)
        else:
            product = tl.dot(codes.to(tl.int8), v, out_dtype=tl.int32)
        acc = acc * fade[:, None] + product.to(tl.float32)
    return acc


@triton.jit
def load_sums(base, at, FIRST: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
              BLOCK_N: tl.constexpr, SUMMED: tl.constexpr):  # fmt: skip
    """Sums of a tile's codes of v over its tokens, channel by channel."""
    channels = base + at // SUMMED * D + FIRST + tl.arange(0, N)
    out = tl.load(channels).to(tl.int32)
    for i in tl.static_range(1, BLOCK_N // SUMMED):
        out += tl.load(channels + i * D).to(tl.int32)
    return out


@triton.jit
def attention_quantized(
    q, k, v, o, lse,
    q_tail, k_tail, v_tail,
    q_scale, k_scale, v_scale, v_sum,
    start, full, partial, index, tiles, tables,
    q_b, q_h, q_n, q_d,
    k_b, k_h, k_n, k_d,
    v_b, v_h, v_n, v_d,
    o_b, o_h, o_n, o_d,
    list_b, list_h,
    heads, rows, queries, keys, q_groups, k_groups, v_groups, scale_log2,
    GROUP: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    MASK_M: tl.constexpr, MASK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr, LSE: tl.constexpr,
    Q_SPAN: tl.constexpr, Q_PERIOD: tl.constexpr, Q_WIDTH: tl.constexpr,
    K_SPAN: tl.constexpr, K_PERIOD: tl.constexpr, K_WIDTH: tl.constexpr,
    TRANSPOSED: tl.constexpr, LANES: tl.constexpr, ONE: tl.constexpr, SHIFT: tl.constexpr,
    V_SCALED: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * heads * rows * (MASK_M // BLOCK_M)`` programs.

    Lists and tiles are those of `attention_forward`.  q, k, v are pointers, or with DESCRIBED
    tensor descriptors over [batch, heads, tokens, D0] (v: over its own axes; the tails: of D1), in
    stored order; the output is in the model's.  Scales are contiguous, ``q_groups`` and
    ``k_groups`` a head, v's one a channel; token ``n`` belongs to group ``n // SPAN * (PERIOD //
    WIDTH) + n % PERIOD // WIDTH``.  ``v_sum`` holds ``v_groups`` sums a head and channel, of SUMMED
    tokens each.  ``v_n`` is the step of v's rows: of tokens, or where TRANSPOSED of channels.
    """
    SPLIT_M: tl.constexpr = MASK_M // BLOCK_M
    SPLIT_N: tl.constexpr = MASK_N // BLOCK_N
    D: tl.constexpr = D0 + D1
    pid = tl.program_id(0)
    part = pid % SPLIT_M
    tile = tl.load(tiles + (pid // SPLIT_M) % (heads * rows))
    batch = pid // (SPLIT_M * heads * rows)
    head = tile // rows
    row = tile % rows
    kv_head = head // GROUP
    kv = (batch * (heads // GROUP) + kv_head).to(tl.int64)
    entry = batch.to(tl.int64) * list_b + head.to(tl.int64) * list_h + row
    first = tl.load(start + entry)
    n_full = tl.load(full + entry)
    n_partial = tl.load(partial + entry)
    columns = index + first

    q_at = row * MASK_M + part * BLOCK_M
    qs = q_at + tl.arange(0, BLOCK_M)
    inside = qs < queries
    # Positions past the end look up the last token, so that leaves stay inside their tables.
    qs = tl.minimum(qs, queries - 1)
    q_tokens = query_index(qs, head, tables)
    k_base = k
    v_base = v
    if DESCRIBED:
        q0, q1 = load_described(q, q_tail, batch, head, q_at, BLOCK_M, D0, D1)
    else:
        q_base = q + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
        q0, q1 = load_rows(q_base, qs, q_n, q_d, inside, D0, D1)
        k_base += batch.to(tl.int64) * k_b + kv_head.to(tl.int64) * k_h
        v_base += batch.to(tl.int64) * v_b + kv_head.to(tl.int64) * v_h
    q_scale += (batch * heads + head).to(tl.int64) * q_groups
    q_group = qs // Q_SPAN * (Q_PERIOD // Q_WIDTH) + qs % Q_PERIOD // Q_WIDTH
    row_scale = tl.load(q_scale + q_group) * scale_log2
    k_scale += kv * k_groups
    if ONE == 255:
        v_sum += kv * v_groups * D

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc0 = tl.zeros([BLOCK_M, D0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, D1 if D1 else 16], tl.float32)
    place = lanes(BLOCK_N, LANES)

    # Columns are looked up two steps ahead, as in the 16-bit template.
    steps = n_full * SPLIT_N
    column = listed_block(columns, 0, steps, MASK_N, BLOCK_N)
    ahead = listed_block(columns, 1, steps, MASK_N, BLOCK_N)
    at = tile_start(column, 0, MASK_N, BLOCK_N)
    for i in tl.range(0, steps):
        k_rows = tl.minimum(at + place, keys - 1)
        if DESCRIBED:
            k0, k1 = load_described(k, k_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        else:
            k0, k1 = load_all_rows(k_base, k_rows, k_n, k_d, D0, D1)
        s, factor = scaled(
            score(q0, q1, k0, k1, D1), row_scale, k_scale, at, keys, place,
            K_SPAN, K_PERIOD, K_WIDTH, BLOCK_N,
        )  # fmt: skip
        p, fade, top, total = weigh(s, factor, top, total, SHIFT)
        v0, v1 = load_values(
            v, v_tail, v_base, k_rows, k_rows, batch, kv_head, at, v_n, v_d,
            D0, D1, BLOCK_N, TRANSPOSED, DESCRIBED, False,
        )  # fmt: skip
        sums0 = load_sums(v_sum, at, 0, D0, D, BLOCK_N, SUMMED) if ONE == 255 else fade
        acc0 = gather(p, fade, acc0, v0, sums0, 0, D0, ONE)
        if D1:
            sums1 = load_sums(v_sum, at, D0, D1, D, BLOCK_N, SUMMED) if ONE == 255 else fade
            acc1 = gather(p, fade, acc1, v1, sums1, D0, D1, ONE)
        column = ahead
        ahead = listed_block(columns, i + 2, steps, MASK_N, BLOCK_N)
        at = tile_start(column, i + 1, MASK_N, BLOCK_N)

    columns += n_full
    steps = n_partial * SPLIT_N
    column = listed_block(columns, 0, steps, MASK_N, BLOCK_N)
    ahead = listed_block(columns, 1, steps, MASK_N, BLOCK_N)
    known = tile_facts(row, column, head, batch, tables)
    at = tile_start(column, 0, MASK_N, BLOCK_N)
    k_tokens = key_index(tl.minimum(at + place, keys - 1), head, tables)
    for i in tl.range(0, steps):
        ks = at + place
        near = ks < keys
        if DESCRIBED:
            k0, k1 = load_described(k, k_tail, batch, kv_head, at, BLOCK_N, D0, D1)
        else:
            k0, k1 = load_rows(k_base, ks, k_n, k_d, near, D0, D1)
        # A tile may lie past the end altogether, in a block that does not.
        s, factor = scaled(
            score(q0, q1, k0, k1, D1), row_scale, k_scale, tl.minimum(at, keys - 1), keys, place,
            K_SPAN, K_PERIOD, K_WIDTH, BLOCK_N,
        )  # fmt: skip
        seen = mask(
            q_tokens[:, None], k_tokens[None, :], qs[:, None], ks[None, :], row, column, known,
            head, batch, tables,
        )  # fmt: skip
        s = tl.where(seen & near[None, :], s, -float("inf"))
        p, fade, top, total = weigh(s, factor, top, total, SHIFT)
        # Transposed v has whole tiles of zeros up to a multiple of 128 tokens, and no further.
        v_at = tl.minimum(at, (keys - 1) // BLOCK_N * BLOCK_N)
        v0, v1 = load_values(
            v, v_tail, v_base, ks, near, batch, kv_head, v_at if TRANSPOSED else at, v_n, v_d,
            D0, D1, BLOCK_N, TRANSPOSED, DESCRIBED, True,
        )  # fmt: skip
        sums0 = load_sums(v_sum, v_at, 0, D0, D, BLOCK_N, SUMMED) if ONE == 255 else fade
        acc0 = gather(p, fade, acc0, v0, sums0, 0, D0, ONE)
        if D1:
            sums1 = load_sums(v_sum, v_at, D0, D1, D, BLOCK_N, SUMMED) if ONE == 255 else fade
            acc1 = gather(p, fade, acc1, v1, sums1, D0, D1, ONE)
        column = ahead
        known = tile_facts(row, column, head, batch, tables)
        ahead = listed_block(columns, i + 2, steps, MASK_N, BLOCK_N)
        at = tile_start(column, i + 1, MASK_N, BLOCK_N)
        k_tokens = key_index(tl.minimum(at + place, keys - 1), head, tables)

    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    share = 1.0 / total
    o_rows = (
        o + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h
        + q_tokens.to(tl.int64)[:, None] * o_n
    )  # fmt: skip
    out = acc0 * share[:, None]
    if V_SCALED:
        out = out * tl.load(v_scale + kv * D + tl.arange(0, D0))[None, :]
    out = tl.where(nothing[:, None], 0.0, out).to(o.dtype.element_ty)
    tl.store(o_rows + offsets(0, D0, o_d), out, mask=inside[:, None])
    if D1:
        out = acc1 * share[:, None]
        if V_SCALED:
            out = out * tl.load(v_scale + kv * D + D0 + tl.arange(0, D1))[None, :]
        out = tl.where(nothing[:, None], 0.0, out).to(o.dtype.element_ty)
        tl.store(o_rows + offsets(D0, D1, o_d), out, mask=inside[:, None])
    if LSE:
        LN2: tl.constexpr = 0.6931471805599453
        value = (top + (tl.log2(total) - SHIFT)) * LN2
        value = tl.where(nothing, -float("inf"), value)
        tl.store(lse + (batch * heads + head).to(tl.int64) * queries + q_tokens, value, mask=inside)
