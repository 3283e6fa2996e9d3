"""What one rank's kernels compute: panels cut into calls, and the lines that each call reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.parallel.exchange import Delivered
from kdsl.parallel.plan import Panel, Plan, indices
from kdsl.parallel.work import BlockWork, Longs, Shape

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Piece:
    """One kernel call: rows of some query heads against the keys that are at hand.

    Every key head of ``kv_heads`` is read by equally many of ``heads`` (ascending, as in grouped
    queries).  ``rows`` are row blocks of the whole attention, ``columns`` ``[kv_heads, local]`` its
    key blocks in the call's own numbering, -1 where a key head has fewer than another; a ragged
    block stands last.  ``queries`` and ``keys`` count tokens.  ``kept`` and ``partial`` are maps
    ``[heads, rows, local columns]``: visited blocks, and those among them that the mask cuts.
    """

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    rows: Longs
    columns: Longs
    queries: int
    keys: int
    block: tuple[int, int]
    kept: Bools
    partial: Bools

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return len(self.heads) // len(self.kv_heads)

    @cached_property
    def query_positions(self) -> Longs:
        """Stored position of each query, ``[queries]``."""
        return _positions(self.rows, self.block[0])[: self.queries]

    @cached_property
    def key_positions(self) -> Longs:
        """Stored position of each key, ``[kv_heads, keys]``; 0 where no block is."""
        found = [_positions(line, self.block[1])[: self.keys] for line in self.columns]
        return np.maximum(np.stack(found), 0)


@dataclass(frozen=True, eq=False)
class Step:
    """A piece and its key lines, ``[kv_heads * keys]`` of the k (and likewise of the v) at hand."""

    piece: Piece
    keys: Longs


@dataclass(frozen=True, eq=False)
class Calls:
    """Everything one rank computes.

    ``queries[i]``: lines of q of call i (see `RankExchange`), head by head.  ``steps[s][i]``: what
    it meets in step s; None where no block is visited.  One step unless there is a ring.
    ``sources[s]`` is the rank whose keys these are.
    """

    queries: tuple[Longs, ...]
    shapes: tuple[tuple[int, int], ...]
    steps: tuple[tuple[Step | None, ...], ...]
    sources: tuple[int, ...]


class Masks:
    """Maps of kept and of partial blocks, by query head."""

    def __init__(self, work: BlockWork) -> None:
        if work.blocks is None:
            raise InputError(
                "which blocks are kept is not known, only how many",
                hint="BlockWork.of(blocks, heads)",
            )
        if work.blocks.start.shape[0] != 1:
            raise InputError(
                "rows of blocks that differ by batch item",
                hint="one mask for the batch, or one call for each item",
            )
        self.kept = work.blocks.kept()[0]
        self.cut = work.blocks.kept(full=False)[0]

    def of(self, heads: Sequence[int], rows: Longs, columns: Longs) -> tuple[Bools, Bools]:
        """(kept, partial) ``[heads, rows, local]``; ``columns`` ``[heads, local]``, -1 for none."""
        if not columns.shape[1]:
            empty = np.zeros((len(heads), len(rows), 0), np.bool_)
            return empty, empty
        at = np.asarray(heads) if len(self.kept) > 1 else np.zeros(len(heads), np.int64)
        index = (at[:, None, None], rows[None, :, None], np.maximum(columns, 0)[:, None, :])
        there = (columns >= 0)[:, None, :]
        return self.kept[index] & there, self.cut[index] & there


def calls_of(plan: Plan, rank: int, parts: Sequence[Delivered], masks: Masks) -> Calls:
    """What a rank computes.  ``parts`` are the exchanges by rank; a ring reads its neighbours'."""
    ring = plan.delivery == "ring"
    sources = tuple(plan.mesh.source(rank, s) for s in range(plan.mesh.ring)) if ring else (rank,)
    cut = [one for panel in enumerate(plan.ranks[rank]) for one in _uniform(plan, *panel)]
    begins = np.cumsum([0, *parts[rank].panel_lines]).tolist()
    queries, shapes = [], []
    for number, panel, places in cut:
        tokens = parts[rank].panel_lines[number] // len(plan.ranks[rank][number].heads)
        first = begins[number] + np.asarray(places, np.int64) * tokens
        queries.append((first[:, None] + np.arange(tokens)).reshape(-1))
        shapes.append((len(panel.heads), tokens))
    steps = []
    for source in sources:
        heads = plan.ring_heads(rank) if ring else plan.key_heads(rank)
        found: list[Step | None] = []
        for (_, panel, _), (_, tokens) in zip(cut, shapes, strict=True):
            piece, keys = _against(plan.shape, panel, tokens, heads, parts[source], masks)
            found.append(Step(piece, keys) if piece.kept.any() else None)
        steps.append(tuple(found))
    return Calls(tuple(queries), tuple(shapes), tuple(steps), sources)


