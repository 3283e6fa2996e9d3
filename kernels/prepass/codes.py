"""q, k and v into the operands of quantized attention: the pre-pass's last kernel, in Triton.

It reads all three once, each tile in stored order, and writes codes, scales, sums and means of
blocks.  What runs over all tokens (k's mean, v's scales, norms over all heads) was found before, by
the kernels of `kdsl.kernels.prepass.sums`.  sm_80 and later.
"""

import triton
import triton.language as tl

from kdsl.kernels.prepass.rows import (
    both,
    e4m3,
    load_angles,
    load_pairs,
    merged,
    normalized,
    over_groups,
    patterns,
    places,
    rows_largest,
    spread,
    units,
    vectors,
)

# --- template ---


@triton.jit
def lanes(T: tl.constexpr, LANES: tl.constexpr):
    """The stored position whose token stands at each place: with LANES that of `lane_order`."""
    at = tl.arange(0, T)
    if LANES:
        return (at & -16) | ((at & 2) << 2) | ((at & 12) >> 1) | (at & 1)
    else:  # noqa: RET505
        return at


@triton.jit
def heads_of(runs, part, each):
    """(first head of the list, how many, row of the order's table) of a part."""
    if runs is None:
        first = part * each
        count = each
        row = part * 0
    else:
        first = tl.load(runs + 3 * part)
        count = tl.load(runs + 3 * part + 1)
        row = tl.load(runs + 3 * part + 2)
    return first, count, row


@triton.jit
def head_of(listed, at):
    """The head at a place of the list, or the place itself."""
    if listed is None:
        head = at
    else:
        head = tl.load(listed + at)
    return head


@triton.jit
def tokens_of(order, row, position, tokens):
    """The original tokens at stored positions."""
    # Positions past the end look up the last token.
    last = tl.minimum(position, tokens - 1)
    if order is None:
        token = last
    else:
        token = tl.load(order + row.to(tl.int64) * tokens + last)
    return token


