"""What the template has to know of a spec: its codes, its stages, and the shape of its tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdsl.errors import UnsupportedError
from kdsl.layouts import Format, Outline
from kdsl.layouts.codes import E4M3, F16, F32, I32, Float, Int
from kdsl.layouts.format import Part
from kdsl.layouts.groups import Block
from kdsl.layouts.pattern import resolve
from kdsl.specs import Quantize

MOST_BLOCK = 256
"""Columns that one rotation turns together."""
MOST_SINGLE = 128
"""The same of float32: a larger matrix fills a multiprocessor's shared memory."""
LEAST_BLOCK = 16
"""Columns that a product takes at least; smaller blocks are filled up with zeros."""
VIEW = 1024
"""Columns of a block where nothing is rotated, at most."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Coding:
    """A format as the kernel writes it: codes, scales and zero points in rows of plain buffers."""

    bits: int
    fp8: bool
    low: float
    high: float
    limit: float
    """What the largest magnitude of a group (or its range) is divided by."""
    shift: int
    """Added to a code to get its pattern."""
    asymmetric: bool
    scale_dtype: str
    group: int | None
    """Columns that share a scale; None for a whole row."""
    codes: str
    scales: str
    zeros: str
    """Names of the buffers; "" for none."""

    @property
    def clips(self) -> bool:
        """Whether the rounding of scales or zero points leaves codes beyond their range."""
        return self.asymmetric or self.scale_dtype != "float32"


@lru_cache(maxsize=256)
def coding(fmt: Format, columns: int) -> Coding:
    """The facts of a format; UnsupportedError where the kernel writes no such one."""
    level, scale = fmt.level, fmt.level.scale
    code = level.field.code
    fits = code == E4M3 or (isinstance(code, Int) and code.bits in (4, 8) and not code.negated)
    if not fits:
        raise _unsupported(fmt, f"codes {code!r}", "8- or 4-bit integers, or e4m3")
    assert isinstance(code, (Int, Float))
    if scale is None or level.offset is not None or scale.scale or scale.zero or scale.offset:
        raise _unsupported(fmt, "a chain of scales", "one scale a group, and no offset")
    by, zero = scale.field, level.zero
    groups = by.groups
    if not isinstance(groups, Block) or groups.rows != 1:
        raise _unsupported(fmt, f"groups {groups!r}", "a row, or some of its columns")
    if by.code not in (F32, F16):
        raise _unsupported(fmt, f"scales {by.code!r}", "float32 or float16")
    ranged = by.fit == "range" and zero is not None
    if not ranged and (by.fit != "largest" or zero is not None):
        raise _unsupported(fmt, f"scales fitted to the {by.fit}", "largest, or range with zeros")
    if zero is not None and (zero.field.code != I32 or zero.field.groups != groups or zero.scale):
        raise _unsupported(fmt, "such zero points", "int32, one a scale")
    names = {p.field: b.name for b in fmt.buffers for p in b.parts}
    if any(len(b.parts) > 1 or not _plain(b.parts[0], fmt) for b in fmt.buffers):
        raise _unsupported(fmt, "bits out of order", "fields in buffers of their own, row by row")
    held = next(b for b in fmt.buffers if b.name == names[level.field.name])
    if columns * code.bits % held.width:
        raise _unsupported(fmt, f"rows of {columns} codes that end within a word", "whole words")
    group = groups.cols
    low, high = code.ends
    return Coding(
        bits=code.bits,
        fp8=isinstance(code, Float),
        low=low,
        high=high,
        limit=high - low if ranged else code.limit,
        shift=-code.bias if isinstance(code, Int) else 0,
        asymmetric=ranged,
        scale_dtype="float32" if by.code == F32 else "float16",
        group=None if group is None or group >= columns else group,
        codes=held.name,
        scales=names[by.name],
        zeros=names[zero.field.name] if zero else "",
    )


def _unsupported(fmt: Format, what: str, hint: str) -> UnsupportedError:
    return UnsupportedError(
        f"the kernel writes no {what}",
        where=f"format {fmt.name!r}",
        hint=f'{hint}; layouts.activations(...), or backend="reference"',
    )


def _plain(part: Part, fmt: Format) -> bool:
    """Whether a part stores its field row by row, column by column, each pattern whole."""
    if part.bits or part.columns or part.trits or part.pad != (1, 1):
        return False
    shape = (2, 8, fmt.fields[part.field].code.bits)
    here = np.arange(math.prod(shape)).reshape(shape)
    place = resolve(part.pattern, shape)
    return place.shape[0] == 2 and bool((place.apply(here) == here.reshape(2, -1)).all())


@dataclass(frozen=True)
class Stage:
    """Columns scaled, centred and permuted, then blocks of them rotated (block 0: they are not)."""

    multiplied: bool = False
    centred: bool = False
    permuted: bool = False
    block: int = 0
    hadamard: bool = False
    signed: bool = True
    """All factors are +1 or -1."""
    exact: bool = False
    """The operands of the product are the input's own numbers, or their negatives."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.multiplied or self.centred or self.permuted or self.block)

    @property
    def factor(self) -> float:
        """What the product is multiplied with: Hadamard matrices are of ones."""
        return self.block**-0.5 if self.hadamard else 1.0


