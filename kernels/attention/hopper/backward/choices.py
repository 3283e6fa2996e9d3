"""Constants, layouts and small tools of the Hopper template's backward."""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# --- template ---


@dataclass(frozen=True)
class Cut:
    """Constants of a compilation, under one name.

    A program keeps its own tokens, 64 a warpgroup, and takes those of the other side in steps.
    """

    D0: int
    D1: int
    GROUP: int
    MASK_OWN: int
    MASK_STEP: int
    STEP: int
    CONSUMERS: int
    STAGES: int
    SPREAD: bool

    @property
    def OWN(self):
        """Tokens of a tile."""
        return 64 * self.CONSUMERS

    @property
    def SPLIT(self):
        """Steps of a mask block."""
        return self.MASK_STEP // self.STEP

    @property
    def HALVES(self):
        """Pieces of 64 tokens of a step."""
        return self.STEP // 64

    @property
    def ROW_BYTES(self):
        """Bytes of a row."""
        return 2 * (self.D0 + self.D1)

    @property
    def SCORES(self):
        """Layout of scores, own tokens by those of a step."""
        return accumulator_layout(self.STEP)

    @property
    def HEAD(self):
        """Layout of a gradient's first part."""
        return accumulator_layout(self.D0)

    @property
    def TAIL(self):
        """Layout of a gradient's second part."""
        return accumulator_layout(max(self.D1, 8))


@gluon.constexpr_function
def cut(*values):
    """The constants in the order of `Cut`."""
    return Cut(*(getattr(v, "value", v) for v in values))


@gluon.constexpr_function
def accumulator_layout(columns):
    """Layout of a product [64, columns] of a warpgroup."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def flat_layout(columns):
    """The same registers as a line of numbers, four neighbours in each thread.

    A warp's four numbers by 32 threads lie side by side: 512 bytes.
    """
    groups = columns // 8
    registers = [[1], [2]] + [[128 << i] for i in range(groups.bit_length() - 1)]
    lanes = [[4 << i] for i in range(5)]
    warps = [[128 * groups], [256 * groups]]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [64 * columns])


@gluon.jit
def flattened(x, COLUMNS: gl.constexpr):
    """A product [64, COLUMNS] as that line; no instruction."""
    x = x.reshape([4, 2, 8, COLUMNS // 8, 4, 2]).permute([0, 3, 2, 4, 1, 5])
    L: gl.constexpr = flat_layout(COLUMNS)
    return gl.convert_layout(x.reshape([64 * COLUMNS]), L, assert_trivial=True)


@gluon.jit
def unflattened(x, COLUMNS: gl.constexpr):
    """The line as a product [64, COLUMNS]; no instruction."""
    x = x.reshape([4, COLUMNS // 8, 8, 4, 2, 2]).permute([0, 4, 2, 1, 3, 5])
    L: gl.constexpr = accumulator_layout(COLUMNS)
    return gl.convert_layout(x.reshape([64, COLUMNS]), L, assert_trivial=True)


@gluon.jit
def fresh(value, token):
    """A value that the compiler takes for a new one in each step: what depends on it is computed
    there.  Descriptors of tiles that never move would else hold registers all along.
    """
    return value + gl.inline_asm_elementwise(
        "mov.u32 $0, 0;", "=r,r", [token], dtype=gl.int32, is_pure=False, pack=1
    )
