"""What runs over all tokens, or over all heads of a token: the pre-pass's first kernels, in Triton.

`prepass_tiles` reads k and v tile by tile in their original order and leaves, for each tile and
head, the sum of k (normalized and turned) and the largest magnitudes of v's channels; under a norm
over all heads it also leaves every token's root, of q's too.  `prepass_settle` makes k's mean and
v's scales of them.  What a spec does not ask for is not computed.  sm_80 and later.
"""

import triton
import triton.language as tl

from kdsl.kernels.prepass.rows import (
    both,
    load_angles,
    load_pairs,
    normalized,
    places,
    squares,
    units,
)

# --- template ---


@triton.jit
def root_of(
    x, batch, rows, inside, x_b, x_h, x_d, heads, eps,
    D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One over the root mean square of tokens over all their heads."""
    total = tl.zeros([rows.shape[0]], tl.float32)
    start = x + batch.to(tl.int64) * x_b
    for _ in tl.range(0, heads, num_stages=STAGES):
        a, b = load_pairs(start, rows, inside, x_d, D, P, INTERLEAVED)
        total += squares(a, b)
        start += x_h
    return tl.rsqrt(total / (heads * D) + eps)


@triton.jit
def prepass_tiles(
    q, k, v, k_weight, k_bias, cos, sin, q_root, k_root, sums, maxima,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, angle_n, angle_d,
    heads, kv_heads, k_each, tokens, text, visual, tiles, eps,
    D: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Launch with ``batch * tiles * parts`` programs: a tile of ROWS original tokens has
    ``kv_heads / k_each`` parts, one where a norm needs all heads, and then one more of q.

    ``sums`` (or None) is ``[batch * kv_heads, tiles, D]`` float32, ``maxima`` (or None) the same
    int32: bits of magnitudes; roots ``[batch, tokens]`` where NORM is 2.
    """
    parts = kv_heads // k_each
    if NORM == 2:
        parts += 1
    program = tl.program_id(0)
    part = program % parts
    tile = program // parts % tiles
    batch = program // parts // tiles
    token = tile * ROWS + tl.arange(0, ROWS)
    inside = token < tokens
    flat = batch.to(tl.int64) * tokens + token
    if part == kv_heads // k_each:
        if NORM == 2:
            rows = token.to(tl.int64) * q_n
            root = root_of(
                q, batch, rows, inside, q_b, q_h, q_d, heads, eps, D, P, INTERLEAVED, STAGES
            )
            tl.store(q_root + flat, root, mask=inside)
    else:
        k_rows = token.to(tl.int64) * k_n
        root = None
        if NORM == 2:
            root = root_of(
                k, batch, k_rows, inside, k_b, k_h, k_d, kv_heads, eps, D, P, INTERLEAVED, STAGES
            )
            tl.store(k_root + flat, root, mask=inside)
        if sums is not None and cos is not None:
            c, s = load_angles(cos, sin, token, inside, text, visual, angle_n, angle_d, D, P)
        for i in tl.range(0, k_each, num_stages=STAGES):
            head = part * k_each + i
            line = (batch * kv_heads + head).to(tl.int64)
            to = (line * tiles + tile) * D
            if sums is not None:
                start = k + batch.to(tl.int64) * k_b + head.to(tl.int64) * k_h
                a, b = load_pairs(start, k_rows, inside, k_d, D, P, INTERLEAVED)
                own = k_weight
                if NORM == 2:
                    own = k_weight + head * D
                a, b, factor = normalized(a, b, own, k_bias, root, eps, NORM, D, P, INTERLEAVED)
                if cos is not None:
                    turned = a * c - b * s
                    b = a * s + b * c
                    a = turned
                live = tl.where(inside, 1.0, 0.0)
                if NORM == 1 or NORM == 2:
                    live = tl.where(inside, factor, 0.0)
                channel, there = places(D, P, INTERLEAVED)
                total = tl.sum(both(a, b) * live[:, None, None], 0)
                tl.store(sums + to + channel, total, mask=there)
            if maxima is not None:
                channel = tl.arange(0, 2 * P)
                keep = inside[:, None] & (channel < D)[None, :]
                start = v + batch.to(tl.int64) * v_b + head.to(tl.int64) * v_h
                rows = token.to(tl.int64)[:, None] * v_n
                at = start + rows + channel.to(tl.int64)[None, :] * v_d
                x = tl.load(at, mask=keep, other=0.0).to(tl.float32)
                # As integers magnitudes keep their order, and NaN is above everything.
                size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
                tl.store(maxima + to + channel, tl.max(size, 0), mask=channel < D)


@triton.jit
def prepass_settle(
    sums, maxima, mean, scale, inverses, tiles, tokens,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LIMIT: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Launch with a program for each head of each batch item and COLUMNS channels: k's mean of its
    sums, v's scales and their inverses of its maxima, each if it is there."""
    PARTS: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    line = (program // PARTS).to(tl.int64)
    channel = program % PARTS * COLUMNS + tl.arange(0, COLUMNS)
    there = channel < D
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    largest = tl.zeros([ROWS, COLUMNS], tl.int32)
    for first in tl.range(0, tiles, ROWS):
        row = first + tl.arange(0, ROWS)
        at = (line * tiles + row)[:, None] * D + channel[None, :]
        keep = (row < tiles)[:, None] & there[None, :]
        if sums is not None:
            total += tl.load(sums + at, mask=keep, other=0.0)
        if maxima is not None:
            largest = tl.maximum(largest, tl.load(maxima + at, mask=keep, other=0))
    if sums is not None:
        count = tl.zeros([COLUMNS], tl.float32) + tokens
        tl.store(mean + line * D + channel, tl.math.div_rn(tl.sum(total, 0), count), mask=there)
    if maxima is not None:
        unit, inverse = units(tl.max(largest, 0), LIMIT, TINY)
        tl.store(scale + line * D + channel, unit, mask=there)
        tl.store(inverses + line * D + channel, inverse, mask=there)
