"""What the templates have to know of a spec: its unit, where codes and scales lie, what decodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from kdsl.errors import UnsupportedError
from kdsl.kernels.quantize.facts import Coding, coding
from kdsl.layouts import Format
from kdsl.specs import Matmul

Unit = Literal["int8", "fp8"]
ACTIVATIONS = {None: 0, "gelu_tanh": 1, "gelu_erf": 2, "silu": 3}
MOST_INNER = {False: 131072, True: 65536}
"""Products of integers that an int32 holds the sum of, without zero points and with them: 128 * 127
and (128 + 127) * 127 each."""


@dataclass(frozen=True)
class View:
    """A spec as the templates see it."""

    unit: Unit
    """What multiplies: integers with int32 sums, or e4m3 with float32 sums."""
    x: Coding
    weight: Coding

    @property
    def zeros(self) -> bool:
        """Whether x has zero points."""
        return self.x.asymmetric

    @property
    def integer(self) -> bool:
        """Whether sums are int32."""
        return self.unit == "int8"


@lru_cache(maxsize=256)
def view(spec: Matmul) -> View:
    """The facts of a spec; UnsupportedError where no kernel computes it."""
    x, weight = side(spec.x, spec.inner, "x"), side(spec.weight, spec.inner, "weight")
    if weight.asymmetric:
        raise _unsupported("weight", spec.weight, "zero points of weights", "symmetric weights")
    if x.fp8 != weight.fp8:
        raise _unsupported(
            "weight",
            spec.weight,
            f"{_code(weight)} weights beside {_code(x)} x",
            "one kind of code",
        )
    if not x.fp8 and spec.inner > MOST_INNER[x.asymmetric]:
        raise UnsupportedError(
            f"sums over {spec.inner} products do not fit int32",
            hint=f'at most {MOST_INNER[x.asymmetric]}, or backend="reference"',
        )
    return View("fp8" if x.fp8 else "int8", x, weight)


def side(fmt: Format, inner: int, name: str) -> Coding:
    """The facts of one operand's format; UnsupportedError where no kernel reads it."""
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


def _code(held: Coding) -> str:
    return "e4m3" if held.fp8 else "int8"


def _unsupported(name: str, fmt: Format, what: str, hint: str) -> UnsupportedError:
    return UnsupportedError(
        f"the kernels multiply no {what}",
        where=f"{name}, format {fmt.name!r}",
        hint=f'{hint}; layouts.activations(...), layouts.w8(...), or backend="reference"',
    )
