"""What the templates have to know of a spec: its unit, where codes and scales lie, what decodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from kdsl.errors import UnsupportedError
from kdsl.kernels.quantize.facts import Coding, coding
from kdsl.layouts import Format
from kdsl.layouts.codes import E4M3, F16, Int, Lut
from kdsl.layouts.groups import Block
from kdsl.specs import Matmul

Unit = Literal["int8", "fp8"]
ACTIVATIONS = {None: 0, "gelu_tanh": 1, "gelu_erf": 2, "silu": 3}
GROUP = 64
"""What groups along K are multiples of: a step of K at least."""
PLAIN = ("n k x -> n | k x", "n g x -> n | g x")
"""Patterns of fields that lie row by row."""
MOST_INNER = {False: 131072, True: 65536}
"""Products of integers that an int32 holds the sum of, without zero points and with them: 128 * 127
and (128 + 127) * 127 each."""


@dataclass(frozen=True)
class Packed:
    """Weights of four or three bits as the templates read them, with float16 scales of groups."""

    bits: int
    codes: str
    """Buffer of whole codes, two a byte, or of the lower two bits of three."""
    signs: str
    """Buffer of the top bit of three; "" where codes are whole."""
    scales: str
    group: int
    """Columns of K that share a scale."""
    entries: tuple[int, ...]
    """The byte that each code is multiplied as: an int8 or e4m3 pattern."""
    integer: bool
    """Whether these are int8."""


@dataclass(frozen=True)
class View:
    """A spec as the templates see it."""

    unit: Unit
    """What multiplies: integers with int32 sums, or e4m3 with float32 sums."""
    x: Coding
    weight: Coding | Packed

    @property
    def zeros(self) -> bool:
        """Whether x has zero points."""
        return self.x.asymmetric

    @property
    def integer(self) -> bool:
        """Whether sums are int32."""
        return self.unit == "int8"

    @property
    def bits(self) -> int:
        """Of a weight's code."""
        return self.weight.bits

    @property
    def group(self) -> int:
        """Columns of K whose sums meet a scale of their own; 0 where all of them share it."""
        return self.weight.group if isinstance(self.weight, Packed) else 0


@lru_cache(maxsize=256)
def view(spec: Matmul) -> View:
    """The facts of a spec; UnsupportedError where no kernel computes it."""
    assert spec.x is not None, "x that is not quantized is weight_only's"
    x = side(spec.x, spec.inner, "x")
    unit: Unit = "fp8" if x.fp8 else "int8"
    if not x.fp8 and spec.inner > MOST_INNER[x.asymmetric]:
        raise UnsupportedError(
            f"sums over {spec.inner} products do not fit int32",
            hint=f'at most {MOST_INNER[x.asymmetric]}, or backend="reference"',
        )
    if spec.weight.level.field.code.bits < 8:
        if x.asymmetric:
            raise _unsupported("x", spec.x, "zero points beside groups", "symmetric activations")
        return View(unit, x, packed(spec.weight, spec.inner, unit))
    weight = side(spec.weight, spec.inner, "weight")
    if weight.asymmetric:
        raise _unsupported("weight", spec.weight, "zero points of weights", "symmetric weights")
    if x.fp8 != weight.fp8:
        both = f"{_code(weight)} weights beside {_code(x)} x"
        raise _unsupported("weight", spec.weight, both, "one kind of code")
    return View(unit, x, weight)


def packed(fmt: Format, inner: int, unit: Unit) -> Packed:
    """The facts of weights of four or three bits; UnsupportedError where no kernel reads them."""
    level, scale = fmt.level, fmt.level.scale
    code = level.field.code
    if code.bits not in (3, 4) or not isinstance(code, (Int, Lut)):
        raise _unsupported("weight", fmt, f"codes {code!r}", "layouts.slog(4)")
    if scale is None or level.zero or level.offset or scale.scale or scale.zero or scale.offset:
        raise _unsupported("weight", fmt, "chains of scales", "one scale a group")
    groups = scale.field.groups
    whole = isinstance(groups, Block) and groups.rows == 1
    if not whole or scale.field.code != F16:
        raise _unsupported("weight", fmt, "such scales", "float16, of groups along K")
    assert isinstance(groups, Block)
    group = groups.cols or inner
    if group % GROUP or inner % group:
        raise _unsupported("weight", fmt, f"groups of {group}", f"a multiple of {GROUP}")
    values = code.decode(np.arange(1 << code.bits))
    held = E4M3 if unit == "fp8" else Int(8, signed=True)
    patterns = held.encode(np.clip(values, *held.ends), clip=True)
    if (held.decode(patterns) != values).any():
        what = f"entries that {_name(unit)} does not hold"
        raise _unsupported("weight", fmt, what, 'layouts.slog(..., exact="int8" or "e4m3")')
    parts = {(p.field, p.bits): b.name for b in fmt.buffers for p in b.parts}
    name = level.field.name
    plain = all(len(b.parts) == 1 and b.parts[0].pattern in PLAIN for b in fmt.buffers)
    keys = {4: ((name, None),), 3: ((name, (0, 2)), (name, (2, 3)))}[code.bits]
    if not plain or any(k not in parts for k in keys) or any(b.pad for b in fmt.buffers):
        raise _unsupported("weight", fmt, "bits in such an order", "as layouts.slog has them")
    return Packed(
        bits=code.bits,
        codes=parts[keys[0]],
        signs=parts[keys[1]] if len(keys) > 1 else "",
        scales=parts[scale.field.name, None],
        group=group,
        entries=tuple(int(p) for p in patterns),
        integer=unit == "int8",
    )


def side(fmt: Format, inner: int, name: str) -> Coding:
    """The facts of one operand of eight bits; UnsupportedError where no kernel reads it."""
    try:
        held = coding(fmt, inner)
    except UnsupportedError as error:
        raise _unsupported(name, fmt, "such a format", error.hint or "layouts.w8()") from error
    if held.bits != 8:
        raise _unsupported(name, fmt, f"codes of {held.bits} bits", "8 bits")
    if held.group is not None:
        raise _unsupported(name, fmt, f"scales of {held.group} columns", "a scale a row")
    if held.scale_dtype != "float32":
        raise _unsupported(name, fmt, f"{held.scale_dtype} scales", "float32")
    return held


def _name(unit: Unit) -> str:
    return "e4m3" if unit == "fp8" else "int8"


def _code(held: Coding) -> str:
    return "e4m3" if held.fp8 else "int8"


def _unsupported(name: str, fmt: Format, what: str, hint: str) -> UnsupportedError:
    return UnsupportedError(
        f"the kernels multiply no {what}",
        where=f"{name}, format {fmt.name!r}",
        hint=f'{hint}; layouts.activations(...), layouts.w8(...), or backend="reference"',
    )
