"""Lines of memory brought together from several tensors in one pass: Triton, sm_80 and later.

A program takes `ROWS` lines.  Lines are words of eight bytes, whatever numbers they hold, so that a
warp's loads are wide without knowing how addresses are aligned beyond that.
"""

import triton
import triton.language as tl


@triton.jit
def gather_lines(
    first, second, third, index, out, second_at, third_at, count,
    WORDS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``out[i]`` is line ``index[i]`` of three tensors one behind the other, ``[lines, WORDS]``
    each, contiguous; those of ``second`` begin at number ``second_at``."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    at = tl.load(index + rows, mask=inside, other=0).to(tl.int64)
    place, last = second + (at - second_at) * WORDS, third + (at - third_at) * WORDS
    place = tl.where(at < third_at, place, last)
    line = tl.where(at < second_at, first + at * WORDS, place)
    columns = tl.arange(0, WIDTH)
    there = inside[:, None] & (columns < WORDS)[None, :]
    words = tl.load(line[:, None] + columns[None, :], mask=there, other=0)
    tl.store(out + rows[:, None] * WORDS + columns[None, :], words, mask=there)
