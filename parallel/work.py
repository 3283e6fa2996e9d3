"""What there is to divide: the kept blocks of every head and row of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import InputError, reading
from kdsl.specs import Attention
from kdsl.specs.common import positive, whole

Longs = npt.NDArray[np.int64]
Runs = tuple[tuple[int, int], ...]
"""Stretches ``[first, end)`` of blocks, ascending, disjoint, none empty."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention: ``queries`` and ``keys`` in tokens, ``block`` = (queries, keys).

    The last block of either may be ragged.  Query head ``h`` reads key head ``h // group``.
    """

    heads: int
    kv_heads: int
    queries: int
    keys: int
    block: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "queries", "keys"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        if len(self.block) != 2:
            raise InputError(f"block={self.block!r}", hint="(queries, keys) of a block")
        block = tuple(positive(size, "block") for size in self.block)
        object.__setattr__(self, "block", block)
        if self.heads % self.kv_heads:
            raise InputError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}")

    @staticmethod
    def of(spec: Attention) -> Shape:
        """The sizes of an attention spec."""
        queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
        return Shape(spec.heads, spec.group_heads, queries, keys, spec.block)

    @property
    def rows(self) -> int:
        """Blocks along the queries."""
        return -(-self.queries // self.block[0])

    @property
    def columns(self) -> int:
        """Blocks along the keys."""
        return -(-self.keys // self.block[1])

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    def kv_of(self, heads: Iterable[int]) -> tuple[int, ...]:
        """Key heads that some query heads read, ascending, each once."""
        return tuple(sorted({h // self.group for h in heads}))

    def query_tokens(self, run: tuple[int, int]) -> tuple[int, int]:
        """Stored positions ``[first, end)`` of a run of row blocks; the last block is cut off."""
        size = self.block[0]
        return run[0] * size, min(run[1] * size, self.queries)

    def key_tokens(self, run: tuple[int, int]) -> tuple[int, int]:
        """Stored positions ``[first, end)`` of a run of key blocks."""
        size = self.block[1]
        return run[0] * size, min(run[1] * size, self.keys)

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"block": list(self.block)}

    @staticmethod
    @reading("shape")
    def from_json(value: Mapping[str, Any]) -> Shape:
        """The shape written by `to_json`."""
        whole(value, {f.name for f in fields(Shape)}, "shape")
        return Shape(**{**value, "block": tuple(value["block"])})


@dataclass(frozen=True, eq=False)
class BlockWork:
    """Kept blocks by head and row: all that a plan needs to balance.

    ``rows``: int64 ``[heads, row blocks]``, summed over the batch.  A ragged or partial block
    counts as one: a kernel spends a whole block on it.  ``blocks`` says which key blocks they are;
    it is needed for rings (who works on which chunk when) and for sending only needed keys, and may
    be None where neither is asked for.
    """

    shape: Shape
    rows: Longs
    blocks: Blocks | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        rows = np.ascontiguousarray(self.rows)
        wanted = (self.shape.heads, self.shape.rows)
        if rows.shape != wanted:
            raise InputError(f"row counts of shape {rows.shape}", hint=f"{wanted}: heads, rows")
        if rows.dtype.kind not in "iu":
            raise InputError(f"row counts of dtype {rows.dtype}", hint="integers: kept blocks")
        if rows.size and int(rows.min()) < 0:
            raise InputError(f"a row of {int(rows.min())} kept blocks")
        object.__setattr__(self, "rows", rows.astype(np.int64, copy=False))

    @staticmethod
    def of(blocks: Blocks, heads: int, kv_heads: int | None = None) -> BlockWork:
        """The work of rows of blocks; lists that all heads share count for each of them."""
        sizes = (blocks.queries, blocks.keys, blocks.block)
        shape = Shape(heads, kv_heads or heads, *sizes)
        held = blocks.counts.shape[1]
        if held not in (1, heads):
            raise InputError(f"rows of blocks of {held} heads", hint=f"1 or {heads} heads")
        counts = np.broadcast_to(
            blocks.counts.sum(axis=0, dtype=np.int64), (heads, blocks.counts.shape[2])
        )
        return BlockWork(shape, counts, blocks)

    @staticmethod
    def dense(shape: Shape) -> BlockWork:
        """Every block kept, where a mask is not known."""
        return BlockWork(shape, np.full((shape.heads, shape.rows), shape.columns, np.int64))

    @cached_property
    def heads(self) -> Longs:
        """Kept blocks of each head."""
        return np.asarray(self.rows.sum(axis=1), np.int64)

    @cached_property
    def tallest(self) -> Longs:
        """The most kept blocks of a row, for each head."""
        return np.asarray(self.rows.max(axis=1, initial=0), np.int64)

    @cached_property
    def total(self) -> int:
        """Kept blocks of all heads."""
        return int(self.heads.sum())

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """Which key blocks a row keeps in any batch item, ``[heads or 1, rows, columns / 8]``.

        Bits are little-endian along the columns.  InputError without ``blocks``.
        """
        if self.blocks is None:
            raise InputError(
                "which key blocks are kept is not known, only how many",
                hint="BlockWork.of(blocks, heads)",
            )
        full, partial = self.blocks.pack()
        either: npt.NDArray[np.uint8] = np.bitwise_or.reduce(full | partial, axis=0)
        return either

    def bits_of(self, head: int) -> npt.NDArray[np.uint8]:
        """`bits` of one query head, ``[rows, columns / 8]``."""
        found: npt.NDArray[np.uint8] = self.bits[head if len(self.bits) > 1 else 0]
        return found

    @cached_property
    def by_column(self) -> npt.NDArray[np.float32]:
        """Kept blocks summed over all heads, ``[rows, columns]``."""
        return self.grouped(range(self.shape.heads))

    def grouped(self, heads: Iterable[int]) -> npt.NDArray[np.float32]:
        """Kept blocks summed over some query heads, ``[rows, columns]``.

        Exact in float32: no more than heads and batch items add up in one place.
        """
        if self.blocks is None:
            _ = self.bits
        assert self.blocks is not None
        chosen = list(heads)
        if self.blocks.start.shape[1] == 1:
            shared = self._kept[:, 0].sum(axis=0, dtype=np.float32)
            return np.asarray(shared * np.float32(len(chosen)), np.float32)
        out = np.zeros((self.shape.rows, self.shape.columns), np.float32)
        for head in chosen:
            out += self._kept[:, head].sum(axis=0, dtype=np.float32)
        return out

    @cached_property
    def _kept(self) -> npt.NDArray[np.bool_]:
        assert self.blocks is not None
        return self.blocks.kept()
