"""Masks as Python source that evaluates back."""

from __future__ import annotations

from kdsl.expr.nodes import Expr
from kdsl.expr.text import to_text
from kdsl.masks.base import INDEX_NAMES, Mask


def mask_source(mask: Mask) -> str:
    """Source over the names of `kdsl`, `kdsl.expr` and `kdsl.masks`."""
    written = [_predicate(mask, e) for e in mask.variants]
    return written[0] if len(written) == 1 else f"masks.per_head([{', '.join(written)}])"


def _predicate(mask: Mask, expr: Expr) -> str:
    names = ", ".join(n for n in INDEX_NAMES if n in expr.variables())
    grids = [
        f", {what}={value!r}"
        for what, value in (
            ("grid", mask.queries),
            ("keys", mask.keys if mask.keys != mask.queries else None),
            ("order", mask.order),
        )
        if value is not None
    ]
    start = f"lambda {names}:" if names else "lambda:"
    return f"masks.predicate({start} {to_text(expr, source=True)}{''.join(grids)})"
