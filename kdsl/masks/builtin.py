"""The built-in masks, each a few lines over the expression tree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.expr.index import Index, visual_test
from kdsl.expr.nodes import Expr, boolean, var
from kdsl.expr.tables import Table
from kdsl.expr.tables import table as make_table
from kdsl.grid import Grid, as_grid, count
from kdsl.masks.base import BlockMap, Mask, predicate
from kdsl.orders import Order


def causal(offset: int = 0) -> Mask:
    """Query ``q`` sees keys up to ``q + offset``; original token numbers."""
    return predicate(lambda q, k: k - q <= offset)


def window(
    size: int | Grid, extent: int | Sequence[int] | None = None, *, keys: Grid | None = None
) -> Mask:
    """Keys near the query: ``window(4096)`` in tokens, ``window(grid, (5, 9, 9))`` in coordinates.

    An odd extent is centred: 9 reaches 4 to either side.  An even one reaches ``extent // 2`` to
    either side too.  In one dimension ``window(n)`` sees keys less than ``n`` tokens away.
    Text tokens are outside every window of a grid; add `text`.
    """
    if not isinstance(size, Grid):
        reach_1d = count(size)
        if extent is not None or reach_1d is None:
            raise SpecError(
                f"window({size}, {extent})", hint="window(4096) or window(grid, (5, 9, 9))"
            )
        return predicate(lambda q, k: abs(q - k) < reach_1d)
    reach = [n // 2 for n in _per_axis(size, extent, "window extent")]
    return _near(size, keys, reach, [1] * len(reach))


def dilated(
    size: int | Grid,
    extent: int | Sequence[int],
    dilation: int | Sequence[int],
    *,
    keys: Grid | None = None,
) -> Mask:
    """A window that takes every ``dilation``-th key along each axis (NATTEN's dilation).

    ``dilated(n, w, d)`` on a plain sequence of n tokens; ``dilated(grid, (5, 9, 9), (1, 2, 2))``.
    """
    grid = as_grid(size)
    reach = [n // 2 for n in _per_axis(grid, extent, "window extent")]
    return _near(grid, keys, reach, _per_axis(grid, dilation, "dilation"))


def _near(grid: Grid, keys: Grid | None, reach: Sequence[int], step: Sequence[int]) -> Mask:
    keys = keys or grid
    q, k = Index("q", grid), Index("k", keys)
    near = _visual(q, grid) & _visual(k, keys)
    for axis, (r, d) in enumerate(zip(reach, step, strict=True)):
        away = coordinates(q, grid)[axis] - coordinates(k, keys)[axis]
        near = near & (abs(away) <= r * d)
        if d > 1:
            near = near & (away % d == 0)
    return Mask((near,), grid, keys)


def sink(tokens: int) -> Mask:
    """Every query sees the first ``tokens`` keys (attention sinks); all, where there are fewer."""
    first = _count(tokens, "sink", "sink(4)")
    return predicate(lambda k: k < first)


def prefix(tokens: int) -> Mask:
    """The first ``tokens`` tokens see each other in full (prefix language models).

    All do where there are fewer.
    """
    first = _count(tokens, "prefix", "prefix(226)")
    return predicate(lambda q, k: (q < first) & (k < first))


def text(grid: Grid, keys: Grid | None = None) -> Mask:
    """Text rows and columns stay dense: text queries see all, all queries see text keys."""
    keys = keys or grid
    q, k = Index("q", grid), Index("k", keys)
    return Mask((~_visual(q, grid) | ~_visual(k, keys),), grid, keys)


def frame_band(grid: Grid, frames: int, *, keys: Grid | None = None) -> Mask:
    """Keys at most ``frames`` frames away, anywhere in the frame."""
    frames = _count(frames, "frame_band", "frame_band(grid, 1)")
    keys = keys or grid
    q, k = Index("q", grid), Index("k", keys)
    band = abs(q.frames - k.frames) <= frames
    return Mask((_visual(q, grid) & _visual(k, keys) & band,), grid, keys)


def radial(grid: Grid, width: int, *, keys: Grid | None = None) -> Mask:
    """Bands whose spatial reach halves each time the distance in frames doubles.

    Frames d apart see rows of tokens within ``width >> floor(log2(d))`` along the flattened frame,
    the pattern of Radial Attention (arXiv 2506.19852, section 4), kept exact down to the token.
    """
    keys = keys or grid
    if grid.letters != "FHW" or keys.letters != "FHW" or count(width) is None:
        raise SpecError(
            f"radial bands of width {width}",
            where=f"{grid!r}, {keys!r}",
            hint="a width of at least 1 over Grid(frames=..., height=..., width=...)",
        )
    q, k = Index("q", grid), Index("k", keys)
    apart = abs(q.frames - k.frames)
    rows, columns = (_flat(i, g) for i, g in ((q, grid), (k, keys)))
    near = boolean(False)
    reach, low = width, 0
    while low < max(grid.shape[0], keys.shape[0]):
        high = max(2 * low, 1)
        near = near | ((apart < high) & (abs(rows - columns) <= max(reach, 1)))
        low, reach = high, reach // 2 if low else reach
    return Mask((_visual(q, grid) & _visual(k, keys) & near,), grid, keys)


def _flat(index: Index, grid: Grid) -> Expr:
    """Position inside the frame."""
    *_, height, width = coordinates(index, grid)
    return height * grid.shape[-1] + width


def same(ids: Table | npt.ArrayLike) -> Mask:
    """Query and key carry the same id: documents, images, batch segments packed in one sequence.

    ``ids`` is a table ``[tokens]`` or ``[batch, tokens]``, or the values themselves.
    """
    held = _ids(ids)
    return predicate(lambda q, k, batch: _at(held, q, batch) == _at(held, k, batch))


segments = same


def ranges(first: Table | npt.ArrayLike, end: Table | npt.ArrayLike) -> Mask:
    """Query ``q`` sees keys ``first[q] <= k < end[q]``; none where the two are equal.

    Tables ``[queries]`` or ``[batch, queries]``, or the values themselves.
    """
    low, high = _ids(first), _ids(end)
    return predicate(lambda q, k, batch: (_at(low, q, batch) <= k) & (k < _at(high, q, batch)))


def varlen(queries: Grid | int, keys: Grid | int | None = None, *, name: str = "varlen") -> Mask:
    """Sequences packed along the tokens, whose lengths are known at the call only.

    ``queries`` and ``keys`` are capacities.  The tables ``<name>_first`` and ``<name>_end``, int32
    ``[queries]``, say which keys a query sees (`ranges`): those of its own sequence, all or up to
    its place in it, and none for padding.  `kdsl.integrations.flash_attention.varlen_tables` makes
    them of ``cu_seqlens``.
    """
    rows = as_grid(queries, "queries").tokens
    most = rows if keys is None else as_grid(keys, "keys").tokens
    first, end = (Table(f"{name}_{side}", rows, "int32", 0, most) for side in ("first", "end"))
    return ranges(first, end)


def tree(start: Table | npt.ArrayLike, end: Table | npt.ArrayLike) -> Mask:
    """Shared prefixes: a token sees itself and its ancestors, never a sibling branch.

    Each token's node of the tree holds a half-open interval [start, end) of positions in
    depth-first order; an ancestor's interval contains its descendants'.  Within a node, earlier
    tokens only.
    """
    first, last = _ids(start), _ids(end)

    def sees(q: Expr, k: Expr, batch: Expr) -> Expr:
        at = _at(first, q, batch)
        return (_at(first, k, batch) <= at) & (at < _at(last, k, batch)) & (k <= q)

    return predicate(sees)


def blocks(
    name: str,
    order: Order | None = None,
    block: tuple[int, int] = (128, 128),
    *,
    shared: bool = False,
) -> Mask:
    """Blocks kept by a table that comes with the call: ``op(q, k, v, tables={name: kept})``.

    ``kept`` is a boolean map ``[heads, rows, columns]`` or block rows (`kdsl.blocks`), over stored
    positions of ``order`` (default: the original one).  With ``shared`` all heads use one map.
    """
    sizes = tuple(n for n in map(count, block) if n) if isinstance(block, Sequence) else ()
    if len(sizes) != 2 or min(sizes) < 16:
        raise SpecError(f"blocks of {block}", hint="at least 16 x 16")
    rows = BlockMap(name, sizes, bool(shared))
    return Mask((rows[var("head"), var("qs"), var("ks")],), order=order)


def coordinates(index: Index, grid: Grid) -> list[Expr]:
    """Coordinates of a token along every axis."""
    return [getattr(index, name) for name in (grid.axes or ("length",))]


def _visual(index: Index, grid: Grid) -> Expr:
    return visual_test(index, grid) if grid.text else boolean(True)


def _ids(ids: Table | npt.ArrayLike) -> Table:
    return ids if isinstance(ids, Table) else make_table(np.asarray(ids))


def _at(ids: Table, token: Expr, batch: Expr) -> Expr:
    return ids[batch, token] if len(ids.shape) == 2 else ids[token]


def _per_axis(grid: Grid, sizes: int | Sequence[int] | None, what: str) -> list[int]:
    each: Sequence[object] = sizes if isinstance(sizes, Sequence) else [sizes] * len(grid.shape)
    counted = [n for n in map(count, each) if n is not None]
    if not len(counted) == len(each) == len(grid.shape):
        raise SpecError(
            f"{what} {sizes!r}", where=repr(grid), hint=f"{len(grid.shape)} sizes of at least 1"
        )
    return counted


def _count(value: object, what: str, example: str) -> int:
    counted = count(value, 0)
    if counted is None:
        raise SpecError(f"{what}({value!r})", hint=f"{example}: an integer of at least 0")
    return counted
