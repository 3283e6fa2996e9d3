"""Rotate and quantize a matrix in one pass: Triton, sm_80 and later.

A tile is `BLOCK_M` blocks of `N` neighbouring columns, one below the other: the blocks of a row are
rows of the tile, so that a block-diagonal rotation is one product ``[BLOCK_M, N] @ [N, N]``, and a
whole row of up to 32,768 columns stays in registers between its product, its largest entry and its
codes.  Where something belongs to a whole row (its scale, its norm, an order after a rotation), a
row takes `SLOTS` rows of a tile, its blocks rounded up to a power of two; otherwise blocks follow
one another over the ends of rows and none is idle.

Numbers are float32 but for the operands of products, which are of the input's dtype: exact where
the input itself is rotated, else (`SPLIT`, and a matrix with `low`) in two parts.
"""

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: added to a number below 2**22 it rounds it to the nearest integer, ties to even,
which then stands in the lowest bits."""


@triton.jit
def each_row(values, SLOTS: tl.constexpr):
    """Sums over the rows of the matrix, ``[BLOCK_M, 1]``: SLOTS rows of a tile belong together."""
    M: tl.constexpr = values.shape[0]
    found = tl.sum(tl.reshape(tl.sum(values, 1), [M // SLOTS, SLOTS]), 1)
    spread = tl.broadcast_to(found[:, None], [M // SLOTS, SLOTS])
    return tl.reshape(spread, [M])[:, None]


@triton.jit
def normalized(v, eps, inside, NORM: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr):
    """Rows over their root mean square (1), or less their mean over their deviation (2)."""
    if NORM == 2:
        v = tl.where(inside, v - each_row(v, SLOTS) / COLUMNS, 0.0)
    return v * tl.rsqrt(each_row(v * v, SLOTS) / COLUMNS + eps)


@triton.jit
def activated(v, KIND: tl.constexpr):
    """GELU in its tanh form (1), which is a sigmoid too, or SiLU (2)."""
    z = v
    if KIND == 1:
        z = 1.5957691216057308 * (v + 0.044715 * v * v * v)
    return v / (1.0 + tl.exp(-z))


@triton.jit
def matrix_of(matrix, at):
    """A matrix, None for none."""
    if matrix is None:
        out = None
    else:
        out = tl.load(matrix + at)
    return out


@triton.jit
def columns_of(vector, at, inside):
    """Numbers of columns at the positions of a tile, None for none."""
    if vector is None:
        out = None
    else:
        out = tl.load(vector + at, mask=inside, other=0).to(tl.float32)
    return out


@triton.jit
def sources(order, at, inside):
    """The columns that positions of a tile take their numbers from."""
    if order is None:
        out = at
    else:
        out = tl.load(order + at, mask=inside, other=0)
    return out


@triton.jit
def turned(
    v, multiply, subtract, matrix, low,
    SPLIT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile scaled, centred and rotated; each if there is something to do it with."""
    if multiply is not None:
        v = v * multiply
    if subtract is not None:
        v = v - subtract
    if matrix is not None:
        high = v.to(OPERAND)
        out = tl.dot(high, matrix, input_precision=PRECISION)
        if low is not None:
            out = tl.dot(high, low, out, input_precision=PRECISION)
        if SPLIT:
            rest = (v - high.to(tl.float32)).to(OPERAND)
            out = tl.dot(rest, matrix, out, input_precision=PRECISION)
        v = out
    return v


@triton.jit
def exchanged(v, scratch, to, where, inside):
    """Numbers of whole rows in another order, through a program's own memory in the L2 cache."""
    tl.debug_barrier()
    tl.store(scratch + to, v, mask=inside)
    tl.debug_barrier()
    return tl.load(scratch + where, mask=inside, other=0.0)


