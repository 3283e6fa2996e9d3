"""q, k and v into the operands of quantized attention: the pre-pass's last kernel, in Triton.

It reads all three once, each tile in stored order, and writes codes, scales, sums and means of
blocks.  What runs over all tokens (k's mean, v's scales, norms over all heads) was found before, by
the kernels of `kdsl.kernels.prepass.sums`.  sm_80 and later.
"""

import triton
import triton.language as tl

from kdsl.kernels.prepass.rows import (
    channels,
    e4m3,
    integers,
    load_angles,
    load_pairs,
    magnitudes,
    normalized,
    over_groups,
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
def tokens_of(order, row_of, head, position, tokens):
    """The original tokens at stored positions of a query head."""
    if order is None:
        token = position
    elif row_of is None:
        token = tl.load(order + position)
    else:
        row = tl.load(row_of + head).to(tl.int64)
        token = tl.load(order + row * tokens + position)
    return token


@triton.jit
def code_rows(
    x, weight, bias, cos, sin, order, row_of, roots, mean, codes, scales, pooled,
    x_b, x_h, x_n, x_d, cos_n, cos_d, sin_n, sin_d,
    batch, tile, part, heads, each, tokens, text, visual, groups, pools, eps,
    D: tl.constexpr, P: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr, SPAN: tl.constexpr, PERIOD: tl.constexpr, WIDTH: tl.constexpr,
    LIMIT: tl.constexpr, TINY: tl.constexpr, POOL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of T stored tokens of q or of k, of `each` heads: codes, scales, means of blocks."""
    position = tile * T + tl.arange(0, T)
    inside = position < tokens
    # Positions past the end look up the last token.
    last = tl.minimum(position, tokens - 1)
    first, second, there = channels(D, P, INTERLEAVED)
    for i in tl.range(0, each, num_stages=STAGES):
        head = part * each + i
        token = tokens_of(order, row_of, head * SHARED, last, tokens)
        line = (batch * heads + head).to(tl.int64)
        start = x + batch.to(tl.int64) * x_b + head.to(tl.int64) * x_h
        a, b = load_pairs(start, token.to(tl.int64) * x_n, inside, x_d, D, P, INTERLEAVED)
        root = None
        own = weight
        if NORM == 2:
            own = weight + head * D
            root = tl.load(roots + batch.to(tl.int64) * tokens + token)
        a, b = normalized(a, b, inside, own, bias, root, eps, NORM, D, P, INTERLEAVED)
        if cos is not None:
            c, s = load_angles(
                cos, sin, token, inside, text, visual, cos_n, cos_d, sin_n, sin_d, D, P
            )
            turned = a * c - b * s
            b = a * s + b * c
            a = turned
        if mean is not None:
            less_a, less_b = vectors(mean + line * D, D, P, INTERLEAVED)
            a = tl.where(inside[:, None], a - less_a, 0.0)
            b = tl.where(inside[:, None], b - less_b, 0.0)
        if pooled is not None:
            block = tile * (T // POOL) + tl.arange(0, T // POOL)
            count = tl.minimum(tokens - block * POOL, POOL).to(tl.float32)[:, None]
            keep = (block < pools)[:, None] & there[None, :]
            to = pooled + (line * pools + block)[:, None] * D
            total = tl.sum(tl.reshape(a, [T // POOL, POOL, P]), 1)
            tl.store(to + first[None, :], total / count, mask=keep)
            total = tl.sum(tl.reshape(b, [T // POOL, POOL, P]), 1)
            tl.store(to + second[None, :], total / count, mask=keep)
        largest = tl.max(tl.maximum(magnitudes(a), magnitudes(b)), 1)
        unit, inverse = units(over_groups(largest, T, SPAN, PERIOD, WIDTH), LIMIT, TINY)
        EACH: tl.constexpr = T // SPAN * (PERIOD // WIDTH)
        group = tile * EACH + tl.arange(0, EACH)
        tl.store(scales + line * groups + group, unit, mask=group < groups)
        by = spread(inverse, T, SPAN, PERIOD, WIDTH)[:, None]
        out = codes + (line * tokens + position)[:, None] * D
        if INTERLEAVED:
            column = tl.arange(0, 2 * P)
            joined = tl.reshape(tl.join(integers(a, by), integers(b, by)), [T, 2 * P])
            tl.store(out + column[None, :], joined, mask=inside[:, None] & (column < D)[None, :])
        else:
            keep = inside[:, None] & there[None, :]
            tl.store(out + first[None, :], integers(a, by), mask=keep)
            tl.store(out + second[None, :], integers(b, by), mask=keep)


@triton.jit
def code_values(
    v, order, row_of, scale, codes, sums,
    v_b, v_h, v_n, v_d, batch, tile, part, heads, each, tokens, padded,
    D: tl.constexpr, P: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr, LANES: tl.constexpr,
    FP8: tl.constexpr, SUMMED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of T stored tokens of v, of `each` heads: transposed codes and their sums, or where
    there is no scale v itself in its new place."""
    position = tile * T + lanes(T, LANES)
    inside = position < tokens
    last = tl.minimum(position, tokens - 1)
    channel = tl.arange(0, 2 * P)
    there = channel < D
    keep = inside[:, None] & there[None, :]
    place = tile * T + tl.arange(0, T)
    for i in tl.range(0, each, num_stages=STAGES):
        head = part * each + i
        token = tokens_of(order, row_of, head * SHARED, last, tokens)
        line = (batch * heads + head).to(tl.int64)
        start = v + batch.to(tl.int64) * v_b + head.to(tl.int64) * v_h
        rows = token.to(tl.int64)[:, None] * v_n
        x = tl.load(start + rows + channel.to(tl.int64)[None, :] * v_d, mask=keep, other=0.0)
        if scale is None:
            to = codes + (line * tokens + position)[:, None] * D + channel[None, :]
            tl.store(to, x, mask=keep)
        else:
            unit = tl.load(scale + line * D + channel, mask=there, other=0.0)
            one = tl.full([2 * P], 1.0, tl.float32)
            used = unit > 0.0
            inverse = tl.where(used, tl.math.div_rn(one, tl.where(used, unit, 1.0)), 0.0)[None, :]
            if FP8:
                pattern = e4m3(x.to(tl.float32), inverse, FP8 == 1)
            else:
                pattern = integers(x.to(tl.float32), inverse)
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
    q, k, v, q_weight, k_weight, q_bias, k_bias, cos, sin, order, row_of,
    q_root, k_root, mean, v_scale,
    q_codes, q_scale, k_codes, k_scale, v_codes, v_sum, q_pool, k_pool,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, cos_n, cos_d, sin_n, sin_d,
    heads, kv_heads, q_each, k_each, tokens, text, visual, padded, tiles,
    q_groups, k_groups, q_pools, k_pools, eps,
    D: tl.constexpr, P: tl.constexpr, T: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr, Q_SPAN: tl.constexpr, Q_PERIOD: tl.constexpr,
    Q_WIDTH: tl.constexpr, K_SPAN: tl.constexpr, K_PERIOD: tl.constexpr, K_WIDTH: tl.constexpr,
    LIMIT: tl.constexpr, K_LIMIT: tl.constexpr, TINY: tl.constexpr, Q_POOL: tl.constexpr, K_POOL: tl.constexpr,
    LANES: tl.constexpr, FP8: tl.constexpr, SUMMED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * tiles * parts`` programs: a tile has ``heads / q_each`` parts of q,
    ``kv_heads / k_each`` of k, and as many of v unless it stays as it is (``v_codes`` None).

    Inputs are ``[batch, heads, tokens, D]`` in any strides, outputs contiguous.  Tiles are taken
    from the last to the first: the cache may still hold what the kernel before read last.
    """
    q_parts = heads // q_each
    k_parts = kv_heads // k_each
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
            q, q_weight, q_bias, cos, sin, order, row_of, q_root, None, q_codes, q_scale, q_pool,
            q_b, q_h, q_n, q_d, cos_n, cos_d, sin_n, sin_d,
            batch, tile, part, heads, q_each, tokens, text, visual, q_groups, q_pools, eps,
            D, P, T, 1, NORM, INTERLEAVED, Q_SPAN, Q_PERIOD, Q_WIDTH, LIMIT, TINY, Q_POOL, STAGES,
        )  # fmt: skip
    elif part < q_parts + k_parts:
        code_rows(
            k, k_weight, k_bias, cos, sin, order, row_of, k_root, mean, k_codes, k_scale, k_pool,
            k_b, k_h, k_n, k_d, cos_n, cos_d, sin_n, sin_d,
            batch, tile, part - q_parts, kv_heads, k_each, tokens, text, visual, k_groups, k_pools,
            eps, D, P, T, GROUP, NORM, INTERLEAVED, K_SPAN, K_PERIOD, K_WIDTH, K_LIMIT, TINY, K_POOL,
            STAGES,
        )  # fmt: skip
    elif v_codes is not None:
        code_values(
            v, order, row_of, v_scale, v_codes, v_sum, v_b, v_h, v_n, v_d,
            batch, tile, part - q_parts - k_parts, kv_heads, k_each, tokens, padded,
            D, P, T, GROUP, LANES, FP8, SUMMED, STAGES,
        )  # fmt: skip
