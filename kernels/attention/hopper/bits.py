"""Partial blocks from bits: which pairs of a tile a mask keeps, looked up and not worked out.

The last three tables of the call hold them (`kdsl.kernels.lists.packed`): where the blocks of a row
begin in the second one, whose numbers say which words of the third are a block's.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kdsl.kernels.attention.hopper.leaves import tile_facts
from kdsl.kernels.attention.hopper.softmax import column_of, hide, spread

# --- template ---


NOTHING = gl.constexpr(-(2**31))
"""Noted of a row without any block."""


@gluon.jit
def first_bits(tile, n_full, first, tables, sizes, C: gl.constexpr):
    """Where the numbers of a tile's partial blocks begin, less its full ones: step i's comes i
    blocks behind."""
    flat = tile // C.SPLIT_M
    heads, rows = sizes[0], sizes[1]
    batch = flat // (heads * rows)
    entry = batch.to(gl.int64) * sizes[5] + (flat // rows % heads).to(gl.int64) * sizes[6]
    begin = gl.load(tables[C.BITS - 1] + entry + flat % rows)
    return gl.where(first < 0, NOTHING, begin - n_full // C.SPLIT_N)


@gluon.jit
def number_of(step, n, first, tables, C: gl.constexpr):
    """Whose words a partial step takes; negative past the end, and in a row without any block."""
    inside = (first != NOTHING) & (step < n)
    at = gl.where(inside, first + step // C.SPLIT_N, 0)
    return gl.load(tables[C.BITS] + at, mask=inside, other=-1)


@gluon.jit
def words_of(number, step, place, tables, C: gl.constexpr):
    """A thread's bits of a step, [64, 4]: those of its row in columns 8 i + 2 lane + (0, 1)."""
    rows = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, C.ROWS)), 1)
    lanes = gl.expand_dims(gl.arange(0, 4, layout=gl.SliceLayout(0, C.ROWS)), 0)
    part = step % C.SPLIT_N * (C.BLOCK_N // 64)
    group = place[3] % C.MASK_M // 64
    line = (gl.maximum(number, 0) * (C.MASK_M // 64) + group) * C.WORDS + part // 2
    at = tables[C.BITS + 1] + line.to(gl.int64) * 256
    seen = (number >= 0) & (rows >= 0) & (lanes >= 0)
    words = gl.load(at + rows * 4 + lanes, mask=seen, other=0)
    if C.BLOCK_N == 64:
        words = words >> (part % 2 * 16)
    return words


@gluon.jit
def drop(s, words, C: gl.constexpr):
    """Scores with those whose bit is 0 at minus infinity."""
    tile = s.reshape([64, C.BLOCK_N // 8, 4, 2])
    L: gl.constexpr = tile.type.layout
    AT: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, L))
    eights = gl.arange(0, C.BLOCK_N // 8, layout=gl.SliceLayout(1, AT))
    pairs = gl.arange(0, 2, layout=gl.SliceLayout(0, AT))
    bit = gl.expand_dims(eights, 1) * 2 + gl.expand_dims(pairs, 0)
    one = gl.expand_dims(gl.expand_dims(gl.full_like(bit, 1) << bit, 0), 2)
    seen = (spread(words, tile) & one) != 0
    tile = gl.where(seen, tile, -float("inf"))
    return gl.convert_layout(tile.reshape([64, C.BLOCK_N]), C.SCORES, assert_trivial=True)


@gluon.jit
def looked_up(step, n, first, lists, tables, C: gl.constexpr):
    """What says which pairs a partial step keeps: its column, or the number of its words."""
    if C.BITS:
        return number_of(step, n, first, tables, C)
    else:  # noqa: RET505
        return column_of(step, n, first, lists, C)


@gluon.jit
def known_of(what, step, place, tables, C: gl.constexpr):
    """What a partial step must know of its pairs: truths about its block, or its words."""
    if C.BITS:
        return words_of(what, step, place, tables, C)
    else:  # noqa: RET505
        return tile_facts(place[2], what, place[1], place[0], tables)


@gluon.jit
def keep_seen(s, step, what, known, place, tables, sizes, C: gl.constexpr):
    """Scores of a partial step with what the mask drops at minus infinity."""
    if C.BITS:
        return drop(s, known, C)
    else:  # noqa: RET505
        return hide(s, step, what, known, place, tables, sizes, C)
