"""Rows of q, k and v in registers: what the pre-pass's kernels share.

A row lies in two halves, ``a`` and ``b``: channels that a rotation turns into each other stand at
the same place of both.  Numbers are float32.  A norm's factor of a row is kept apart from its
numbers as long as it can be: what follows multiplies by it once for all.
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
        at = base + rows[:, None]
        a = tl.load(at + pair.to(tl.int64)[None, :] * step, mask=keep, other=0.0).to(tl.float32)
        other = (pair + D // 2).to(tl.int64)[None, :] * step
        b = tl.load(at + other, mask=keep, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def vectors(base, D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A vector of D channels in both halves, ``[1, P]``; 0 past the last."""
    if INTERLEAVED:
        column = tl.arange(0, 2 * P)
        x = tl.load(base + column, mask=column < D, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, [1, P, 2]))
    else:
        pair = tl.arange(0, P)[None, :]
        there = pair < D // 2
        a = tl.load(base + pair, mask=there, other=0.0).to(tl.float32)
        b = tl.load(base + D // 2 + pair, mask=there, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def both(a, b):
    """Halves of rows side by side, ``[rows, P, 2]``."""
    return tl.join(a, b)


@triton.jit
def places(D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Channels of `both`'s entries, ``[P, 2]``, and which of them there are."""
    pair = tl.arange(0, P)[:, None]
    which = tl.arange(0, 2)[None, :]
    if INTERLEAVED:
        channel = 2 * pair + which
    else:
        channel = pair + D // 2 * which
    return channel, (pair < D // 2) & (which < 2)


@triton.jit
def squares(a, b):
    """Sums of squares of rows."""
    return tl.sum(a * a + b * b, 1)


@triton.jit
def normalized(
    a, b, weight, bias, root, eps,
    NORM: tl.constexpr, D: tl.constexpr, P: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """(a, b, root) of rows under a norm: by their root mean square (1), by the root that is given
    (2), or less their mean by their deviation (3), times weight, plus bias.

    The first two still have to be multiplied by the root that comes with them.
    """
    if NORM == 3:
        middle = (tl.sum(a + b, 1) * (1.0 / D))[:, None]
        a = a - middle
        b = b - middle
        if 2 * P > D:
            there = (tl.arange(0, P) < D // 2)[None, :]
            a = tl.where(there, a, 0.0)
            b = tl.where(there, b, 0.0)
    if NORM == 1 or NORM == 3:
        root = tl.rsqrt(squares(a, b) * (1.0 / D) + eps)
    if NORM:
        by_a, by_b = vectors(weight, D, P, INTERLEAVED)
        a = a * by_a
        b = b * by_b
    if NORM == 3:
        more_a, more_b = vectors(bias, D, P, INTERLEAVED)
        a = a * root[:, None] + more_a
        b = b * root[:, None] + more_b
    return a, b, root


@triton.jit
def load_angles(
    cos, sin, token, inside, text, visual, angle_n, angle_d, D: tl.constexpr, P: tl.constexpr
):
    """Cosines and sines of tokens, ``[rows, P]``: of no turn for text."""
    pair = tl.arange(0, P)
    row = token - text
    keep = (inside & (row >= 0) & (row < visual))[:, None]
    if 2 * P > D:
        keep = keep & (pair < D // 2)[None, :]
    at = row.to(tl.int64)[:, None] * angle_n + pair.to(tl.int64)[None, :] * angle_d
    c = tl.load(cos + at, mask=keep, other=1.0)
    s = tl.load(sin + at, mask=keep, other=0.0)
    return c.to(tl.float32), s.to(tl.float32)


@triton.jit
def rows_largest(a, b):
    """The largest magnitude of each row: NaN where there is one."""
    pairs = tl.maximum(tl.abs(a), tl.abs(b), propagate_nan=tl.PropagateNan.ALL)
    # As integers magnitudes keep their order, and NaN is above everything.
    return tl.max(pairs.to(tl.int32, bitcast=True), 1).to(tl.float32, bitcast=True)


@triton.jit
def units(largest, LIMIT: tl.constexpr, TINY: tl.constexpr):
    """(scales, their inverses) of groups by the bits of their largest magnitude: NaN and 0 where
    it is no number, 0 and 0 where it is 0."""
    span = largest.to(tl.float32, bitcast=True)
    unit = tl.maximum(tl.math.div_rn(span, span * 0.0 + LIMIT), TINY)
    unit = tl.where(largest == 0, 0.0, unit)
    used = (largest > 0) & (largest < INFINITE)
    divisor = tl.where(used, unit, 1.0)
    inverse = tl.where(used, tl.math.div_rn(divisor * 0.0 + 1.0, divisor), 0.0)
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
def patterns(v, inverse):
    """Integers nearest to numbers over their scales, in the lowest byte."""
    return (v * inverse + ROUND).to(tl.int32, bitcast=True)


@triton.jit
def merged(x, BITS: tl.constexpr):
    """The lowest BITS of neighbours along the last axis, the first one below: half as many."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    low, high = tl.split(tl.reshape(x, [M, N // 2, 2]))
    return (low & ((1 << BITS) - 1)) | (high << BITS)


@triton.jit
def e4m3(v, NATIVE: tl.constexpr):
    """Patterns of OCP e4m3 nearest to numbers of at most 448, ties to even."""
    if NATIVE:
        pattern = v.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        bits = v.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2**-6 patterns count units of 2**-9.
        small = (tl.abs(v) * 512.0 + ROUND).to(tl.int32, bitcast=True) & 15
        pattern = tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)
    return pattern.to(tl.uint8)
