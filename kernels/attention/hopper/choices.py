"""Constants, layouts and small tools of the Hopper template."""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# --- template ---


@dataclass(frozen=True)
class Choices:
    """Constants of a compilation, under one name."""

    D0: int
    D1: int
    GROUP: int
    MASK_M: int
    MASK_N: int
    BLOCK_N: int
    CONSUMERS: int
    K_STAGES: int
    V_STAGES: int
    EARLY: bool
    PINGPONG: bool
    PERSISTENT: bool
    DESCRIBED: bool
    LSE: bool
    SLACK: float
    BITS: int = 0
    """0, or the place of the second of the tables that hold partial blocks as bits."""

    @property
    def WORDS(self):
        """Words that hold a row of a mask block for one of four lanes: 128 columns each."""
        return max(self.MASK_N // 128, 1)

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
    def ROW_BYTES(self):
        """Bytes of a row of Q, K or V."""
        return 2 * (self.D0 + self.D1)

    @property
    def SCORES(self):
        """Layout of scores."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, self.BLOCK_N, 16])

    @property
    def OUT(self):
        """Layout of the output's first part."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, self.D0, 16])

    @property
    def TAIL(self):
        """Layout of the output's second part."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(self.D1, 8), 16])

    @property
    def PACKED(self):
        """Layout of pairs of scores, [64, BLOCK_N / 2]."""
        registers = [[8, 0]] + [[0, 4 << i] for i in range((self.BLOCK_N // 8).bit_length() - 1)]
        lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
        shape = [64, self.BLOCK_N // 2]
        return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], shape)

    @property
    def ROWS(self):
        """Layout of [64, 4]: a value a row, in each of the four lanes that share a row."""
        lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
        return gl.DistributedLinearLayout([[8, 0]], lanes, [[16, 0], [32, 0]], [], [64, 4])


@gluon.constexpr_function
def chosen(*values):
    """The constants in the order of `Choices`."""
    return Choices(*(getattr(v, "value", v) for v in values))


@gluon.constexpr_function
def part_layout(c, tail):
    """Layout of the output's first or second part."""
    return c.TAIL if tail else c.OUT


@gluon.constexpr_function
def part_width(c, tail):
    """Columns of the output's first or second part."""
    return c.D1 if tail else c.D0


@gluon.constexpr_function
def note_layout(warps):
    """Layout of a note of four numbers: all of it in every thread."""
    return gl.BlockedLayout([4], [32], [warps], [0])


@gluon.constexpr_function
def stored_layout(columns):
    """Layout of [64, columns] of 16-bit numbers in which a thread holds 16 bytes of a row."""
    lanes = columns // 8
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])


@gluon.jit
def advance(at, phase, STAGES: gl.constexpr):
    """The next place of a ring, and its phase."""
    if STAGES == 1:
        return at, phase ^ 1
    wrap = at + 1 == STAGES
    return gl.where(wrap, 0, at + 1), gl.where(wrap, phase ^ 1, phase)


@gluon.constexpr_function
def barrier_code(kind, number, threads):
    """PTX of a named barrier; the token keeps it in its place."""
    return f"bar.{kind} {number}, {threads}; mov.u32 $0, $1;"


@gluon.jit
def named(KIND: gl.constexpr, NUMBER: gl.constexpr, THREADS: gl.constexpr, token):
    """Wait ("sync") or arrive ("arrive") at a named barrier."""
    gl.inline_asm_elementwise(
        barrier_code(KIND, NUMBER, THREADS), "=r,r", [token],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def apart(x):
    """`x`, the same in all threads of a warp, as a value of its own to ptxas.

    Two loops, one behind the other, may each be skipped.  What both make of `x` before they start,
    ptxas 12.8 makes before the first one alone: if that is skipped, the second reads a stale
    register (docs/performance.md, "Hopper forward").
    """
    return gl.inline_asm_elementwise(
        "shfl.sync.idx.b32 $0, $1, 0, 0x1f, 0xffffffff;", "=r,r", [x],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