@lru_cache(maxsize=256)
def stages(outline: Outline, exact: bool) -> tuple[Stage, Stage]:
    """The steps of a recipe in two stages; UnsupportedError where it takes more.

    ``exact``: nothing comes before the recipe.
    """
    found = [_Open(exact)]
    for kind, block in outline.steps:
        if kind in ("hadamard", "rotate"):
            if block > MOST_BLOCK:
                raise UnsupportedError(
                    f"the kernel rotates no blocks of {block} columns",
                    hint=f'at most {MOST_BLOCK}, or backend="reference"',
                )
            found[-1].block, found[-1].hadamard = block, kind == "hadamard"
            found.append(_Open(False))
        else:
            found[-1].exact &= kind in ("signs", "channels")
            found[-1].add(kind)
    if found[-1].closed().idle and len(found) > 1:
        found.pop()
    if len(found) > 2:
        raise UnsupportedError(
            "the kernel takes two stages, each of factors, means, an order and a rotation",
            where=repr(outline),
            hint='a recipe with at most two rotations, or backend="reference"',
        )
    first, second = (*found, _Open(False))[:2]
    return first.closed(), second.closed()


@dataclass
class _Open:
    exact: bool
    multiplied: bool = False
    centred: bool = False
    permuted: bool = False
    block: int = 0
    hadamard: bool = False
    signed: bool = True

    def add(self, kind: str) -> None:
        self.multiplied |= kind in ("smooth", "signs")
        self.signed &= kind != "smooth"
        self.centred |= kind == "mean"
        self.permuted |= kind == "channels"

    def closed(self) -> Stage:
        return Stage(**vars(self))


@dataclass(frozen=True)
class View:
    """A matrix as tiles see it: blocks of columns, and how many positions share a scale."""

    block: int
    n: int
    """Columns of a tile: the block as a power of two."""
    blocks: int
    slots: int
    """Rows of a tile that a row of the matrix takes."""
    whole: bool
    """Whether a tile holds whole rows."""
    group: int
    """Positions of a tile that share a scale."""
    groups: int
    """Scales of a row."""


def view(spec: Quantize) -> View:
    """The tiles of a spec; UnsupportedError for groups that do not go with its blocks."""
    code = coding(spec.format, spec.columns)
    first, second = stages_of(spec)
    turned = [s.block for s in (first, second) if s.block]
    block = math.lcm(*turned) if turned else _unturned(spec.columns)
    if turned and (block > MOST_BLOCK or spec.columns % block):
        raise UnsupportedError(
            f"rotations of {turned[0]} and of {turned[1]} columns have no block in common",
            hint='blocks of one size, or backend="reference"',
        )
    if turned and spec.dtype == "float32" and block > MOST_SINGLE:
        raise UnsupportedError(
            f"the kernel rotates no blocks of {block} columns of float32",
            hint=f'at most {MOST_SINGLE}, 16-bit numbers, or backend="reference"',
        )
    whole = code.group is None or spec.norm is not None or second.permuted
    blocks = spec.columns // block
    n = max(_power(block), LEAST_BLOCK if turned else 1)
    slots = _power(blocks) if whole else blocks
    group = code.group or spec.columns
    if code.group is None:
        positions = slots * n
    elif group == block:
        positions = n
    elif group < block and _power(group) == group and block % group == 0:
        positions = group
    elif group % block == 0 and _power(group // block) == group // block:
        positions = group // block * n
    else:
        raise UnsupportedError(
            f"groups of {group} columns do not go with blocks of {block}",
            where=f"format {spec.format.name!r}",
            hint="a power of two that divides the block, a power of two times the block, or "
            'backend="reference"',
        )
    return View(block, n, blocks, slots, whole, positions, spec.columns // group)


def stages_of(spec: Quantize) -> tuple[Stage, Stage]:
    """The two stages of a spec's recipe."""
    return stages(spec.recipe, spec.norm is None and spec.activation is None)


def _unturned(columns: int) -> int:
    """The block where nothing is rotated: a power of two if the columns have one worth it."""
    even = columns & -columns
    return min(even, VIEW) if even >= 32 else columns


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
