"""Which tile comes next: from the counter through the lists to a note for the consumers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from kdsl.kernels.attention.hopper.choices import note_layout

# --- template ---


@gluon.jit
def read_note(notes, note_full, at, phase):
    """The next tile: its number, full steps, steps (0: there is none), first list entry."""
    mbarrier.wait(note_full.index(at), phase)
    x = notes.index(at).load(note_layout(4))
    field = gl.arange(0, 4, layout=note_layout(4))
    return (
        gl.sum(gl.where(field == 0, x, 0), 0),
        gl.sum(gl.where(field == 1, x, 0), 0),
        gl.sum(gl.where(field == 2, x, 0), 0),
        gl.sum(gl.where(field == 3, x, 0), 0),
    )


@gluon.jit
def place_of(tile, first, WG: gl.constexpr, sizes, C: gl.constexpr):
    """Batch item, head, row of mask blocks, first stored query of a warpgroup, first list entry."""
    heads, rows = sizes[0], sizes[1]
    flat = tile // C.SPLIT_M
    batch = flat // (heads * rows)
    head = flat // rows % heads
    row = flat % rows
    return batch, head, row, row * C.MASK_M + tile % C.SPLIT_M * C.BLOCK_M + WG * 64, first


@gluon.jit
def look_up(work, lists, sizes, C: gl.constexpr):
    """A piece of work as a note holds it."""
    start, full, partial, tiles = lists[0], lists[1], lists[2], lists[4]
    heads, rows = sizes[0], sizes[1]
    total = sizes[4]
    inside = work < total
    work = gl.minimum(work, total - 1)
    batch = work // (C.SPLIT_M * heads * rows)
    tile = gl.load(tiles + work // C.SPLIT_M % (heads * rows))
    entry = batch.to(gl.int64) * sizes[5] + (tile // rows).to(gl.int64) * sizes[6] + tile % rows
    first, n_full, n_partial = (
        gl.load(start + entry),
        gl.load(full + entry),
        gl.load(partial + entry),
    )
    empty = n_full + n_partial == 0
    tile = (batch * heads * rows + tile) * C.SPLIT_M + work % C.SPLIT_M
    n = gl.where(empty, 1, (n_full + n_partial) * C.SPLIT_N)
    return (
        tile,
        n_full * C.SPLIT_N,
        gl.where(inside, n, 0),
        gl.where(empty, -1, first),
    )


@gluon.jit
def claim(counter, total):
    """The next piece of work.  The last claim of a launch sets the counter back for the next one:

    `total` pieces less the programs' first ones are handed out, and each program is refused once.
    """
    ticket = gl.inline_asm_elementwise(
        "{.reg .pred p; .reg .b32 t; mov.u32 t, %laneid; setp.eq.u32 p, t, 0; mov.u32 t, 0;"
        "@p atom.global.add.u32 t, [$1], 1; shfl.sync.idx.b32 $0, t, 0, 0x1f, 0xffffffff; }",
        "=r,l", [counter.to(gl.int64)], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    gl.store(counter, 0, mask=ticket == total - 1)
    return gl.num_programs(0) + ticket


@gluon.jit
def write_note(notes, note_full, note_empty, at, phase, tile, n_full, n, first):
    """Hand a tile over to the consumers."""
    field = gl.arange(0, 4, layout=note_layout(1))
    x = gl.where(field == 0, tile, gl.where(field == 1, n_full, gl.where(field == 2, n, first)))
    mbarrier.wait(note_empty.index(at), phase)
    notes.index(at).store(x)
    mbarrier.arrive(note_full.index(at), count=1)
