"""Constants, layouts and 8-bit operands of the quantized Hopper template."""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kdsl.kernels.attention.hopper.softmax import spread, weigh

# --- template ---


@dataclass(frozen=True)
class Coded:
    """Constants of a compilation, under one name; those of `Choices` mean the same here."""

    D0: int
    GROUP: int
    MASK_M: int
    MASK_N: int
    BLOCK_N: int
    CONSUMERS: int
    K_STAGES: int
    V_STAGES: int
    EARLY: bool
    PERSISTENT: bool
    DESCRIBED: bool
    LSE: bool
    Q_SPAN: int
    Q_PERIOD: int
    Q_WIDTH: int
    K_SPAN: int
    SLACK: float
    SHIFT: float
    BY_PRODUCT: bool

    @property
    def D1(self):
        """There is no second part of the channels."""
        return 0

    @property
    def BLOCK_M(self):
        """Queries of a tile."""
        return 64 * self.CONSUMERS

    @property
    def SPLIT_M(self):
        """Tiles of a row of mask blocks."""
        return self.MASK_M // self.BLOCK_M

    @property
    def SPLIT_N(self):
        """Steps of a mask block."""
        return self.MASK_N // self.BLOCK_N

    @property
    def Q_LANES(self):
        """Groups of queries in a span."""
        return self.Q_PERIOD // self.Q_WIDTH

    @property
    def SCORES(self):
        """Layout of scores."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, self.BLOCK_N, 32])

    @property
    def OUT(self):
        """Layout of the output."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, self.D0, 32])

    @property
    def WEIGHTS(self):
        """Layout of weights as the second product's register operand."""
        return gl.DotOperandLayout(0, self.OUT, 4)

    @property
    def SUMS(self):
        """Layout of sums of weights by a product with ones, [64, 8]."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 32])

    @property
    def SUMMED(self):
        """Layout of weights as the register operand of that product."""
        return gl.DotOperandLayout(0, self.SUMS, 4)

    @property
    def ONES(self):
        """Layout of the ones in shared memory, [8, BLOCK_N]."""
        return gl.NVMMASharedLayout(min(128, self.BLOCK_N), 8, 2)

    @property
    def SPREAD(self):
        """Layout in which a program's warps write the ones."""
        lanes = self.BLOCK_N // 32
        return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [1, 4], [1, 0])

    @property
    def PACKED(self):
        """Layout of weights, four codes in an int32, [64, BLOCK_N / 4]."""
        quads = self.BLOCK_N // 4
        registers = [[8, 0]] + [[0, 1 << j] for j in range(2, quads.bit_length() - 1)]
        lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
        return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [64, quads])

    @property
    def ROWS(self):
        """Layout of [64, 4]: a value a row, in each of the four lanes that share a row."""
        lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
        return gl.DistributedLinearLayout([[8, 0]], lanes, [[16, 0], [32, 0]], [], [64, 4])


@gluon.constexpr_function
def coded(*values):
    """The constants in the order of `Coded`."""
    return Coded(*(getattr(v, "value", v) for v in values))


