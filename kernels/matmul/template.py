"""Product of 8-bit operands with an epilogue: Triton, sm_80 and later.

``out[M, N] = activation((x[M, K] @ weight[N, K].T - zeros sums) scales + bias) + residual``, a tile
a program.  Sums of int8 products are exact; of e4m3 products they are as precise as the GPU's unit
is.  Before sm_89 there is none: codes then become float16, 2**-8 of themselves, which is exact, and
NaN.
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
    x, weight, out, residual, x_scale, weight_scale, zeros, sums, bias,
    rows, columns, inner, x_r, weight_r, out_r, residual_r, down, across,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    FP8: tl.constexpr, ACTIVATION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Launch with ``down * across`` programs.

    Rows of every matrix are contiguous and ``_r`` apart; scales are float32, zeros and sums int32.
    zeros (with sums), bias and residual may be None.
    """
    m, n = place_of(tl.program_id(0), down, across, GROUP)
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Past the end the last row is read again: its products are not stored.
    x_at = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * x_r
    w_at = weight + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * weight_r
    SUM: tl.constexpr = tl.float32 if FP8 else tl.int32
    NOTHING: tl.constexpr = 0.0 if FP8 == 1 else 0
    acc = tl.zeros([BLOCK_M, BLOCK_N], SUM)
    for start in tl.range(0, inner, BLOCK_K, num_stages=STAGES):
        inside = start + k < inner
        a = tl.load(x_at + (start + k)[None, :], mask=inside[None, :], other=NOTHING)
        b = tl.load(w_at + (start + k)[:, None], mask=inside[:, None], other=NOTHING)
        acc = tl.dot(operand(a, FP8), operand(b, FP8), acc, out_dtype=SUM)
    in_rows, in_columns = row < rows, column < columns
    inside = in_rows[:, None] & in_columns[None, :]
    by_row = tl.load(x_scale + row, mask=in_rows, other=0.0)
    by_column = tl.load(weight_scale + column, mask=in_columns, other=0.0)
    if zeros is not None:
        zero = tl.load(zeros + row, mask=in_rows, other=0)
        acc -= zero[:, None] * tl.load(sums + column, mask=in_columns, other=0)[None, :]
    y = acc.to(tl.float32) * by_row[:, None] * by_column[None, :]
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
