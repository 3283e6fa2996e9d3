"""Masks: which query tokens see which key tokens.

Masks are values that combine with ``&``, ``|``, ``~`` and ``^``.  The built-ins are a few lines
each over the expression tree, to learn from for one's own (`predicate`).
"""

from kdsl.masks.base import BlockMap, Mask, everything, nothing, per_head, predicate
from kdsl.masks.builtin import (
    blocks,
    causal,
    dilated,
    frame_band,
    prefix,
    radial,
    ranges,
    same,
    segments,
    sink,
    text,
    tree,
    varlen,
    window,
)

__all__ = [
    "BlockMap",
    "Mask",
    "blocks",
    "causal",
    "dilated",
    "everything",
    "frame_band",
    "nothing",
    "per_head",
    "predicate",
    "prefix",
    "radial",
    "ranges",
    "same",
    "segments",
    "sink",
    "text",
    "tree",
    "varlen",
    "window",
]
