"""What the kernels and their configurations follow from: a spec's groups, halves, launches."""

from __future__ import annotations

from kdsl.layouts import Layout
from kdsl.layouts.groups import Lanes
from kdsl.specs import Prepass

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
CODES = {"int8": 127, "int4": 7, "e4m3": 448}


def groups_of(layout: Layout) -> tuple[int | None, int, int]:
    """Span, period and width of token groups; a span of None is all tokens."""
    if isinstance(layout.group, Lanes):
        return layout.group.span, layout.group.period, layout.group.width
    size = layout.group[0]
    return size, size or 1, size or 1


def halves(spec: Prepass) -> int:
    """Places of half a row: a power of two."""
    return 1 << (spec.head_dim // 2 - 1).bit_length()


def heads_a_program(heads: int, most: int) -> int:
    """Heads that a program takes one after the other: the most that divide them all."""
    return max(n for n in range(1, most + 1) if heads % n == 0)


def starts(spec: Prepass) -> bool:
    """Whether anything runs over all tokens, or over all heads of one, so that a launch of its own
    has to find it first."""
    return spec.smooth or spec.layout.v is not None or spec.norm == "rms_token"


def settles(spec: Prepass) -> bool:
    """Whether tiles leave sums or maxima behind that a launch puts together."""
    return spec.smooth or spec.layout.v is not None
