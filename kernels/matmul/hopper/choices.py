"""Constants, layouts and small tools of the Hopper matmul template."""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# --- template ---


@dataclass(frozen=True)
class Choices:
    """Constants of a compilation, under one name."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    CONSUMERS: int
    STAGES: int
    CHUNKS: int
    BUFFERS: int
    GROUP: int
    INTEGER: bool
    ZEROS: bool
    BIAS: bool
    RESIDUAL: bool
    ACTIVATION: int

    @property
    def ROWS(self):
        """Rows of a tile that one warpgroup computes."""
        return self.BLOCK_M // self.CONSUMERS

    @property
    def WIDTH(self):
        """Columns of a chunk of the output."""
        return self.BLOCK_N // self.CHUNKS

    @property
    def SUM(self):
        """Type of the accumulator."""
        return gl.int32 if self.INTEGER else gl.float32

    @property
    def STEP(self):
        """Bytes that arrive for a step of K."""
        return (self.BLOCK_M + self.BLOCK_N) * self.BLOCK_K


@gluon.constexpr_function
def chosen(*values):
    """The constants in the order of `Choices`."""
    return Choices(*(getattr(v, "value", v) for v in values))


@gluon.constexpr_function
def columns_layout(c, columns):
    """Layout of so many columns of the accumulator.

    Integer products have 128 columns at a time: of 256 Triton 3.6 knows none.
    """
    widest = min(columns, 128 if c.INTEGER else 256)
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, widest, 32])


@gluon.constexpr_function
def stored_layout(columns, bits):
    """Layout of rows of the output in shared memory."""
    return gl.NVMMASharedLayout(min(128, columns * bits // 8), bits, 2)


@gluon.jit
def advance(at, phase, STAGES: gl.constexpr):
    """The next place of a ring, and its phase."""
    if STAGES == 1:
        return at, phase ^ 1
    wrap = at + 1 == STAGES
    return gl.where(wrap, 0, at + 1), gl.where(wrap, phase ^ 1, phase)


@gluon.jit
def place_of(tile, sizes, C: gl.constexpr):
    """Row and column of a tile: GROUP rows of tiles at a time, down first, so that what they share
    stays in the L2 cache."""
    down, across = sizes[3], sizes[4]
    group = tile // (C.GROUP * across)
    rest = tile - group * (C.GROUP * across)
    rows = gl.minimum(down - group * C.GROUP, C.GROUP)
    return group * C.GROUP + rest % rows, rest // rows
