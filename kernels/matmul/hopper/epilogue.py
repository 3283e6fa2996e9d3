"""From sums of products to the output: scales, bias, activation, residual."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from kdsl.kernels.matmul.hopper.choices import columns_layout

# --- template ---


@gluon.jit
def halves(x, L: gl.constexpr):
    """Left and right half of a tile's columns; no instruction."""
    a, b = x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute([0, 2, 1]).split()
    return gl.convert_layout(a, L, assert_trivial=True), gl.convert_layout(
        b, L, assert_trivial=True
    )


@gluon.jit
def sigmoid_of_log2(z):
    """``1 / (1 + 2**z)``; relative error below 2**-21."""
    return gl.inline_asm_elementwise(
        "{.reg .f32 e; ex2.approx.ftz.f32 e, $1; add.ftz.f32 e, e, 0f3F800000;"
        "rcp.approx.ftz.f32 $0, e;}",
        "=f,f", [z], dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def activated(y, KIND: gl.constexpr):
    """GELU in its tanh form (1), which is a sigmoid too, the exact one (2), or SiLU (3)."""
    if KIND == 1:
        # -2 sqrt(2 / pi) log2(e), and that times 0.044715.
        y = y * sigmoid_of_log2(y * (-2.302208198 - 0.1029432397 * (y * y)))
    if KIND == 2:
        y = y * (0.5 + 0.5 * gl.erf(y * 0.7071067811865476))
    if KIND == 3:
        y = y * sigmoid_of_log2(y * -1.4426950408889634)
    return y


@gluon.jit
def column_vectors(vectors, at, columns, C: gl.constexpr):
    """Weight scales, their sums of codes and the bias of a chunk; what is not there repeats the
    scales."""
    L: gl.constexpr = gl.SliceLayout(0, columns_layout(C, C.WIDTH))
    index = at + gl.arange(0, C.WIDTH, layout=L)
    inside = index < columns
    scale = gl.load(vectors[1] + index, mask=inside, other=0.0)
    total = scale
    bias = scale
    if C.ZEROS:
        total = gl.load(vectors[3] + index, mask=inside, other=0)
    if C.BIAS:
        bias = gl.load(vectors[4] + index, mask=inside, other=0.0)
    return scale, total, bias


@gluon.jit
def put(x, row_scale, zero, by, out, buf, row, column, C: gl.constexpr):
    """Finish a chunk in registers and send it out through shared memory, where its residual waits
    if there is one."""
    scale, total, bias = by
    if C.ZEROS:
        x = x - gl.expand_dims(zero, 1) * gl.expand_dims(total, 0)
    y = x.to(gl.float32) * gl.expand_dims(row_scale, 1) * gl.expand_dims(scale, 0)
    if C.BIAS:
        y = y + gl.expand_dims(bias.to(gl.float32), 0)
    y = activated(y, C.ACTIVATION)
    if C.RESIDUAL:
        L: gl.constexpr = columns_layout(C, C.WIDTH)
        y = y + buf.load(L).to(gl.float32)
    else:
        tma.store_wait(C.BUFFERS - 1)
    buf.store(y.to(buf.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out, [row, column], buf)


@gluon.jit
def fetch_residual(residual, buf, bar, row, column, WG: gl.constexpr, C: gl.constexpr):
    """Start to load a tile's residual to where its output will stand."""
    tma.store_wait(0)
    mbarrier.expect(bar, C.ROWS * C.BLOCK_N * (residual.dtype.primitive_bitwidth // 8))
    CHUNKS: gl.constexpr = C.CHUNKS
    for i in gl.static_range(CHUNKS):
        tma.async_copy_global_to_shared(
            residual, [row, column + i * C.WIDTH], bar, buf.index(WG * C.BUFFERS + i)
        )


@gluon.jit
def finish(
    acc, row_scale, zero, by, tensors, buf, vectors, row, column, columns,
    WG: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """A tile's output, chunk by chunk; each chunk's columns are loaded before the one before it is
    finished."""
    out = tensors[2]
    at: gl.constexpr = WG * C.BUFFERS
    W: gl.constexpr = C.WIDTH
    B: gl.constexpr = C.BUFFERS
    if C.CHUNKS == 1:
        put(acc, row_scale, zero, by, out, buf.index(at), row, column, C)
    else:
        L: gl.constexpr = columns_layout(C, C.BLOCK_N // 2)
        left, right = halves(acc, L)
        if C.CHUNKS == 2:
            later = column_vectors(vectors, column + W, columns, C)
            put(left, row_scale, zero, by, out, buf.index(at), row, column, C)
            put(right, row_scale, zero, later, out, buf.index(at + 1 % B), row, column + W, C)
        else:
            LC: gl.constexpr = columns_layout(C, W)
            x0, x1 = halves(left, LC)
            x2, x3 = halves(right, LC)
            by1 = column_vectors(vectors, column + W, columns, C)
            put(x0, row_scale, zero, by, out, buf.index(at), row, column, C)
            by2 = column_vectors(vectors, column + 2 * W, columns, C)
            put(x1, row_scale, zero, by1, out, buf.index(at + 1 % B), row, column + W, C)
            by3 = column_vectors(vectors, column + 3 * W, columns, C)
            put(x2, row_scale, zero, by2, out, buf.index(at + 2 % B), row, column + 2 * W, C)
            put(x3, row_scale, zero, by3, out, buf.index(at + 3 % B), row, column + 3 * W, C)