@triton.jit
def over_groups(values, GROUP: tl.constexpr, KIND: tl.constexpr):
    """Largest (KIND 1) or least (0) entry of each group, in the shape that `spread` takes."""
    M: tl.constexpr = values.shape[0]
    N: tl.constexpr = values.shape[1]
    if GROUP < N:
        parts = tl.reshape(values, [M, N // GROUP, GROUP])
        found = tl.max(parts, 2) if KIND else tl.min(parts, 2)
    else:
        EACH: tl.constexpr = GROUP // N
        of_blocks = tl.max(values, 1) if KIND else tl.min(values, 1)
        several = tl.reshape(of_blocks, [M // EACH, EACH])
        found = (tl.max(several, 1) if KIND else tl.min(several, 1))[:, None]
    return found


@triton.jit
def spread(groups, M: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr):
    """What belongs to groups, at each of their entries."""
    if GROUP < N:
        out = tl.reshape(tl.broadcast_to(groups[:, :, None], [M, N // GROUP, GROUP]), [M, N])
    else:
        EACH: tl.constexpr = GROUP // N
        out = tl.reshape(tl.broadcast_to(groups, [M // EACH, EACH]), [M])[:, None]
    return out


@triton.jit
def e4m3(v):
    """Patterns of OCP e4m3 nearest to values of at most 448, ties to even."""
    bits = v.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 patterns count units of 2**-9.
    units = tl.abs(v) * 512.0 + ROUND
    small = units.to(tl.int32, bitcast=True) & 15
    return tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)


@triton.jit
def coded(
    v, zero, ok, LOW: tl.constexpr, HIGH: tl.constexpr, CLIP: tl.constexpr, SHIFT: tl.constexpr,
    FP8: tl.constexpr,
):  # fmt: skip
    """Patterns in the lowest bits, 0 in groups that hold what no code can.

    FP8: 0 integers, 1 by the GPU's own conversion, 2 in integer arithmetic.
    """
    if CLIP:
        v = tl.minimum(tl.maximum(v + zero, LOW), HIGH)
    if FP8 == 1:
        pattern = v.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    elif FP8 == 2:
        pattern = e4m3(v)
    else:
        pattern = (v + (ROUND + SHIFT)).to(tl.int32, bitcast=True)
    return tl.where(ok, pattern, 0)


@triton.jit
def quantize_tiles(
    x, scale, shift,
    multiply, subtract, order, matrix, low,
    multiply_2, subtract_2, order_2, matrix_2, low_2,
    codes, scales, zeros, scratch,
    rows, total, x_b, x_r, scale_b, shift_b, codes_r, tiles, eps,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr,
    SLOTS: tl.constexpr, HOLD: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, SECOND: tl.constexpr,
    SPLIT: tl.constexpr, SPLIT_2: tl.constexpr, FACTOR: tl.constexpr, FACTOR_2: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, LIMIT: tl.constexpr, SHIFT: tl.constexpr,
    CLIP: tl.constexpr, PACKED: tl.constexpr, FP8: tl.constexpr, TINY: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Codes and scales of ``x [total / rows, rows, COLUMNS]``, tile by tile.

    Launch with any number of programs up to `tiles`; they share the tiles out.  BLOCK columns are
    rotated together, N is BLOCK as a power of two, SLOTS the blocks of a row likewise (exactly
    their number where tiles need no whole rows).  GROUP counts positions of a tile that share a
    scale.  The outputs are contiguous: codes as bytes with rows of codes_r, scales and zeros
    ``[total, GROUPS]``.
    """
    BLOCKS: tl.constexpr = COLUMNS // BLOCK
    OPERAND: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, N)
    square = column[:, None] * N + column[None, :]
    turn = matrix_of(matrix, square)
    turn_low = matrix_of(low, square)
    turn_2 = matrix_of(matrix_2, square)
    turn_low_2 = matrix_of(low_2, square)
    if HOLD:
        # Every tile has the same columns.
        block = tl.arange(0, BLOCK_M) % SLOTS
        at = block[:, None] * BLOCK + column[None, :]
        inside = (block < BLOCKS)[:, None] & (column < BLOCK)[None, :]
        source = sources(order, at, inside)
        by = columns_of(multiply, at, inside)
        less = columns_of(subtract, at, inside)
        source_2 = sources(order_2, at, inside)
        by_2 = columns_of(multiply_2, at, inside)
        less_2 = columns_of(subtract_2, at, inside)
    if order_2 is not None:
        scratch += tl.program_id(0).to(tl.int64) * (BLOCK_M // SLOTS * COLUMNS)

    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row = place // SLOTS
        block = place % SLOTS
        there = row < total
        if SLOTS != BLOCKS:
            there = there & (block < BLOCKS)
        inside = there[:, None] & (column < BLOCK)[None, :]
        item = row // rows
        at = block[:, None] * BLOCK + column[None, :]
        if not HOLD:
            source = sources(order, at, inside)
        start = item.to(tl.int64) * x_b + (row - item * rows).to(tl.int64) * x_r
        v = tl.load(x + start[:, None] + source, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            v = normalized(v, eps, inside, NORM, COLUMNS, SLOTS)
        if scale is not None:
            item = item.to(tl.int64)[:, None]
            scaled = columns_of(scale, item * scale_b + source, inside)
            v = v * (1.0 + scaled) + columns_of(shift, item * shift_b + source, inside)
        if ACTIVATION:
            v = activated(v, ACTIVATION)
        if not HOLD:
            by = columns_of(multiply, at, inside)
            less = columns_of(subtract, at, inside)
        v = turned(v, by, less, turn, turn_low, SPLIT, OPERAND, PRECISION)
        if SECOND:
            v = v * FACTOR
            if order_2 is not None:
                own = (tl.arange(0, BLOCK_M) // SLOTS)[:, None] * COLUMNS
                if HOLD:
                    v = exchanged(v, scratch, own + at, own + source_2, inside)
                else:
                    v = exchanged(v, scratch, own + at, own + sources(order_2, at, inside), inside)
            if not HOLD:
                by_2 = columns_of(multiply_2, at, inside)
                less_2 = columns_of(subtract_2, at, inside)
            v = turned(v, by_2, less_2, turn_2, turn_low_2, SPLIT_2, OPERAND, PRECISION)

        # As integers magnitudes keep their order, and NaN is above everything.
        largest = over_groups(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, GROUP, 1)
        finite = largest < 0x7F800000
        span = largest.to(tl.float32, bitcast=True) * FACTOR_2
        if zeros is not None:
            top = tl.maximum(over_groups(v, GROUP, 1), 0.0) * FACTOR_2
            bottom = tl.minimum(over_groups(v, GROUP, 0), 0.0) * FACTOR_2
            span = top - bottom
        unit = tl.math.div_rn(span, tl.full(span.shape, LIMIT, tl.float32))
        unit = tl.where(unit < TINY, 0.0, unit)
        unit = unit.to(scales.dtype.element_ty).to(tl.float32)
        finite = finite & (unit < float("inf"))
        used = finite & (unit > 0.0)
        inverse = tl.where(used, FACTOR_2 / tl.where(used, unit, 1.0), 0.0)
        zero = tl.zeros(unit.shape, tl.float32)
        if zeros is not None:
            zero = LOW - tl.where(used, bottom / tl.where(used, unit, 1.0), 0.0)
            zero = tl.where(finite, (zero + ROUND) - ROUND, 0.0)
        M: tl.constexpr = BLOCK_M
        v = v * spread(inverse, M, N, GROUP)
        pattern = coded(
            v, spread(zero, M, N, GROUP), spread(finite, M, N, GROUP), LOW, HIGH, CLIP, SHIFT, FP8
        )
        line = row.to(tl.int64) * codes_r
        if PACKED:
            even, odd = tl.split(tl.reshape(pattern, [M, N // 2, 2]))
            byte = (even & 15) | ((odd & 15) << 4)
            half = tl.arange(0, N // 2)
            to = line[:, None] + block[:, None] * (BLOCK // 2) + half[None, :]
            keep = there[:, None] & (half < BLOCK // 2)[None, :]
            tl.store(codes + to, byte.to(tl.uint8), mask=keep)
        else:
            tl.store(codes + line[:, None] + at, pattern.to(tl.uint8), mask=inside)

        unit = tl.where(finite, unit, float("nan")).to(scales.dtype.element_ty)
        if GROUP < N:
            part = tl.arange(0, N // GROUP)
            number = block[:, None] * (BLOCK // GROUP) + part[None, :]
            keep = there[:, None] & (part < BLOCK // GROUP)[None, :]
            to = row.to(tl.int64)[:, None] * GROUPS + number
        else:
            EACH: tl.constexpr = GROUP // N
            first = tile * BLOCK_M + tl.arange(0, BLOCK_M // EACH)[:, None] * EACH
            to = (first // SLOTS).to(tl.int64) * GROUPS + first % SLOTS // EACH
            keep = (first // SLOTS < total) & (first % SLOTS < BLOCKS)
        tl.store(scales + to, unit, mask=keep)
        if zeros is not None:
            tl.store(zeros + to, zero.to(tl.int32), mask=keep)