@triton.jit
def store_codes(
    codes, rows, inside, a, b, inverse,
    D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Codes of rows, four to a word; 0 where a row's inverse is 0, whatever the row holds."""
    by = inverse[:, None]
    used = tl.where(inverse > 0.0, -1, 0)[:, None]
    to = codes + rows[:, None] * (D // 4)
    low = patterns(a, by)
    high = patterns(b, by)
    if INTERLEAVED:
        word = merged((low & 255) | (high << 8), 16) & used
        at = tl.arange(0, P // 2)
        keep = inside[:, None]
        if 2 * P > D:
            keep = keep & (at < D // 4)[None, :]
        tl.store(to + at[None, :], word, mask=keep)
    else:
        at = tl.arange(0, P // 4)
        keep = inside[:, None]
        if 2 * P > D:
            keep = keep & (at < D // 8)[None, :]
        tl.store(to + at[None, :], merged(merged(low, 8), 16) & used, mask=keep)
        tl.store(to + D // 8 + at[None, :], merged(merged(high, 8), 16) & used, mask=keep)


@triton.jit
def code_rows(
    x, weight, bias, cos, sin, order, runs, listed, roots, mean, codes, scales, pooled,
    x_b, x_h, x_n, x_d, angle_n, angle_d,
    batch, tile, part, heads, each, tokens, text, visual, groups, pools, eps,
    D: tl.constexpr, P: tl.constexpr, T: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr, SPAN: tl.constexpr, PERIOD: tl.constexpr, WIDTH: tl.constexpr,
    LIMIT: tl.constexpr, TINY: tl.constexpr, POOL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of T stored tokens of q or of k, of the heads of a part, which are stored in one
    order: codes, scales, means of blocks."""
    position = tile * T + tl.arange(0, T)
    inside = position < tokens
    start, count, row = heads_of(runs, part, each)
    # Tiles that only the padding of transposed v reaches into have no rows.
    count = tl.where(tile * T < tokens, count, 0)
    token = tokens_of(order, row, position, tokens)
    if cos is not None:
        c, s = load_angles(cos, sin, token, inside, text, visual, angle_n, angle_d, D, P)
    rows = token.to(tl.int64) * x_n
    x += batch.to(tl.int64) * x_b
    EACH: tl.constexpr = T // SPAN * (PERIOD // WIDTH)
    group = tile * EACH + tl.arange(0, EACH)
    for i in tl.range(0, count, num_stages=STAGES):
        head = head_of(listed, start + i)
        line = (batch * heads + head).to(tl.int64)
        a, b = load_pairs(x + head.to(tl.int64) * x_h, rows, inside, x_d, D, P, INTERLEAVED)
        root = None
        own = weight
        if NORM == 2:
            own = weight + head * D
            root = tl.load(roots + batch.to(tl.int64) * tokens + token)
        a, b, factor = normalized(a, b, own, bias, root, eps, NORM, D, P, INTERLEAVED)
        if cos is not None:
            turned = a * c - b * s
            b = a * s + b * c
            a = turned
        live = tl.where(inside, 1.0, 0.0)
        if mean is not None:
            less_a, less_b = vectors(mean + line * D, D, P, INTERLEAVED)
            if NORM == 1 or NORM == 2:
                a = a * factor[:, None] - less_a
                b = b * factor[:, None] - less_b
            else:
                a = a - less_a
                b = b - less_b
        elif NORM == 1 or NORM == 2:
            live = tl.where(inside, factor, 0.0)
        if pooled is not None:
            block = tile * (T // POOL) + tl.arange(0, T // POOL)
            channel, there = places(D, P, INTERLEAVED)
            size = tl.minimum(tokens - block * POOL, POOL).to(tl.float32)
            keep = (block < pools)[:, None, None] & there[None, :, :]
            to = pooled + ((line * pools + block) * D)[:, None, None] + channel[None, :, :]
            parts = tl.reshape(both(a, b) * live[:, None, None], [T // POOL, POOL, P, 2])
            tl.store(to, tl.sum(parts, 1) / size[:, None, None], mask=keep)
        # A row past the end may hold what is no number by now.
        largest = tl.where(inside, rows_largest(a, b) * live, 0.0).to(tl.int32, bitcast=True)
        largest = largest & 0x7FFFFFFF
        if SPAN == T and EACH == 1:
            unit, inverse = units(tl.max(largest, 0), LIMIT, TINY)
            tl.store(scales + line * groups + tile, unit)
            inverse = live * inverse
        else:
            unit, inverse = units(over_groups(largest, T, SPAN, PERIOD, WIDTH), LIMIT, TINY)
            tl.store(scales + line * groups + group, unit, mask=group < groups)
            inverse = live * spread(inverse, T, SPAN, PERIOD, WIDTH)
        store_codes(codes, line * tokens + position, inside, a, b, inverse, D, P, INTERLEAVED)


@triton.jit
def code_values(
    v, order, runs, listed, inverses, codes, sums,
    v_b, v_h, v_n, v_d, batch, tile, part, heads, each, tokens, padded,
    D: tl.constexpr, P: tl.constexpr, T: tl.constexpr, LANES: tl.constexpr, FP8: tl.constexpr,
    SUMMED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of T stored tokens of v, of the heads of a part: transposed codes and their sums, or
    where there is no scale v itself in its new place."""
    position = tile * T + lanes(T, LANES)
    inside = position < tokens
    start, count, row = heads_of(runs, part, each)
    token = tokens_of(order, row, position, tokens)
    channel = tl.arange(0, 2 * P)
    there = channel < D
    keep = inside[:, None]
    if 2 * P > D:
        keep = keep & there[None, :]
    place = tile * T + tl.arange(0, T)
    at = token.to(tl.int64)[:, None] * v_n + channel.to(tl.int64)[None, :] * v_d
    v += batch.to(tl.int64) * v_b
    for i in tl.range(0, count, num_stages=STAGES):
        head = head_of(listed, start + i)
        line = (batch * heads + head).to(tl.int64)
        x = tl.load(v + head.to(tl.int64) * v_h + at, mask=keep, other=0.0)
        if inverses is None:
            to = codes + (line * tokens + position)[:, None] * D + channel[None, :]
            tl.store(to, x, mask=keep)
        else:
            inverse = tl.load(inverses + line * D + channel, mask=there, other=0.0)
            used = tl.where(inverse > 0.0, -1, 0)[None, :]
            if FP8:
                pattern = e4m3(x.to(tl.float32) * inverse[None, :], FP8 == 1) & used.to(tl.uint8)
            else:
                pattern = (patterns(x.to(tl.float32), inverse[None, :]) & used).to(tl.int8)
            to = codes + (line * D + channel)[:, None] * padded + place[None, :]
            tl.store(to, tl.trans(pattern), mask=there[:, None] & (place < padded)[None, :])
            if sums is not None:
                parts = tl.reshape(pattern.to(tl.int32), [T // SUMMED, SUMMED, 2 * P])
                number = tile * (T // SUMMED) + tl.arange(0, T // SUMMED)
                to = sums + (line * (padded // SUMMED) + number)[:, None] * D + channel[None, :]
                within = (number < padded // SUMMED)[:, None] & there[None, :]
                tl.store(to, tl.sum(parts, 1).to(tl.int16), mask=within)


@triton.jit
def prepass_codes(
    q, k, v, q_weight, k_weight, q_bias, k_bias, cos, sin,
    order, q_runs, q_listed, k_runs, k_listed, q_root, k_root, mean, inverses,
    q_codes, q_scale, k_codes, k_scale, v_codes, v_sum, q_pool, k_pool,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, angle_n, angle_d,
    heads, kv_heads, q_each, k_each, q_parts, k_parts, tokens, text, visual, padded, tiles,
    q_groups, k_groups, q_pools, k_pools, eps,
    D: tl.constexpr, P: tl.constexpr, T: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr, Q_SPAN: tl.constexpr, Q_PERIOD: tl.constexpr,
    Q_WIDTH: tl.constexpr, K_SPAN: tl.constexpr, K_PERIOD: tl.constexpr, K_WIDTH: tl.constexpr,
    LIMIT: tl.constexpr, K_LIMIT: tl.constexpr, TINY: tl.constexpr,
    Q_POOL: tl.constexpr, K_POOL: tl.constexpr, LANES: tl.constexpr, FP8: tl.constexpr,
    SUMMED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * tiles * parts`` programs: a tile has ``q_parts`` of q, ``k_parts`` of
    k, and as many of v unless it stays as it is (``v_codes`` None).

    A part are heads of one order: ``each`` of them, or what ``runs [parts, 3]`` says (first of the
    ``listed``, how many, row of ``order``).  Inputs are ``[batch, heads, tokens, D]`` in any
    strides, outputs contiguous, codes of q and k as words.  Tiles are taken from the last to the
    first: the cache may still hold what the kernel before read last.
    """
    if v_codes is None:
        parts = q_parts + k_parts
    else:
        parts = q_parts + 2 * k_parts
    program = tl.program_id(0)
    part = program % parts
    tile = tiles - 1 - program // parts % tiles
    batch = program // parts // tiles
    if part < q_parts:
        code_rows(
            q, q_weight, q_bias, cos, sin, order, q_runs, q_listed, q_root, None,
            q_codes, q_scale, q_pool, q_b, q_h, q_n, q_d, angle_n, angle_d,
            batch, tile, part, heads, q_each, tokens, text, visual, q_groups, q_pools, eps,
            D, P, T, NORM, INTERLEAVED, Q_SPAN, Q_PERIOD, Q_WIDTH, LIMIT, TINY, Q_POOL, STAGES,
        )  # fmt: skip
    elif part < q_parts + k_parts:
        code_rows(
            k, k_weight, k_bias, cos, sin, order, k_runs, k_listed, k_root, mean,
            k_codes, k_scale, k_pool, k_b, k_h, k_n, k_d, angle_n, angle_d,
            batch, tile, part - q_parts, kv_heads, k_each, tokens, text, visual, k_groups, k_pools,
            eps,
            D, P, T, NORM, INTERLEAVED, K_SPAN, K_PERIOD, K_WIDTH, K_LIMIT, TINY, K_POOL, STAGES,
        )  # fmt: skip
    elif v_codes is not None:
        code_values(
            v, order, k_runs, k_listed, inverses, v_codes, v_sum, v_b, v_h, v_n, v_d,
            batch, tile, part - q_parts - k_parts, kv_heads, k_each, tokens, padded,
            D, P, T, LANES, FP8, SUMMED, STAGES,
        )  # fmt: skip
