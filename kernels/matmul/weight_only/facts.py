"""What the templates have to know of a product whose weights alone are quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from kdsl.errors import UnsupportedError
from kdsl.layouts import Format
from kdsl.layouts.codes import F16, Code, Int, Lut
from kdsl.layouts.groups import Block
from kdsl.specs import Matmul

Kind = Literal["uniform", "signed", "table"]
ACTIVATIONS = {None: 0, "gelu_tanh": 1, "gelu_erf": 2, "silu": 3}
GROUP = 32
"""What groups along K are multiples of."""
PLAIN = ("n k x -> n | k x", "n g x -> n | g x")
"""Patterns of fields that lie row by row."""
LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class View:
    """A spec as the templates see it: weights of four or three bits, float16 scales of groups."""

    bits: int
    kind: Kind
    """``uniform``: whole numbers from 0, less a zero point; ``signed``: a sign above a magnitude
    that is a whole number below 128; ``table``: any others."""
    codes: str
    """Buffer of whole codes, two a byte, or of the lower two bits of three."""
    signs: str
    """Buffer of the top bit of three; "" where codes are whole."""
    scales: str
    zeros: str
    """Buffer of zero points, a byte a group; "" where there are none."""
    group: int
    """Columns of K that share a scale."""
    entries: tuple[float, ...]
    """What codes stand for, before scales and zero points."""
    offset: int
    """The zero point of uniform codes without zero points."""


@lru_cache(maxsize=256)
def view(spec: Matmul) -> View:
    """The facts of a spec; UnsupportedError where no kernel computes it."""
    fmt = spec.weight
    level, scale = fmt.level, fmt.level.scale
    code = level.field.code
    if spec.dtype == "float32":
        raise UnsupportedError(
            "the kernels multiply stored weights by 16-bit x alone",
            where="dtype='float32'",
            hint='"bfloat16", "float16", or backend="reference"',
        )
    if code.bits not in (3, 4) or not isinstance(code, (Int, Lut)):
        raise _unsupported(fmt, f"codes {code!r}", "layouts.slog(4)")
    if scale is None or level.offset or scale.scale or scale.zero or scale.offset:
        raise _unsupported(fmt, "chains of scales", "one scale a group")
    groups = scale.field.groups
    if not isinstance(groups, Block) or groups.rows != 1 or scale.field.code != F16:
        raise _unsupported(fmt, "such scales", "float16, of groups along K")
    group = groups.cols or spec.inner
    if group % GROUP or spec.inner % group:
        raise _unsupported(fmt, f"groups of {group}", f"a multiple of {GROUP}")
    zero = level.zero
    if zero is not None:
        plain = zero.field.code == Int(8) and zero.field.groups == groups and zero.scale is None
        if not plain or not _counts(code):
            raise _unsupported(fmt, "such zero points", "layouts.uniform(4, 128, asymmetric=True)")
    entries = tuple(map(float, code.decode(np.arange(1 << code.bits))))
    parts = {(p.field, p.bits): b.name for b in fmt.buffers for p in b.parts}
    name = level.field.name
    plain = all(len(b.parts) == 1 and b.parts[0].pattern in PLAIN for b in fmt.buffers)
    keys = {4: ((name, None),), 3: ((name, (0, 2)), (name, (2, 3)))}[code.bits]
    if not plain or any(k not in parts for k in keys) or any(b.pad for b in fmt.buffers):
        raise _unsupported(fmt, "bits in such an order", "as layouts.slog has them")
    kind = kind_of(code, entries)
    if max(map(abs, entries)) > LARGEST:
        raise _unsupported(fmt, "entries beyond float16", "a codebook of smaller numbers")
    return View(
        bits=code.bits,
        kind=kind,
        codes=parts[keys[0]],
        signs=parts[keys[1]] if len(keys) > 1 else "",
        scales=parts[scale.field.name, None],
        zeros="" if zero is None else parts[zero.field.name, None],
        group=group,
        entries=entries,
        offset=-int(entries[0]) if kind == "uniform" else 0,
    )


def kind_of(code: Code, entries: tuple[float, ...]) -> Kind:
    """How codes become numbers most cheaply."""
    if _counts(code):
        return "uniform"
    half = len(entries) // 2
    whole = all(e == math.floor(e) and 0 <= e < 128 for e in entries[:half])
    mirrored = all(b == -a for a, b in zip(entries[:half], entries[half:], strict=True))
    return "signed" if whole and mirrored else "table"


def rounded(entries: tuple[float, ...]) -> tuple[float, ...]:
    """Entries as float16 has them."""
    return tuple(float(np.float16(e)) for e in entries)


def _counts(code: Code) -> bool:
    """Whether patterns are whole numbers in their order, shifted."""
    return isinstance(code, Int) and not code.signed and not code.negated


def _unsupported(fmt: Format, what: str, hint: str) -> UnsupportedError:
    return UnsupportedError(
        f"the kernels multiply 16-bit x by no weights with {what}",
        where=f"weight, format {fmt.name!r}",
        hint=f'{hint}; layouts.slog(...), layouts.uniform(...), or backend="reference"',
    )
