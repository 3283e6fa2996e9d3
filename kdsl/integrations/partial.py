"""What becomes of partial blocks in a format that only has whole ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from kdsl.blocks import Blocks, from_lists
from kdsl.errors import InputError

Choice = Literal["raise", "full", "drop"]
"""``"full"`` shows partial blocks whole, ``"drop"`` leaves them out."""


def whole(rows: Blocks, partial: Choice, *, hint: str = "") -> Blocks:
    """Rows without partial blocks; InputError where there are some and nothing was chosen."""
    if partial not in ("raise", "full", "drop"):
        raise InputError(f"partial={partial!r}", hint='"raise", "full" or "drop"')
    count = int(rows.partial.sum(dtype=np.int64))
    if not count:
        return rows
    if partial == "raise":
        other = f"{hint}; " if hint else ""
        raise InputError(
            f"{count} blocks are partial, and this format shows a block whole or not at all",
            hint=f'{other}partial="full" to see all of them, partial="drop" to see none',
        )
    if partial == "drop":
        return replace(rows, partial=np.zeros_like(rows.partial))
    row, column = rows.flat()
    size = (rows.start.shape, rows.block, rows.queries, rows.keys)
    return from_lists(row, column, np.zeros(len(row), np.bool_), *size)
