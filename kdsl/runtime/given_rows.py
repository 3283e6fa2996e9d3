"""Attention over rows of blocks that are given, in place of those of a mask."""

from __future__ import annotations

import hashlib

from kdsl.blocks import Blocks
from kdsl.errors import InputError, UnsupportedError
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.bound import Bound, remember
from kdsl.runtime.choice import settle


def take_rows(op: AttentionOperator, rows: Blocks) -> None:
    """Let an operator visit these rows of blocks in every call without tables.

    A listed block is computed as the mask says, one that is not listed not at all.  The generated
    kernel stays that of the spec, so that operators on other rows and sizes of a mask without
    numbers share one; the configuration is looked up for the rows.
    """
    spec = op.spec
    if op.backend == "reference" or op.by_batch or spec.given_tables:
        raise UnsupportedError(
            "rows of blocks for the reference, a mask by batch item or one with tables",
            hint="masks.everything() or another mask without tables, and a kernel",
        )
    sizes = (spec.query_grid.tokens, spec.key_grid.tokens, spec.block)
    if (rows.queries, rows.keys, rows.block) != sizes:
        raise InputError(
            f"rows of {rows.queries} x {rows.keys} tokens in blocks of {rows.block}",
            hint=f"{sizes[0]} x {sizes[1]} in blocks of {sizes[2]}",
        )
    bound = Bound(spec, {}, 1, op.templates)
    bound.tunable.blocks = rows
    op.tunable = bound.tunable
    op.choice = settle(
        op.tunable, op.target, op.asked or "", op.given, op.mode, here=op.here, tables={}
    )
    op.__dict__.pop("_config", None)
    held = (rows.start, rows.full, rows.partial, rows.index)
    said = b"".join(hashlib.sha256(x.tobytes()).digest() for x in held)
    # Compiled graphs must not take one's rows for another's.
    op.identity += hashlib.sha256(said).hexdigest()
    remember(op.plain, 1, bound)
