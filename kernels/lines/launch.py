"""Run the gathering kernel: one launch, nothing read on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WARPS = 4
WORDS = 2048
"""Of a program: 16 a thread."""
SOURCES = 3
WORD = 8
"""Bytes."""
WIDEST = 8192
"""Words of a line at most, one line a program."""


def constants(words: int) -> dict[str, Any]:
    """The kernel's compile-time arguments for lines of so many words."""
    width = 1 << (words - 1).bit_length()
    return {"WORDS": words, "WIDTH": width, "ROWS": max(WORDS // width, 1)}


def gather_lines(sources: Sequence[Tensor], index: Tensor, out: Tensor) -> None:
    """Fill ``out``; up to three sources ``[lines, words]`` of int64; see the kernel."""
    from kdsl.kernels.lines import template

    fixed, count = constants(out.shape[1]), len(index)
    if not count:
        return
    # What is missing is never read: no line has a number behind the last.
    first, second, third = (*sources, *[sources[0]] * (SOURCES - len(sources)))
    ends = [sum(map(len, sources[:n])) for n in (1, 2)]
    template.gather_lines[(-(-count // fixed["ROWS"]),)](
        first, second, third, index, out, *ends, count, **fixed, num_warps=WARPS
    )