def _uniform(plan: Plan, number: int, panel: Panel) -> Iterator[tuple[int, Panel, list[int]]]:
    """A panel cut so that in each part every key head has equally many query heads.

    With each part the number of its panel and the places of its heads there.
    """
    readers: dict[int, list[int]] = {}
    for place, head in enumerate(panel.heads):
        readers.setdefault(head // plan.shape.group, []).append(place)
    for size in sorted({len(places) for places in readers.values()}):
        places = sorted(p for held in readers.values() if len(held) == size for p in held)
        yield number, replace(panel, heads=tuple(panel.heads[p] for p in places)), places


def _against(
    shape: Shape,
    panel: Panel,
    tokens: int,
    at_hand: tuple[int, ...],
    part: Delivered,
    masks: Masks,
) -> tuple[Piece, Longs]:
    """A panel of uniform groups against the keys of one rank."""
    kv_heads = shape.kv_of(panel.heads)
    places = [at_hand.index(kv) for kv in kv_heads]
    begins = np.cumsum([0, *part.key_lines])
    columns, keys, lines = _side_by_side(
        shape, [part.key_blocks[p] for p in places], [int(begins[p]) for p in places]
    )
    rows = indices(panel.rows)
    kept, partial = masks.of(
        panel.heads, rows, np.repeat(columns, len(panel.heads) // len(kv_heads), 0)
    )
    piece = Piece(panel.heads, kv_heads, rows, columns, tokens, keys, shape.block, kept, partial)
    return piece, lines


def _side_by_side(shape: Shape, blocks: list[Longs], begins: list[int]) -> tuple[Longs, int, Longs]:
    """Key heads with blocks of their own as one tensor: (columns, keys, lines).

    Whole blocks come first, each head's ascending, then nothing up to the most that a head has;
    what stands there is never read.  The sequence's ragged block, if any head has it, stands last.
    """
    size, last = shape.block[1], shape.columns - 1
    ragged = shape.keys % size
    whole = [b[b != last] if ragged else b for b in blocks]
    ends = [bool(ragged) and len(w) < len(b) for w, b in zip(whole, blocks, strict=True)]
    most = max(len(w) for w in whole)
    width = most + any(ends)
    keys = most * size + (ragged if any(ends) else 0)
    columns = np.full((len(blocks), width), -1, np.int64)
    # What no block holds is never read; it must only be a line that there is.
    spare = next((b for b, held in zip(begins, blocks, strict=True) if len(held)), 0)
    lines = np.full((len(blocks), keys), spare, np.int64)
    for i, (held, begin) in enumerate(zip(whole, begins, strict=True)):
        columns[i, : len(held)] = held
        count = len(held) * size
        lines[i, :count] = begin + np.arange(count)
        if ends[i]:
            columns[i, -1] = last
            lines[i, most * size :] = begin + count + np.arange(ragged)
    return columns, keys, lines.reshape(-1)


def _positions(blocks: Longs, size: int) -> Longs:
    return (blocks[:, None] * size + np.arange(size, dtype=np.int64)).reshape(-1)
