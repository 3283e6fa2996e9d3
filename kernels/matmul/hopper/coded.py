"""Product of 8-bit x with weights of four bits and an epilogue: the Hopper template, in Gluon.

The product is computed transposed, ``weight[N, K] @ x[M, K].T``: wgmma takes its first operand from
registers, where codes become the unit's bytes, so that weights cross memory as they are stored.  A
consumer warpgroup has 64 columns of the output and all rows of a tile; the sums of a step of K meet
the scale of their group in float32.  Ring and order of tiles are the 8-bit template's.
"""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kdsl.kernels.matmul.hopper.choices import advance, place_of
from kdsl.kernels.matmul.hopper.epilogue import activated

# --- template ---


@dataclass(frozen=True)
class Coded:
    """Constants of a compilation, under one name; those of `Choices` mean the same here."""

    BLOCK_M: int
    BLOCK_K: int
    CONSUMERS: int
    STAGES: int
    GROUP: int
    INTEGER: bool
    BIAS: bool
    RESIDUAL: bool
    ACTIVATION: int
    STEPS: int
    B0: int
    B1: int
    B2: int
    B3: int

    @property
    def SUM(self):
        """Type of a step's sums."""
        return gl.int32 if self.INTEGER else gl.float32

    @property
    def BYTE(self):
        """Type of what is multiplied."""
        return gl.int8 if self.INTEGER else gl.float8e4nv

    @property
    def TILE(self):
        """Layout of sums, [64, BLOCK_M]."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, self.BLOCK_M, 32])

    @property
    def OPERAND(self):
        """Layout of weights as the register operand, [64, BLOCK_K]."""
        return gl.DotOperandLayout(0, self.TILE, 4)

    @property
    def WORDS(self):
        """Layout of four codes or four bytes each, [64, BLOCK_K / 4]: those of an operand's
        register."""
        quads = self.BLOCK_K // 4
        registers = [[8, 0]] + [[0, 1 << j] for j in range(2, quads.bit_length() - 1)]
        lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
        return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [64, quads])

    @property
    def STEP(self):
        """Bytes that arrive for a step of K."""
        return self.BLOCK_M * self.BLOCK_K + self.CONSUMERS * 64 * self.BLOCK_K // 2


@gluon.constexpr_function
def coded(*values):
    """The constants in the order of `Coded`."""
    return Coded(*(getattr(v, "value", v) for v in values))


@gluon.constexpr_function
def decoding(b0, b1, b2, b3):
    """PTX that turns four codes of four bits into bytes: magnitudes of both signs by permutation,
    then one of them by the sign, which the last permutation spreads over its byte."""
    return (
        "{.reg .b32 c, s, p, n; and.b32 c, $1, 0x7777;"
        f"prmt.b32 p, {b0:#x}, {b1:#x}, c; prmt.b32 n, {b2:#x}, {b3:#x}, c;"
        "shl.b32 s, $1, 4; prmt.b32 s, s, $1, 0xd9c8;"
        "lop3.b32 $0, s, n, p, 0xca;}"
    )


@gluon.jit
def decoded(codes, C: gl.constexpr):
    """Codes ``[64, BLOCK_K / 4]``, four in 16 bits, as the unit's bytes, four in an int32."""
    return gl.inline_asm_elementwise(
        decoding(C.B0, C.B1, C.B2, C.B3), "=r,r", [codes.to(gl.int32)],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def operand_of(words, C: gl.constexpr):
    """Decoded weights as the register operand of a product; no instruction."""
    twice = gl.join(words, words)
    x = gl.join(twice, twice).reshape([64, C.BLOCK_K])
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r,r,r,r", [gl.convert_layout(x, C.OPERAND, assert_trivial=True)],
        dtype=C.BYTE, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.jit
def residual_of(residual, buf, bar, row, column, C: gl.constexpr):
    """Start to load a tile's residual to where its output will stand."""
    tma.store_wait(0)
    mbarrier.expect(bar, C.BLOCK_M * 64 * (residual.dtype.primitive_bitwidth // 8))
    tma.async_copy_global_to_shared(residual, [row, column], bar, buf)


@gluon.jit
def coded_producer(tensors, buffers, barriers, vectors, sizes, C: gl.constexpr):
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
            tma.async_copy_global_to_shared(x, [m * C.BLOCK_M, k * C.BLOCK_K], bar, x_buf.index(at))
            for wg in gl.static_range(CONSUMERS):
                row = (n * C.CONSUMERS + wg) * 64
                tma.async_copy_global_to_shared(
                    weight, [row, k * C.BLOCK_K // 4], bar, w_buf.index(at * C.CONSUMERS + wg)
                )
            at, phase = advance(at, phase, C.STAGES)


@gluon.jit
def group_scale(scales, rows, inside, step, row_step, C: gl.constexpr):
    """Scales of a step's group, a row of weights each."""
    return gl.load(scales + rows * row_step + step // C.STEPS, mask=inside, other=0.0)


@gluon.jit
def coded_consumer(WG: gl.constexpr, tensors, buffers, barriers, vectors, sizes, C: gl.constexpr):
    """A warpgroup that computes 64 columns of each tile's output.

    The next step's codes are read beside this one's products, over the ends of tiles too.
    """
    x_buf, w_buf, out_buf = buffers
    full, empty, arrived = barriers
    L: gl.constexpr = C.TILE
    zero = gl.full([64, C.BLOCK_M], 0, C.SUM, L)
    buf = out_buf.index(WG)
    tiles = sizes[3] * sizes[4]
    at = 0
    phase = 0
    turn = 0
    mbarrier.wait(full.index(0), 0)
    words = decoded(w_buf.index(WG).load(C.WORDS), C)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        m, n = place_of(tile, sizes, C)
        row = m * C.BLOCK_M
        column = (n * C.CONSUMERS + WG) * 64
        columns = column + gl.arange(0, 64, layout=gl.SliceLayout(1, L))
        inside = columns < sizes[1]
        if C.RESIDUAL:
            residual_of(tensors[3], buf, arrived.index(WG), row, column, C)
        total = gl.full([64, C.BLOCK_M], 0.0, gl.float32, L)
        for k in range(sizes[2]):
            started = warpgroup_mma(
                operand_of(words, C), x_buf.index(at).permute([1, 0]), zero,
                use_acc=False, is_async=True,
            )  # fmt: skip
            scale = gl.load(
                vectors[1] + columns.to(gl.int64) * sizes[5] + k // C.STEPS, mask=inside, other=0.0
            )
            later, phase = advance(at, phase, C.STAGES)
            more = (k + 1 < sizes[2]) | (tile + gl.num_programs(0) < tiles)
            mbarrier.wait(full.index(later), phase, pred=more)
            codes = w_buf.index(later * C.CONSUMERS + WG).load(C.WORDS)
            part, words = warpgroup_mma_wait(0, [started, words])
            mbarrier.arrive(empty.index(at), count=1)
            at = later
            # Registers of an operand may change only once the products that read them are over.
            words = decoded(codes, C)
            total = total + part.to(gl.float32) * gl.expand_dims(scale.to(gl.float32), 1)
        rows = row + gl.arange(0, C.BLOCK_M, layout=gl.SliceLayout(0, L))
        by_row = gl.load(vectors[0] + rows, mask=rows < sizes[0], other=0.0)
        y = total * gl.expand_dims(by_row, 0)
        if C.BIAS:
            bias = gl.load(vectors[2] + columns, mask=inside, other=0.0)
            y = y + gl.expand_dims(bias.to(gl.float32), 1)
        y = activated(y, C.ACTIVATION)
        if C.RESIDUAL:
            mbarrier.wait(arrived.index(WG), turn)
            turn = turn ^ 1
            y = y + buf.permute([1, 0]).load(L).to(gl.float32)
        else:
            tma.store_wait(0)
        buf.permute([1, 0]).store(y.to(buf.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(tensors[2], [row, column], buf)
    tma.store_wait(0)


@gluon.jit
def matmul_tiles(
    x, weight, out, residual, x_scale, weight_scale, bias,
    rows, columns, steps, down, across, scale_r,
    BLOCK_M: gl.constexpr, BLOCK_K: gl.constexpr,
    CONSUMERS: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, INTEGER: gl.constexpr,
    BIAS: gl.constexpr, RESIDUAL: gl.constexpr, ACTIVATION: gl.constexpr, STEPS: gl.constexpr,
    B0: gl.constexpr, B1: gl.constexpr, B2: gl.constexpr, B3: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Launch with at most as many programs as there are tiles, ``down * across``.

    x is a descriptor over int8 or e4m3 ``[rows, K]``, weight over int16 ``[columns, K / 4]`` of
    four codes each, out and residual over ``[rows, columns]``; weight_scale is float16, a
    column's ``scale_r`` apart, one for ``STEPS`` steps of K.  B0 to B3 are the sixteen bytes of
    the codebook.
    """
    C: gl.constexpr = coded(
        BLOCK_M, BLOCK_K, CONSUMERS, STAGES, GROUP, INTEGER, BIAS, RESIDUAL, ACTIVATION, STEPS,
        B0, B1, B2, B3,
    )  # fmt: skip
    x_buf = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_M, BLOCK_K], x.layout)
    w_buf = gl.allocate_shared_memory(
        weight.dtype, [STAGES * CONSUMERS, 64, BLOCK_K // 4], weight.layout
    )
    out_buf = gl.allocate_shared_memory(out.dtype, [CONSUMERS, BLOCK_M, 64], out.layout)
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
    vectors = (x_scale, weight_scale, bias)
    sizes = (rows, columns, steps, down, across, scale_r)
    gl.warp_specialize(
        [
            (coded_consumer, (0, tensors, buffers, barriers, vectors, sizes, C)),
            (coded_consumer, (1, tensors, buffers, barriers, vectors, sizes, C)),
            (coded_producer, (tensors, buffers, barriers, vectors, sizes, C)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
