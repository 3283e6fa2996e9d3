"""Lists of blocks from maps of blocks: the Triton kernels (any capability that Triton knows).

A program owns whole lines of a map, so that nothing is added by several: results are the same bits
every time.  A line is a row of blocks, or with `TURNED` a column, as the gradients of keys walk it.
"""

import triton
import triton.language as tl


@triton.jit
def truth(base, line, entry, m_row, m_column, inside, TURNED: tl.constexpr, BITS: tl.constexpr):
    """Entries of a map of bytes, or of bits (little-endian along columns)."""
    row = entry if TURNED else line
    column = line if TURNED else entry
    if BITS:
        at = row.to(tl.int64) * m_row + (column // 8).to(tl.int64) * m_column
        x = tl.load(base + at, mask=inside, other=0).to(tl.int32)
        return (x >> (column % 8)) & 1
    else:  # noqa: RET505
        at = row.to(tl.int64) * m_row + column.to(tl.int64) * m_column
        return tl.load(base + at, mask=inside, other=0).to(tl.int32)


@triton.jit
def kinds(
    full_base, partial_base, f_row, f_column, p_row, p_column, line, entry, lines, entries,
    TURNED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Of a tile of a map: what is kept whole, and what in part (which wins where both are said)."""
    inside = (line < lines) & (entry < entries)
    x = truth(full_base, line, entry, f_row, f_column, inside, TURNED, FORM == "bits")
    if FORM == "codes":
        return (x == 1).to(tl.int32), (x == 2).to(tl.int32)
    else:  # noqa: RET505
        whole = (x != 0).to(tl.int32)
        part = whole * 0
        if partial_base is not None:
            y = truth(partial_base, line, entry, p_row, p_column, inside, TURNED, FORM == "bits")
            part = (y != 0).to(tl.int32)
        return whole * (1 - part), part


@triton.jit
def list_lines(
    full_map, partial_map, start, full, partial, overflow, index,
    f_b, f_h, f_row, f_column, p_b, p_h, p_row, p_column,
    heads, lines, entries, capacity, shared,
    FORM: tl.constexpr, TURNED: tl.constexpr, RAGGED: tl.constexpr,
    LINES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Lists of `LINES` lines of one head: full entries first, each kind ascending.

    With `RAGGED` a full last entry counts as partial: it is the last full one, so that only the
    border moves.  A line with more than `capacity` entries points at `shared`, where every entry
    stands in part, and its `overflow` is 1.
    """
    tiles = tl.cdiv(lines, LINES)
    item = tl.program_id(0) // tiles
    line = (tl.program_id(0) % tiles * LINES + tl.arange(0, LINES))[:, None]
    batch, head = item // heads, item % heads
    f_base = full_map + batch.to(tl.int64) * f_b + head.to(tl.int64) * f_h
    p_base = partial_map
    if partial_map is not None:
        p_base = partial_map + batch.to(tl.int64) * p_b + head.to(tl.int64) * p_h

    n_full = tl.zeros([LINES], tl.int32)
    n_partial = tl.zeros([LINES], tl.int32)
    n_ragged = tl.zeros([LINES], tl.int32)
    for first in tl.range(0, entries, CHUNK):
        entry = (first + tl.arange(0, CHUNK))[None, :]
        whole, part = kinds(
            f_base, p_base, f_row, f_column, p_row, p_column, line, entry, lines, entries,
            TURNED, FORM,
        )  # fmt: skip
        n_full += tl.sum(whole, 1)
        n_partial += tl.sum(part, 1)
        if RAGGED:
            n_ragged += tl.sum(tl.where(entry == entries - 1, whole, 0), 1)

    fits = n_full + n_partial <= capacity
    own = item * lines + tl.program_id(0) % tiles * LINES + tl.arange(0, LINES)
    there = tl.program_id(0) % tiles * LINES + tl.arange(0, LINES) < lines
    begin = own * capacity
    tl.store(start + own, tl.where(fits, begin, shared), mask=there)
    tl.store(full + own, tl.where(fits, n_full - n_ragged, 0), mask=there)
    tl.store(partial + own, tl.where(fits, n_partial + n_ragged, entries), mask=there)
    tl.store(overflow + own, tl.where(fits, 0, 1).to(tl.uint8), mask=there)

    at_full = begin
    at_partial = begin + n_full
    writes = (fits & there)[:, None]
    for first in tl.range(0, entries, CHUNK):
        entry = (first + tl.arange(0, CHUNK))[None, :]
        whole, part = kinds(
            f_base, p_base, f_row, f_column, p_row, p_column, line, entry, lines, entries,
            TURNED, FORM,
        )  # fmt: skip
        column = entry + line * 0
        place = at_full[:, None] + tl.cumsum(whole, 1) - 1
        tl.store(index + place, column, mask=writes & (whole != 0))
        at_full += tl.sum(whole, 1)
        if partial_map is not None or FORM == "codes":
            place = at_partial[:, None] + tl.cumsum(part, 1) - 1
            tl.store(index + place, column, mask=writes & (part != 0))
            at_partial += tl.sum(part, 1)

    if capacity < entries and tl.program_id(0) == 0:
        for first in tl.range(0, entries, CHUNK):
            every = first + tl.arange(0, CHUNK)
            tl.store(index + shared + every, every, mask=every < entries)


@triton.jit
def listed(full, partial, head, line, l_b, l_h, inside, batches, SUMMED: tl.constexpr):
    """Entries of lines, summed over the batch and over neighbouring heads that make one tile."""
    found = tl.zeros_like(head + line)
    for batch in range(batches):
        for i in tl.static_range(SUMMED):
            at = batch * l_b + (head * SUMMED + i) * l_h + line
            found += tl.load(full + at, mask=inside, other=0)
            found += tl.load(partial + at, mask=inside, other=0)
    return found


@triton.jit
def order_tiles(
    full, partial, tiles, l_b, l_h, batches, groups, lines,
    SUMMED: tl.constexpr, GROUPS: tl.constexpr, LINES: tl.constexpr, CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Places of `LINES` lines of one head in the order of tiles, found by counting who is before.

    Heads with most entries come first, in each its longest lines; ties go by number.
    """
    group = tl.program_id(0)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    own = listed(full, partial, group + line * 0, line, l_b, l_h, line < lines, batches, SUMMED)
    before = tl.zeros([LINES], tl.int32)
    for first in tl.range(0, lines, CHUNK):
        other = first + tl.arange(0, CHUNK)
        there = other < lines
        count = listed(full, partial, group + other * 0, other, l_b, l_h, there, batches, SUMMED)
        longer = count[None, :] > own[:, None]
        tied = (count[None, :] == own[:, None]) & (other[None, :] < line[:, None])
        before += tl.sum(((longer | tied) & there[None, :]).to(tl.int32), 1)

    every = tl.arange(0, GROUPS)
    wide = tl.zeros([GROUPS, WIDE], tl.int32)
    for first in tl.range(0, lines, WIDE):
        other = first + tl.arange(0, WIDE)
        there = (every[:, None] < groups) & (other[None, :] < lines)
        wide += listed(
            full, partial, every[:, None], other[None, :], l_b, l_h, there, batches, SUMMED
        )
    total = tl.sum(wide, 1)
    mine = tl.sum(tl.where(every == group, total, 0), 0)
    first_heads = (total > mine) | ((total == mine) & (every < group))
    rank = tl.sum((first_heads & (every < groups)).to(tl.int32), 0)
    tl.store(tiles + rank * lines + before, group * lines + line, mask=line < lines)


@triton.jit
def mark_blocks(
    start, full, partial, index, codes, l_b, l_h, heads, rows, columns, CHUNK: tl.constexpr
):
    """Codes of the blocks that one row lists: 1 whole, 2 in part; the map was zero before."""
    item, row = tl.program_id(0) // rows, tl.program_id(0) % rows
    batch, head = item // heads, item % heads
    at = batch * l_b + head * l_h + row
    n_full = tl.load(full + at)
    n = n_full + tl.load(partial + at)
    first = tl.load(start + at)
    line = codes + tl.program_id(0).to(tl.int64) * columns
    for i in tl.range(0, n, CHUNK):
        entry = i + tl.arange(0, CHUNK)
        column = tl.load(index + first + entry, mask=entry < n, other=0)
        code = tl.where(entry < n_full, 1, 2).to(tl.uint8)
        tl.store(line + column, code, mask=entry < n)
