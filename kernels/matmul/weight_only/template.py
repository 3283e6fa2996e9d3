"""Product of 16-bit x with weights of four or three bits: Triton, sm_80 and later, any rows.

``out[M, N] = activation(x[M, K] @ weight[N, K].T + bias) + residual``, a tile a program.  Codes
become 16-bit numbers, less their zero points, and a step's sums meet the scale of their group in
float32.
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
def fields_of(at, start, inside, EACH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Fields of a step of K, EACH to a byte, ``[columns, BLOCK_K]`` int32."""
    N: tl.constexpr = at.shape[0]
    byte = start // EACH + tl.arange(0, BLOCK_K // EACH)
    held = tl.load(at + byte[None, :], mask=inside, other=0).to(tl.int32)
    shift = tl.arange(0, EACH) * (8 // EACH)
    parts = (held[:, :, None] >> shift[None, None, :]) & ((1 << (8 // EACH)) - 1)
    return tl.reshape(parts, [N, BLOCK_K])


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
def weight_only_tiles(
    x, codes, signs, scales, zeros, bias, residual, out, book,
    x_r, codes_r, signs_r, scales_r, zeros_r, residual_r, out_r, rows, columns, inner, down, across,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, BITS: tl.constexpr, SCALED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Launch with ``down * across`` programs.

    Rows of every matrix are contiguous and ``_r`` apart; scales are float16 and zeros bytes, of
    SCALED columns of K each; book holds what codes stand for, float32.  signs, zeros, bias and
    residual may be None.
    """
    m, n = place_of(tl.program_id(0), down, across, GROUP)
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Past the end the last row is read again: its products are not stored.
    x_at = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * x_r
    of_column = tl.minimum(column, columns - 1).to(tl.int64)
    codes_at = codes + of_column[:, None] * codes_r
    inside = (column < columns)[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, inner, BLOCK_K, num_stages=STAGES):
        # Steps divide groups, and groups K: all of a step is inside.
        a = tl.load(x_at + (start + k)[None, :])
        if BITS == 4:
            pattern = fields_of(codes_at, start, inside, 2, BLOCK_K)
        else:
            pattern = fields_of(codes_at, start, inside, 4, BLOCK_K)
            signs_at = signs + of_column[:, None] * signs_r
            pattern |= fields_of(signs_at, start, inside, 8, BLOCK_K) << 2
        number = tl.load(book + pattern)
        if zeros is not None:
            zero = tl.load(zeros + of_column * zeros_r + start // SCALED)
            number -= zero.to(tl.float32)[:, None]
        part = tl.dot(a, tl.trans(number.to(a.dtype)), out_dtype=tl.float32)
        by = tl.load(scales + of_column * scales_r + start // SCALED)
        acc += part * by.to(tl.float32)[None, :]
    in_rows, in_columns = row < rows, column < columns
    both = in_rows[:, None] & in_columns[None, :]
    y = acc
    if bias is not None:
        y += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    y = activated(y, ACTIVATION)
    if residual is not None:
        at = row.to(tl.int64)[:, None] * residual_r + column[None, :]
        y += tl.load(residual + at, mask=both, other=0.0).to(tl.float32)
    to = row.to(tl.int64)[:, None] * out_r + column[None, :]
    tl.store(out + to, y.to(out.dtype.element_ty), mask=both)
