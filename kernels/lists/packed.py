"""Partial blocks as bits, made once for lists that stay: what kernels look up in place of a leaf.

Blocks that keep the same pairs share their words: all diagonal ones of a causal mask are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention import generate
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATE = Path(__file__).parent / "pairs.py"
SLAB = 1 << 14
"""Blocks whose hashes are made together: 256 MiB of 64-bit products for blocks of 128 x 128."""
MOST_BYTES = 1 << 28
"""Memory beyond which a mask is left to its leaf."""


def words(spec: Attention) -> int:
    """Words that hold a row of a block for one lane: 128 columns each."""
    return max(spec.block[1] // 128, 1)


def block_bytes(spec: Attention) -> int:
    """Of the words of one block."""
    return spec.block[0] * words(spec) * 4 * 4


def source(spec: Attention) -> str:
    """The generated file that makes them."""
    return generate.source(spec, TEMPLATE)


def of_lists(
    spec: Attention, load: Callable[[str], Any], lists: Any, tables: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row's numbers begin ``[batch or 1, heads or 1, rows]``, the numbers of partial
    blocks, and words ``[blocks, queries / 64, words, 64, 4]``; all int32.

    ``lists`` are `kdsl.kernels.attention.launch.Lists`, ``load`` imports a generated file.  The
    host waits for the device.
    """
    import torch

    counts = lists.partial.reshape(-1)
    total = int(counts.sum())
    begin = (counts.cumsum(0) - counts).to(torch.int32)
    groups, wide = spec.block[0] // 64, words(spec)
    shape = (max(total, 1), groups, wide, 64, 4)
    out = torch.zeros(shape, dtype=torch.int32, device=counts.device)
    if not total:
        return begin.view_as(lists.start), out.new_zeros(1), out
    line = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    step = torch.arange(total, device=counts.device) - begin[line]
    at = (lists.start + lists.full).reshape(-1)[line] + step
    columns = lists.index[at].contiguous()
    rows, item = line % lists.rows, line // lists.rows
    heads = lists.start.shape[1]
    batches, heads, rows = (x.to(torch.int32) for x in (item // heads, item % heads, rows))
    load(source(spec)).pack_pairs[(total * groups,)](
        out, batches, heads, rows, columns, tuple(tables),
        spec.query_grid.tokens, spec.key_grid.tokens,
        MASK_M=spec.block[0], MASK_N=spec.block[1], WORDS=wide, num_warps=4,
    )  # fmt: skip
    number, kept = shared(out.view(total, -1))
    return begin.view_as(lists.start), number, kept.view(-1, *shape[1:])


def _slabs(x: Tensor) -> list[Tensor]:
    return [x[i : i + SLAB] for i in range(0, len(x), SLAB)]


def shared(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers int32 ``[n]`` and different lines ``[m, words]``: line i is ``kept[number[i]]``.

    Lines are told apart by a 64-bit hash, and compared.
    """
    import torch

    g = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (lines.shape[1],), generator=g).to(lines.device)
    slabs = [(part.to(torch.int64) * factors).sum(1) for part in _slabs(lines)]
    _, number = torch.unique(torch.cat(slabs), return_inverse=True)
    some = torch.empty(int(number.max()) + 1, dtype=torch.int64, device=lines.device)
    some[number] = torch.arange(len(lines), device=lines.device)
    kept = lines[some]
    same = all(
        torch.equal(part, kept[at]) for part, at in zip(_slabs(lines), _slabs(number), strict=True)
    )
    if not same:  # two lines of one hash: all stay
        return torch.arange(len(lines), dtype=torch.int32, device=lines.device), lines
    return number.to(torch.int32), kept
