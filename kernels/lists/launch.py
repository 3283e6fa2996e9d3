"""Lists of blocks made where they are used: from maps, from other lists, from the mask.

Every function launches on the current stream of its tensors' device, waits for nothing and looks at
no value, so that a CUDA graph can hold it; what it returns depends on its input alone, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsl.errors import InputError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES = 4096
"""Entries of a map that a program of `list_lines` holds."""
PAIRS = 4096
"""Counts that a program of `order_tiles` compares or adds at once."""


def _power(n: int) -> int:
    """The power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Rows:
    """Lists of blocks on a device, in the format of `kdsl.blocks.Blocks`; int32.

    ``start``, ``full``, ``partial``: ``[batch or 1, heads or 1, lines]``; ``index`` has
    ``capacity`` places a line.  ``overflow`` (uint8, like ``start``) is 1 where a line did not
    fit: it then lists every entry as partial, so that the mask's leaf still decides each pair.
    Unlike in `Blocks` a ragged last entry is never full: nothing but partial blocks is bounded.
    """

    start: Tensor
    full: Tensor
    partial: Tensor
    index: Tensor
    overflow: Tensor
    capacity: int
    entries: int
    """Blocks along the other side: columns for rows, rows for columns."""

    @property
    def strides(self) -> tuple[int, int]:
        """Entries of ``start`` between batch items and between heads; 0 where they are shared."""
        return strides(self.start)


def strides(start: Tensor) -> tuple[int, int]:
    """Entries of ``[batch or 1, heads or 1, lines]`` between batch items and between heads; 0 where
    they are shared."""
    batch, heads, _ = start.shape
    return start.stride(0) if batch > 1 else 0, start.stride(1) if heads > 1 else 0


def from_map(
    full: Tensor,
    partial: Tensor | None = None,
    *,
    columns: int | None = None,
    ragged: bool = False,
    turned: bool = False,
    capacity: int | None = None,
    codes: bool = False,
) -> Rows:
    """Lists from a map of blocks ``[batch, heads, rows, columns]``, any strides.

    ``full`` and ``partial`` are boolean (or bytes, not 0 meaning kept), or with ``columns`` given
    bits, uint8 ``[batch, heads, rows, ceil(columns / 8)]``, little-endian as `Blocks.pack` writes
    them.  With ``codes`` one map says both: 0 empty, 1 full, 2 partial.  ``ragged`` says that the
    last block along the listed side is not whole; ``turned`` lists the rows of each column.
    A line longer than ``capacity`` (default: no line is) becomes dense, see `Rows`.
    InputError for maps of other shapes or dtypes.
    """
    import torch

    from kdsl.kernels.lists.template import list_lines

    form = "codes" if codes else "bytes" if columns is None else "bits"
    maps = [_bytes(x, form) for x in (full, partial) if x is not None]
    batch, heads, rows, width = maps[0].shape
    if any(x.shape != maps[0].shape or x.device != maps[0].device for x in maps):
        raise InputError("the maps of full and partial blocks differ in shape or device")
    if columns is not None and width != -(-columns // 8):
        raise InputError(
            f"{width} bytes a row for {columns} columns", hint=f"{-(-columns // 8)} bytes"
        )
    lines, entries = rows, width if columns is None else columns
    if turned:
        lines, entries = entries, lines
    held = entries if capacity is None else min(capacity, entries)
    if held < 0:
        raise InputError(f"a capacity of {capacity} blocks a row", hint="0 or more")
    count = batch * heads * lines
    places = count * held + (entries if held < entries else 0)
    if places >= 2**31:
        raise SpecError(f"lists of {places} places", hint="a smaller capacity, or larger blocks")
    device = maps[0].device
    shape = (batch, heads, lines)
    start, n_full, n_partial = (
        torch.empty(shape, dtype=torch.int32, device=device) for _ in range(3)
    )
    overflow = torch.empty(shape, dtype=torch.uint8, device=device)
    index = torch.empty(max(places, 1), dtype=torch.int32, device=device)
    out = Rows(start, n_full, n_partial, index, overflow, held, entries)
    if not count:
        return out
    if not entries:
        for x in (start, n_full, n_partial, overflow, index):
            x.zero_()
        return out
    chunk = min(_power(entries), 1024 if not turned else 128)
    # Lines side by side are neighbours in memory when columns are listed.
    several = min(_power(lines), max(1, ENTRIES // chunk), 32 if turned else 4)
    strides = [n for x in (maps if len(maps) > 1 else maps * 2) for n in x.stride()]
    list_lines[(batch * heads * -(-lines // several),)](
        maps[0], maps[1] if len(maps) > 1 else None, start, n_full, n_partial, overflow, index,
        *strides, heads, lines, entries, held, count * held,
        FORM=form, TURNED=turned, RAGGED=ragged, LINES=several, CHUNK=chunk, num_warps=4,
    )  # fmt: skip
    return out


def _bytes(x: Tensor, form: str) -> Tensor:
    """A map as bytes; InputError for anything else."""
    import torch

    known = (torch.uint8, torch.bool) if form == "bytes" else (torch.uint8,)
    if x.ndim != 4 or x.dtype not in known:
        raise InputError(
            f"a map of blocks of {x.dtype} and shape {tuple(x.shape)}",
            hint="[batch, heads, rows, columns], boolean or uint8; bits and codes are uint8",
        )
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def order(rows: Rows, heads: int, summed: int = 1) -> Tensor:
    """``group * lines + line`` int32: heads with most blocks first, and in each its longest lines.

    Ties go by number.  ``summed`` neighbouring heads make one tile, as in the gradients of grouped
    keys; lengths are added over the batch.  The same order as `tile_order` on the host gives.
    """
    import torch

    from kdsl.kernels.lists.template import order_tiles

    batch, _, lines = rows.start.shape
    groups = heads // summed
    tiles = torch.empty(groups * lines, dtype=torch.int32, device=rows.start.device)
    if not groups * lines:
        return tiles
    wide = max(1, PAIRS // _power(groups))
    chunk = min(_power(lines), 256)
    own = min(_power(lines), max(1, PAIRS // chunk))
    order_tiles[(groups, -(-lines // own))](
        rows.full, rows.partial, tiles, *rows.strides, batch, groups, lines,
        SUMMED=summed, GROUPS=_power(groups), LINES=own, CHUNK=chunk,
        WIDE=min(_power(lines), wide), num_warps=8,
    )  # fmt: skip
    return tiles


def codes_of(rows: Rows) -> Tensor:
    """The map of codes ``[batch, heads, lines, entries]`` (uint8: 1 full, 2 partial) of lists."""
    import torch

    from kdsl.kernels.lists.template import mark_blocks

    shape = (*rows.start.shape, rows.entries)
    codes = torch.zeros(shape, dtype=torch.uint8, device=rows.start.device)
    if codes.numel():
        batch, heads, lines = rows.start.shape
        mark_blocks[(batch * heads * lines,)](
            rows.start, rows.full, rows.partial, rows.index, codes, *rows.strides, heads, lines,
            rows.entries, CHUNK=min(_power(rows.entries), 1024), num_warps=4,
        )  # fmt: skip
    return codes


def inverted(rows: Rows, *, ragged: bool = False, capacity: int | None = None) -> Rows:
    """The same blocks by column: for each key block the query blocks that visit it.

    ``ragged`` says that the last block of queries is not whole.  What ``rows`` hold as partial
    stays partial, a ragged last block of keys among it.
    """
    return from_map(codes_of(rows), codes=True, ragged=ragged, turned=True, capacity=capacity)
