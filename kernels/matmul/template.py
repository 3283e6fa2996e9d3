"""Product of quantized operands with an epilogue: Triton, sm_80 and later.

``out[M, N] = activation((x[M, K] @ weight[N, K].T - zeros sums) scales + bias) + residual``, a tile
a program.  Sums of int8 products are exact; of e4m3 products they are as precise as the GPU's unit
is.  Before sm_89 there is none: codes then become float16, 2**-8 of themselves, which is exact, and
NaN.

Weights of four and three bits are codes of a book of 8-bit numbers: a step's sums meet the scale of
their group, in float32.
"""

import triton
import triton.language as tl


@triton.jit
def place_of(tile, down, across, GROUP: tl.constexpr):
    """Row and column of a tile: GROUP rows of tiles at a time, down first, so that what they share
    stays in the L2 cache."""
    group = tile // (GROUP * across)
    rest = tile - group * (GROUP * across)
    rows = tl.minimum(down - group * GROUP, GROUP)
    return group * GROUP + rest % rows, rest // rows


@triton.jit
def halved(pattern):
    """e4m3 patterns as float16 numbers, 2**-8 of what they stand for."""
    low = (pattern & 0x7F).to(tl.int16)
    bits = (low << 7) | ((pattern & 0x80).to(tl.int16) << 8)
    return tl.where(low == 0x7F, float("nan"), bits.to(tl.float16, bitcast=True))


@triton.jit
def operand(codes, FP8: tl.constexpr):
    """Codes as a product takes them; FP8 2: there is no unit for e4m3, and they come as bytes."""
    if FP8 == 2:
        codes = halved(codes)
    return codes


@triton.jit
def looked_up(pattern, LOW: tl.constexpr, HIGH: tl.constexpr, BITS: tl.constexpr):
    """The bytes of a codebook: eight of them to a 64-bit number."""
    book = tl.full(pattern.shape, LOW, tl.int64)
    if BITS == 4:
        book = tl.where(pattern < 8, book, HIGH)
    return (book >> ((pattern & 7) * 8).to(tl.int64)).to(tl.int8)


@triton.jit
def fields_of(at, start, inside, EACH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Fields of a step of K, EACH to a byte, ``[columns, BLOCK_K]`` int32."""
    N: tl.constexpr = at.shape[0]
    byte = start // EACH + tl.arange(0, BLOCK_K // EACH)
    held = tl.load(at + byte[None, :], mask=inside, other=0).to(tl.int32)
    shift = tl.arange(0, EACH) * (8 // EACH)
    parts = (held[:, :, None] >> shift[None, None, :]) & ((1 << (8 // EACH)) - 1)
    return tl.reshape(parts, [N, BLOCK_K])


@triton.jit
def decoded(
    codes, signs, start, inside,
    LOW: tl.constexpr, HIGH: tl.constexpr, BITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A step of weights of four bits, or of two and a sign, as bytes ``[BLOCK_K, columns]``."""
    if BITS == 4:
        pattern = fields_of(codes, start, inside, 2, BLOCK_K)
    else:
        pattern = fields_of(codes, start, inside, 4, BLOCK_K)
        pattern |= fields_of(signs, start, inside, 8, BLOCK_K) << 2
    return tl.trans(looked_up(pattern, LOW, HIGH, BITS))


@triton.jit
def activated(y, KIND: tl.constexpr):
    """GELU in its tanh form (1), which is a sigmoid too, the exact one (2), or SiLU (3)."""
    if KIND == 1:
        y = y / (1.0 + tl.exp2(y * (-2.302208198 - 0.1029432397 * (y * y))))
    if KIND == 2:
        y = y * (0.5 + 0.5 * tl.erf(y * 0.7071067811865476))
    if KIND == 3:
        y = y / (1.0 + tl.exp2(y * -1.4426950408889634))
    return y


@triton.jit
def matmul_tiles(
    x, weight, signs, out, residual, x_scale, weight_scale, zeros, sums, bias,
    rows, columns, inner, x_r, weight_r, signs_r, scale_r, out_r, residual_r, down, across,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    FP8: tl.constexpr, ACTIVATION: tl.constexpr, STAGES: tl.constexpr,
    BITS: tl.constexpr, SCALED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """Launch with ``down * across`` programs.

    Rows of every matrix are contiguous and ``_r`` apart; scales are float32, zeros and sums int32.
    zeros (with sums), bias and residual may be None.  With fewer than 8 BITS weight holds codes
    (of three bits the lower two, and signs the third), LOW and HIGH are their bytes, and
    weight_scale float16 of SCALED columns of K each.
    """
    m, n = place_of(tl.program_id(0), down, across, GROUP)
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Past the end the last row is read again: its products are not stored.
    x_at = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * x_r
    of_column = tl.minimum(column, columns - 1).to(tl.int64)
    SUM: tl.constexpr = tl.float32 if FP8 else tl.int32
    NOTHING: tl.constexpr = 0.0 if FP8 == 1 else 0
    if BITS == 8:
        w_at = weight + of_column[None, :] * weight_r
        acc = tl.zeros([BLOCK_M, BLOCK_N], SUM)
    else:
        w_at = weight + of_column[:, None] * weight_r
        s_at = w_at
        if BITS == 3:
            s_at = signs + of_column[:, None] * signs_r
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, inner, BLOCK_K, num_stages=STAGES):
        inside = start + k < inner
        a = tl.load(x_at + (start + k)[None, :], mask=inside[None, :], other=NOTHING)
        if BITS == 8:
            b = tl.load(w_at + (start + k)[:, None], mask=inside[:, None], other=NOTHING)
            acc = tl.dot(operand(a, FP8), operand(b, FP8), acc, out_dtype=SUM)
        else:
            # Steps divide groups, and groups K: all of a step is inside.
            b = decoded(w_at, s_at, start, (column < columns)[:, None], LOW, HIGH, BITS, BLOCK_K)
            if FP8 == 1:
                b = b.to(tl.float8e4nv, bitcast=True)
            if FP8 == 2:
                b = b.to(tl.uint8, bitcast=True)
            part = tl.dot(operand(a, FP8), operand(b, FP8), out_dtype=SUM).to(tl.float32)
            by = tl.load(weight_scale + of_column * scale_r + start // SCALED)
            acc += part * by.to(tl.float32)[None, :]
    in_rows, in_columns = row < rows, column < columns
    inside = in_rows[:, None] & in_columns[None, :]
    by_row = tl.load(x_scale + row, mask=in_rows, other=0.0)
    if zeros is not None:
        zero = tl.load(zeros + row, mask=in_rows, other=0)
        acc -= zero[:, None] * tl.load(sums + column, mask=in_columns, other=0)[None, :]
    y = acc.to(tl.float32) * by_row[:, None]
    if BITS == 8:
        y *= tl.load(weight_scale + column, mask=in_columns, other=0.0)[None, :]
    if FP8 == 2:
        y *= 65536.0
    if bias is not None:
        y += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    y = activated(y, ACTIVATION)
    if residual is not None:
        at = row.to(tl.int64)[:, None] * residual_r + column[None, :]
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    to = row.to(tl.int64)[:, None] * out_r + column[None, :]
    tl.store(out + to, y.to(out.dtype.element_ty), mask=inside)
