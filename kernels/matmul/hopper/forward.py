"""Product of 8-bit operands with an epilogue: the Hopper template (sm_90), in Gluon.

``out[M, N] = activation((x[M, K] @ weight[N, K].T - zeros sums) scales + bias) + residual``.  A
persistent program has a producer warp, which keeps a ring of stages full by TMA, and one or two
consumer warpgroups, each with its own rows of the tile.  Those do not wait for each other, so that
the epilogue of one runs beside the products of the other, as far as the ring reaches.  Edges
are TMA's: what lies outside arrives as zeros and is not stored.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kdsl.kernels.matmul.hopper.choices import (
    advance,
    chosen,
    columns_layout,
    place_of,
)
from kdsl.kernels.matmul.hopper.epilogue import column_vectors, fetch_residual, finish

# --- template ---


@gluon.jit
def producer(tensors, buffers, barriers, vectors, sizes, C: gl.constexpr):
    """The warp that loads."""
    x, weight = tensors[0], tensors[1]
    x_buf, w_buf = buffers[0], buffers[1]
    full, empty = barriers[0], barriers[1]
    CONSUMERS: gl.constexpr = C.CONSUMERS
    at = 0
    phase = 1
    for tile in range(gl.program_id(0), sizes[3] * sizes[4], gl.num_programs(0)):
        m, n = place_of(tile, sizes, C)
        for k in range(sizes[2]):
            mbarrier.wait(empty.index(at), phase)
            bar = full.index(at)
            mbarrier.expect(bar, C.STEP)
            for wg in gl.static_range(CONSUMERS):
                row = (m * C.CONSUMERS + wg) * C.ROWS
                tma.async_copy_global_to_shared(
                    x, [row, k * C.BLOCK_K], bar, x_buf.index(at * C.CONSUMERS + wg)
                )
            tma.async_copy_global_to_shared(
                weight, [n * C.BLOCK_N, k * C.BLOCK_K], bar, w_buf.index(at)
            )
            at, phase = advance(at, phase, C.STAGES)


@gluon.jit
def consumer(WG: gl.constexpr, tensors, buffers, barriers, vectors, sizes, C: gl.constexpr):
    """A warpgroup that computes its rows of each tile."""
    x_buf, w_buf, out_buf = buffers
    full, empty, arrived = barriers
    L: gl.constexpr = columns_layout(C, C.BLOCK_N)
    LC: gl.constexpr = gl.SliceLayout(1, columns_layout(C, C.WIDTH))
    acc = gl.full([C.ROWS, C.BLOCK_N], 0, C.SUM, L)
    at = 0
    phase = 0
    turn = 0
    for tile in range(gl.program_id(0), sizes[3] * sizes[4], gl.num_programs(0)):
        m, n = place_of(tile, sizes, C)
        row = (m * C.CONSUMERS + WG) * C.ROWS
        column = n * C.BLOCK_N
        mbarrier.wait(full.index(at), phase)
        started = warpgroup_mma(
            x_buf.index(at * C.CONSUMERS + WG), w_buf.index(at).permute([1, 0]), acc,
            use_acc=False, is_async=True,
        )  # fmt: skip
        if C.RESIDUAL:
            fetch_residual(tensors[3], out_buf, arrived.index(WG), row, column, WG, C)
        acc = warpgroup_mma_wait(1, [started])
        for _ in range(1, sizes[2]):
            later, phase = advance(at, phase, C.STAGES)
            mbarrier.wait(full.index(later), phase)
            started = warpgroup_mma(
                x_buf.index(later * C.CONSUMERS + WG), w_buf.index(later).permute([1, 0]), acc,
                use_acc=True, is_async=True,
            )  # fmt: skip
            acc = warpgroup_mma_wait(1, [started])
            mbarrier.arrive(empty.index(at), count=1)
            at = later
        rows = row + gl.arange(0, C.ROWS, layout=LC)
        inside = rows < sizes[0]
        scale = gl.load(vectors[0] + rows, mask=inside, other=0.0)
        zero = scale
        if C.ZEROS:
            zero = gl.load(vectors[2] + rows, mask=inside, other=0)
        by = column_vectors(vectors, column, sizes[1], C)
        # Long passed: it keeps ptxas from moving these loads behind the last product.
        mbarrier.wait(full.index(at), phase)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(empty.index(at), count=1)
        at, phase = advance(at, phase, C.STAGES)
        if C.RESIDUAL:
            mbarrier.wait(arrived.index(WG), turn)
            turn = turn ^ 1
        finish(acc, scale, zero, by, tensors, out_buf, vectors, row, column, sizes[1], WG, C)
    tma.store_wait(0)


@gluon.jit
def matmul_tiles(
    x, weight, out, residual, x_scale, weight_scale, zeros, sums, bias,
    rows, columns, steps, down, across,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    CONSUMERS: gl.constexpr, STAGES: gl.constexpr, CHUNKS: gl.constexpr, BUFFERS: gl.constexpr,
    GROUP: gl.constexpr, INTEGER: gl.constexpr, ZEROS: gl.constexpr, BIAS: gl.constexpr,
    RESIDUAL: gl.constexpr, ACTIVATION: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Launch with at most as many programs as there are tiles, ``down * across``.

    x and weight are descriptors over int8 or e4m3 ``[rows, K]`` and ``[columns, K]``, out and
    residual over ``[rows, columns]``; scales are float32, zeros and sums int32, bias in the
    output's type; ``steps`` of ``BLOCK_K`` cover K.  What a constant says is not there is None.
    """
    C: gl.constexpr = chosen(
        BLOCK_M, BLOCK_N, BLOCK_K, CONSUMERS, STAGES, CHUNKS, BUFFERS, GROUP, INTEGER, ZEROS, BIAS,
        RESIDUAL, ACTIVATION,
    )  # fmt: skip
    x_buf = gl.allocate_shared_memory(x.dtype, [STAGES * CONSUMERS, C.ROWS, BLOCK_K], x.layout)
    w_buf = gl.allocate_shared_memory(weight.dtype, [STAGES, BLOCK_N, BLOCK_K], weight.layout)
    out_buf = gl.allocate_shared_memory(
        out.dtype, [CONSUMERS * BUFFERS, C.ROWS, C.WIDTH], out.layout
    )
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    arrived = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=CONSUMERS)
    for i in gl.static_range(CONSUMERS):
        mbarrier.init(arrived.index(i), count=1)
    fence_async_shared()
    tensors = (x, weight, out, residual)
    buffers = (x_buf, w_buf, out_buf)
    barriers = (full, empty, arrived)
    vectors = (x_scale, weight_scale, zeros, sums, bias)
    sizes = (rows, columns, steps, down, across)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (consumer, (0, tensors, buffers, barriers, vectors, sizes, C)),
                (consumer, (1, tensors, buffers, barriers, vectors, sizes, C)),
                (producer, (tensors, buffers, barriers, vectors, sizes, C)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consumer, (0, tensors, buffers, barriers, vectors, sizes, C)),
                (producer, (tensors, buffers, barriers, vectors, sizes, C)),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )
