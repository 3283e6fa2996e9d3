"""The lists that one call of attention needs, from the values of its tables on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsl.errors import InputError, UnsupportedError
from kdsl.expr.tables import Table
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.backward.launch import summed
from kdsl.kernels.lists import launch as lists
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATE = Path(__file__).parent / "classify.py"
STRIP_PAIRS = 2048
"""Pairs of a block that are evaluated before it is asked whether more must be."""
MOST_BLOCKS = 2**31 - 1


def map_of(spec: Attention) -> Table | None:
    """The table that is the whole mask, where the mask is one map of blocks and nothing else."""
    first = spec.mask.variants[0]
    if len(spec.mask.variants) > 1 or first.op != "blocks":
        return None
    return next(t for t in spec.tables if t.name == first.data.name)


def lead(spec: Attention, batch: int) -> tuple[int, int]:
    """Batch items and heads whose rows differ: 1 where all have the same."""
    spoken = {n for e in spec.element_mask.variants for n in e.variables()}
    several = len(spec.mask.variants) > 1 or "head" in spoken
    several = several or len({*spec.query_order.parts}) > 1 or len({*spec.kv_order.parts}) > 1
    return batch if "batch" in spoken else 1, spec.heads if several else 1


def sizes(spec: Attention) -> tuple[int, int]:
    """Rows and columns of blocks."""
    queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
    return -(-queries // spec.block[0]), -(-keys // spec.block[1])


def check_shapes(spec: Attention, tables: Sequence[Tensor]) -> None:
    """InputError where a table has another shape than the spec says."""
    for table, x in zip(leaf_tables.tables(spec), tables, strict=True):
        if tuple(x.shape) != table.shape:
            raise InputError(
                f"table {table.name!r} has shape {table.shape}, got {tuple(x.shape)}",
                where=repr(table),
            )


def of_call(
    spec: Attention, module: Any, tables: Sequence[Tensor], batch: int, inverted: bool
) -> list[Tensor]:
    """Start, full, partial, index and tiles of the forward, and if asked the inverted ones.

    ``tables`` are those that the leaves read, in their order; ``module`` is the generated file of
    `TEMPLATE`, which is not used where the mask is a map of blocks.  Values are not looked at: what
    lies outside a table's range is the caller's to prevent.
    """
    check_shapes(spec, tables)
    if batch > spec.batch_limit:
        raise InputError(f"a batch of {batch}", hint=f"{spec.batch_limit}, as the tables hold")
    held = map_of(spec)
    if held is None:
        found = classified(spec, module, tables, batch)
    else:
        names = [t.name for t in leaf_tables.tables(spec)]
        found = tables[names.index(held.name)][None]
    ragged = [
        bool(grid.tokens % size)
        for grid, size in zip((spec.query_grid, spec.key_grid), spec.block, strict=True)
    ]
    rows = lists.from_map(found, ragged=ragged[1], codes=held is None)
    out = [rows.start, rows.full, rows.partial, rows.index, lists.order(rows, spec.heads)]
    if inverted:
        turned = lists.from_map(found, ragged=ragged[0], turned=True, codes=held is None)
        tiles = lists.order(turned, spec.heads, summed(spec))
        out += [turned.start, turned.full, turned.partial, turned.index, tiles]
    return out


def empty(spec: Attention, device: Any, batch: int, inverted: bool) -> list[Tensor]:
    """What `of_call` returns, by shape alone."""
    import torch

    rows, columns = sizes(spec)
    held = map_of(spec)
    first = lead(spec, batch) if held is None else (1, held.shape[0])
    out: list[Tensor] = []
    turns = [(rows, columns, 1), (columns, rows, summed(spec))][: 2 if inverted else 1]
    for lines, entries, count in turns:
        shape = (*first, lines)
        places = max(first[0] * first[1] * lines * entries, 1)
        tiles = spec.heads // count * lines
        each = (shape, shape, shape, (places,), (tiles,))
        out += [torch.empty(n, dtype=torch.int32, device=device) for n in each]
    return out


def classified(spec: Attention, module: Any, tables: Sequence[Tensor], batch: int) -> Tensor:
    """Codes ``[batch or 1, heads or 1, rows, columns]`` of the mask's blocks, by its leaf."""
    import torch

    first, (rows, columns) = lead(spec, batch), sizes(spec)
    count = first[0] * first[1] * rows * columns
    if count > MOST_BLOCKS:
        raise UnsupportedError(f"{count} blocks to classify", hint="larger blocks")
    codes = torch.empty((*first, rows, columns), dtype=torch.uint8, device=tables[0].device)
    if count:
        m, n = spec.block
        module.classify_blocks[(count,)](
            codes, tuple(tables), first[1], rows, columns,
            spec.query_grid.tokens, spec.key_grid.tokens,
            MASK_M=m, MASK_N=n, STRIP=min(m, max(1, STRIP_PAIRS // n)), num_warps=4,
        )  # fmt: skip
    return codes