@gluon.jit
def query_scales(q_scale, place, sizes, scale_log2, C: gl.constexpr):
    """The factor of each row on its scores of codes, in units of log2, as `ROWS`."""
    batch, head, _, q_at, _ = place
    groups = q_scale + (batch * sizes[0] + head).to(gl.int64) * sizes[10]
    qs = q_at + gl.arange(0, 64, layout=gl.SliceLayout(1, C.ROWS))
    qs = gl.minimum(qs, sizes[2] - 1)
    held = gl.load(groups + qs // C.Q_SPAN * C.Q_LANES + qs % C.Q_PERIOD // C.Q_WIDTH)
    return gl.full([64, 4], 1.0, gl.float32, C.ROWS) * gl.expand_dims(held * scale_log2, 1)


@gluon.jit
def key_scale(k_scale, column, step, place, sizes, C: gl.constexpr):
    """The scale of a step's keys, which are of one group."""
    batch, head = place[0], place[1]
    kv = batch * (sizes[0] // C.GROUP) + head // C.GROUP
    at = column * C.MASK_N + step % C.SPLIT_N * C.BLOCK_N
    # A step may lie past the end altogether, in a block that does not.
    at = gl.minimum(at, sizes[3] - 1)
    return gl.load(k_scale + kv.to(gl.int64) * sizes[11] + at // C.K_SPAN)


@gluon.jit
def factors(rows, key):
    """Scales of queries times that of a step's keys; 0, of a group of zeros, would turn what the
    mask drops into NaN."""
    x = rows * key
    return gl.where(x == 0, 1e-37, x)


@gluon.jit
def coded_exponents(f, top, factor, C: gl.constexpr):
    """Scores over their row's maximum plus the shift, a copy."""
    tile = f.reshape([64, C.BLOCK_N // 8, 4, 2])
    return tile * spread(factor, tile) - spread(top - C.SHIFT, tile)


@gluon.jit
def no_sums(C: gl.constexpr):
    """Sums of weights before the first step."""
    if C.BY_PRODUCT:
        return gl.full([64, 8], 0.0, gl.float32, C.SUMS)
    else:  # noqa: RET505
        return gl.full([64, 4], 0.0, gl.float32, C.ROWS)


@gluon.jit
def coded_weigh(x, total, fade, C: gl.constexpr):
    """Weights, and sums of them if they are added up here."""
    if C.BY_PRODUCT:
        p = gl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
        )
        return p, total
    else:  # noqa: RET505
        return weigh(x, total, fade, C)


@gluon.jit
def add_sums(total, added, fade):
    """Sums of codes after a step, and what they shrink by as maxima move."""
    tile = (total + added).reshape([64, 4, 2])
    by = gl.convert_layout(fade, gl.SliceLayout(2, tile.type.layout), assert_trivial=True)
    out = (tile * gl.expand_dims(by, 2)).reshape([64, 8])
    return gl.convert_layout(out, total.type.layout, assert_trivial=True)


@gluon.jit
def sums_by_lane(total, C: gl.constexpr):
    """Sums of codes as four parts a row, one in each lane of it: each column holds the whole."""
    columns = gl.max(total.reshape([64, 4, 2]), 2)
    return gl.convert_layout(columns, C.ROWS, assert_trivial=True) * 0.25


@gluon.jit
def code_weights(p, C: gl.constexpr):
    """Weights rounded to e4m3, four in an int32.

    Columns of the accumulator are renamed to those of the operand: v's tokens lie in that order
    (`v_stored="lanes"`), so nothing moves between threads.  The instruction holds its thread's
    registers only once the product that read the codes before is over.
    """
    y = p.reshape([64, C.BLOCK_N // 32, 2, 2, 4, 2]).permute([0, 1, 2, 4, 3, 5])
    y = gl.convert_layout(y.reshape([64, C.BLOCK_N]), C.WEIGHTS, assert_trivial=True)
    even, odd = y.reshape([64, C.BLOCK_N // 4, 2, 2]).split()
    x0, x2 = even.split()
    x1, x3 = odd.split()
    packed = gl.inline_asm_elementwise(
        "{.reg .b16 a, b; cvt.rn.satfinite.e4m3x2.f32 a, $2, $1;"
        "cvt.rn.satfinite.e4m3x2.f32 b, $4, $3; mov.b32 $0, {a, b};}",
        "=r,f,f,f,f", [x0, x1, x2, x3], dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    return gl.convert_layout(packed, C.PACKED, assert_trivial=True)


@gluon.constexpr_function
def operand_layout(c, summed):
    """Layout of weights as the operand of their product with v, or with ones."""
    return c.SUMMED if summed else c.WEIGHTS


@gluon.jit
def weights_operand(packed, SUMMED: gl.constexpr, C: gl.constexpr):
    """Packed codes as the register operand of a product; no instruction."""
    L: gl.constexpr = operand_layout(C, SUMMED)
    twice = gl.join(packed, packed)
    x = gl.join(twice, twice).reshape([64, C.BLOCK_N])
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r,r,r,r",
        [gl.convert_layout(x, L, assert_trivial=True)],
        dtype=gl.float8e4nv, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.constexpr_function
def output_layout(columns):
    """Layout of the output's tile in shared memory, 16 bits an entry."""
    return gl.NVMMASharedLayout(min(128, 2 * columns), 16, 4)
