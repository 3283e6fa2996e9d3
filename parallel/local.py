"""Attention of one rank's share by kdsl's own operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import masks
from kdsl.blocks import from_maps
from kdsl.errors import UnsupportedError
from kdsl.expr.nodes import Expr, const, var
from kdsl.expr.tables import table
from kdsl.intervals.classify import head_order
from kdsl.masks import Mask
from kdsl.parallel.pieces import Piece
from kdsl.parallel.work import Longs
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.builder import build
from kdsl.runtime.given_rows import take_rows
from kdsl.specs import Attention

Kernel = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``q [batch, heads, queries, head_dim]``, ``k, v [batch, kv_heads, keys, head_dim]`` to the output
like q and the natural log-sum-exp ``[batch, heads, queries]`` in float32 (or float64): 0 and minus
infinity where a query sees nothing.  Inputs may have any strides but the last, which is 1."""
Local = Callable[[Piece], Kernel]
"""Makes the kernel of a piece, once, before calls."""


class Operators:
    """Kernels by `kdsl.build`: one operator a piece, its rows of blocks bound to it.

    ``spec`` is the whole attention and ``tables`` the values of its open tables; ``options`` go to
    `build` (``backend``, ``mode``, ``config``).  Blocks that the mask cuts are computed by the same
    mask, whose tokens are looked up by the piece's own rows and columns.
    """

    def __init__(
        self,
        spec: Attention,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        **options: Any,
    ) -> None:
        if any("batch" in e.variables() for e in spec.mask.variants):
            raise UnsupportedError(
                "a mask that differs by batch item", hint="one call for each item of the batch"
            )
        self.spec, self.tables, self.options = spec, dict(tables or {}), options

    def __call__(self, piece: Piece) -> Kernel:
        """The bound operator of a piece.

        Where the mask cuts no block, its map is in the lists alone: pieces of all sizes then share
        one generated kernel, and a new plan compiles nothing.
        """
        if not piece.partial.any():
            whole = replace(self.local(piece), mask=masks.everything())
            plain = build(whole, **self.options)
            if plain.backend != "reference":
                assert isinstance(plain, AttentionOperator)
                size = (piece.queries, piece.keys)
                take_rows(plain, from_maps(piece.kept, None, piece.block, *size))
                return plain
        spec = self.local(piece)
        names = {t.name for t in spec.open_tables}
        values = {n: v for n, v in self.tables.items() if n in names}
        return build(spec, tables={**values, "kept": piece.kept.astype(np.uint8)}, **self.options)

    def local(self, piece: Piece) -> Attention:
        """The attention that a piece is; its table ``"kept"`` are the blocks it visits."""
        spec = self.spec
        mask = masks.blocks("kept", block=spec.block)
        if piece.partial.any():
            mask = mask & self._cut(piece)
        return Attention(
            queries=piece.queries,
            keys=piece.keys,
            heads=len(piece.heads),
            kv_heads=len(piece.kv_heads),
            head_dim=spec.head_dim,
            dtype=spec.dtype,
            mask=mask,
            scale=spec.softmax_scale,
            return_lse=True,
            block=spec.block,
        )

    def _cut(self, piece: Piece) -> Mask:
        """The whole attention's mask, spoken of the piece's tokens."""
        spec, variants = self.spec, self.spec.element_mask.variants
        head, tables = var("head"), self.tables
        positions = (
            np.repeat(piece.query_positions[None], len(piece.heads), 0),
            np.repeat(piece.key_positions, piece.group, 0),
        )
        tokens = [
            np.stack(
                [
                    head_order(order, h).index(tables)[at]
                    for h, at in zip(piece.heads, p, strict=True)
                ]
            )
            for order, p in zip((spec.query_order, spec.kv_order), positions, strict=True)
        ]
        names: dict[str, Expr] = {
            "q": _looked_up(tokens[0], head, var("q")),
            "qs": _looked_up(positions[0], head, var("q")),
            "k": _looked_up(tokens[1], head, var("k")),
            "ks": _looked_up(positions[1], head, var("k")),
        }
        if len(variants) == 1:
            names["head"] = table(np.asarray(piece.heads))[head]
            return Mask((variants[0].replace(names),))
        return Mask(tuple(variants[h].replace({**names, "head": const(h)}) for h in piece.heads))


def _looked_up(values: Longs, head: Expr, index: Expr) -> Expr:
    """A number for each head and index, from the smallest table that holds them."""
    if (values == values[:1]).all():
        return table(values[0])[index]
    return table(values)[head, index]
