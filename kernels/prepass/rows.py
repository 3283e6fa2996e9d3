"""Rows of q, k and v in registers: what the pre-pass's kernels share.

A row lies in two halves, ``a`` and ``b``: channels that a rotation turns into each other stand at
the same place of both.  Numbers are float32.
"""

import triton
import triton.language as tl

# --- template ---

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: added to a number below 2**22 it rounds it to the nearest integer, ties to even,
which then stands in the lowest bits."""
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def load_pairs(
    base, rows, inside, step,
    D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Both halves of some rows, ``[rows, P]``; 0 outside, and past the last of D channels."""
    T: tl.constexpr = rows.shape[0]
    keep = inside[:, None]
    if INTERLEAVED:
        column = tl.arange(0, 2 * P)
        if 2 * P > D:
            keep = keep & (column < D)[None, :]
        at = base + rows[:, None] + column.to(tl.int64)[None, :] * step
        x = tl.load(at, mask=keep, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, [T, P, 2]))
    else:
        pair = tl.arange(0, P)
        if 2 * P > D:
            keep = keep & (pair < D // 2)[None, :]
        at = base + rows[:, None] + pair.to(tl.int64)[None, :] * step
        a = tl.load(at, mask=keep, other=0.0).to(tl.float32)
        other = base + rows[:, None] + (pair + D // 2).to(tl.int64)[None, :] * step
        b = tl.load(other, mask=keep, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def channels(D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The channels of both halves, and which places hold one."""
    pair = tl.arange(0, P)
    if INTERLEAVED:
        first = 2 * pair
        second = first + 1
    else:
        first = pair
        second = pair + D // 2
    return first, second, pair < D // 2


@triton.jit
def vectors(base, D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A vector of D channels in both halves, ``[1, P]``."""
    first, second, there = channels(D, P, INTERLEAVED)
    a = tl.load(base + first, mask=there, other=0.0).to(tl.float32)
    b = tl.load(base + second, mask=there, other=0.0).to(tl.float32)
    return a[None, :], b[None, :]


@triton.jit
def squares(a, b):
    """Sums of squares of rows."""
    return tl.sum(a * a + b * b, 1)


@triton.jit
def normalized(
    a, b, inside, weight, bias, roots, eps,
    NORM: tl.constexpr, D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Rows over their root mean square (1), over the root that is given (2), or less their mean
    over their deviation (3); times the weight, plus the bias."""
    if NORM:
        if NORM == 3:
            _, _, there = channels(D, P, INTERLEAVED)
            middle = (tl.sum(a + b, 1) * (1.0 / D))[:, None]
            keep = inside[:, None] & there[None, :]
            a = tl.where(keep, a - middle, 0.0)
            b = tl.where(keep, b - middle, 0.0)
        if NORM == 2:
            root = roots
        else:
            root = tl.rsqrt(squares(a, b) * (1.0 / D) + eps)
        by_a, by_b = vectors(weight, D, P, INTERLEAVED)
        a = a * root[:, None] * by_a
        b = b * root[:, None] * by_b
        if NORM == 3:
            more_a, more_b = vectors(bias, D, P, INTERLEAVED)
            a = tl.where(inside[:, None], a + more_a, 0.0)
            b = tl.where(inside[:, None], b + more_b, 0.0)
    return a, b


@triton.jit
def load_angles(
    cos, sin, token, inside, text, visual, cos_n, cos_d, sin_n, sin_d,
    D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Cosines and sines of tokens, ``[rows, P]``: of no turn for text."""
    pair = tl.arange(0, P)
    row = token - text
    keep = (inside & (row >= 0) & (row < visual))[:, None]
    if 2 * P > D:
        keep = keep & (pair < D // 2)[None, :]
    column = pair.to(tl.int64)[None, :]
    row = row.to(tl.int64)[:, None]
    c = tl.load(cos + row * cos_n + column * cos_d, mask=keep, other=1.0)
    s = tl.load(sin + row * sin_n + column * sin_d, mask=keep, other=0.0)
    return c.to(tl.float32), s.to(tl.float32)


@triton.jit
def magnitudes(x):
    """As integers magnitudes keep their order, and NaN is above everything."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def units(largest, LIMIT: tl.constexpr, TINY: tl.constexpr):
    """(scales, their inverses) of groups by their largest magnitude: NaN and 0 where it is no
    number, 0 and 0 where it is 0."""
    unit = tl.math.div_rn(
        largest.to(tl.float32, bitcast=True), tl.full(largest.shape, LIMIT, tl.float32)
    )
    unit = tl.where(largest == 0, 0.0, tl.maximum(unit, TINY))
    used = (largest > 0) & (largest < INFINITE)
    one = tl.full(largest.shape, 1.0, tl.float32)
    inverse = tl.where(used, tl.math.div_rn(one, tl.where(used, unit, 1.0)), 0.0)
    return tl.where(largest < INFINITE, unit, float("nan")), inverse


@triton.jit
def over_groups(
    rows, T: tl.constexpr, SPAN: tl.constexpr, PERIOD: tl.constexpr, WIDTH: tl.constexpr
):
    """The largest number of each group of rows, groups in order."""
    if PERIOD == SPAN and WIDTH == SPAN:
        out = tl.max(tl.reshape(rows, [T // SPAN, SPAN]), 1)
    else:
        LANES: tl.constexpr = PERIOD // WIDTH
        parts = tl.reshape(rows, [T // SPAN, SPAN // PERIOD, LANES, WIDTH])
        out = tl.reshape(tl.max(tl.max(parts, 3), 1), [T // SPAN * LANES])
    return out


@triton.jit
def spread(groups, T: tl.constexpr, SPAN: tl.constexpr, PERIOD: tl.constexpr, WIDTH: tl.constexpr):
    """What belongs to groups, at each of their rows."""
    if PERIOD == SPAN and WIDTH == SPAN:
        out = tl.reshape(tl.broadcast_to(groups[:, None], [T // SPAN, SPAN]), [T])
    else:
        LANES: tl.constexpr = PERIOD // WIDTH
        held = tl.reshape(groups, [T // SPAN, 1, LANES, 1])
        out = tl.reshape(tl.broadcast_to(held, [T // SPAN, SPAN // PERIOD, LANES, WIDTH]), [T])
    return out


@triton.jit
def integers(v, inverse):
    """Codes of numbers, 0 where there is no scale."""
    pattern = (v * inverse + ROUND).to(tl.int32, bitcast=True)
    return tl.where(inverse > 0.0, pattern, 0).to(tl.int8)


@triton.jit
def e4m3(v, inverse, NATIVE: tl.constexpr):
    """Patterns of OCP e4m3 nearest to numbers of at most 448, ties to even; 0 without a scale."""
    v = v * inverse
    if NATIVE:
        pattern = v.to(tl.float8e4nv).to(tl.uint8, bitcast=True).to(tl.int32)
    else:
        bits = v.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2**-6 patterns count units of 2**-9.
        small = (tl.abs(v) * 512.0 + ROUND).to(tl.int32, bitcast=True) & 15
        pattern = tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)
    return tl.where(inverse > 0.0, pattern, 0).to(tl.uint8)
