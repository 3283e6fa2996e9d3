"""Codes: the numbers that bit patterns stand for.

Every code maps patterns ``0 .. 2**bits - 1`` to float32 values, and values back to the nearest
pattern.  A value beyond the code's range is an error unless clipping is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError, reading
from kdsl.grid import count

Floats = npt.NDArray[np.float32]
Patterns = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Int:
    """Integers: ``value = stored + bias``, stored unsigned, or signed in two's complement.

    ``negated`` gives the negative of that, for what a format subtracts (minimums of K-quants).
    """

    bits: int
    signed: bool = False
    bias: int = 0
    negated: bool = False

    def __post_init__(self) -> None:
        if not 1 <= (count(self.bits) or 0) <= 32:
            raise SpecError(f"integers of {self.bits} bits", hint="1 to 32")

    @property
    def low(self) -> int:
        """Smallest value before the sign."""
        return self.bias - (1 << (self.bits - 1) if self.signed else 0)

    @property
    def high(self) -> int:
        """Largest value before the sign."""
        return self.low + (1 << self.bits) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value."""
        pair = (float(self.low), float(self.high))
        return (-pair[1], -pair[0]) if self.negated else pair

    @property
    def limit(self) -> float:
        """Largest magnitude that the code reaches on both sides; on one side if it has no other."""
        return float(min(-self.low, self.high) if self.low < 0 else self.high)

    def decode(self, patterns: npt.ArrayLike) -> Floats:
        """Values of patterns."""
        held = np.asarray(patterns, dtype=np.int64)
        if self.signed:
            half = 1 << (self.bits - 1)
            held = (held ^ half) - half
        value = held + self.bias
        return (-value if self.negated else value).astype(np.float32)

    def encode(self, values: npt.ArrayLike, *, clip: bool = False) -> Patterns:
        """Nearest patterns, ties to even values; InputError beyond the range unless ``clip``."""
        given = np.asarray(values, dtype=np.float64)
        rounded = np.rint(-given if self.negated else given)
        if clip:
            rounded = np.clip(rounded, self.low, self.high)
        _inside(rounded, self.low, self.high, self)
        found: Patterns = (rounded.astype(np.int64) - self.bias) & ((1 << self.bits) - 1)
        return found


@dataclass(frozen=True)
class Float:
    """Small floats: a sign bit (unless ``unsigned``), exponent, mantissa.

    ``special``: ``"ieee"`` keeps the top exponent for infinities and NaN, ``"fn"`` only the pattern
    of all ones for NaN (OCP e4m3), ``"none"`` has neither (OCP MX 4 and 6 bits).  With an exponent
    alone (e8m0) there is no zero and all ones is NaN.
    """

    exponent: int
    mantissa: int
    bias: int
    special: str = "none"
    unsigned: bool = False

    def __post_init__(self) -> None:
        sizes_fit = 2 <= self.exponent <= 8 and 0 <= self.mantissa <= 23
        if not sizes_fit or self.special not in ("ieee", "fn", "none"):
            raise SpecError(f"{self!r}", hint='2 to 8 exponent bits, "ieee", "fn" or "none"')

    @property
    def bits(self) -> int:
        """Bits of a pattern."""
        return self.exponent + self.mantissa + (not self.unsigned)

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest finite value."""
        return (0.0 if self.unsigned else -self.limit), self.limit

    @property
    def limit(self) -> float:
        """Largest finite value."""
        top = (1 << (self.exponent + self.mantissa)) - 1
        if self.special == "ieee":
            top -= 1 << self.mantissa
        elif self.special == "fn":
            top -= 1
        return float(self.decode(np.array([top]))[0])

    @property
    def nan(self) -> int | None:
        """A pattern that stands for NaN; None where there is none."""
        top = (1 << self.exponent + self.mantissa) - 1
        if self.special == "none" or (self.special == "ieee" and not self.mantissa):
            return None
        return top if self.special == "fn" else top - (1 << max(self.mantissa - 1, 0)) + 1

    def decode(self, patterns: npt.ArrayLike) -> Floats:
        """Values of patterns."""
        held = np.asarray(patterns, dtype=np.int64)
        mantissa = held & ((1 << self.mantissa) - 1)
        exponent = (held >> self.mantissa) & ((1 << self.exponent) - 1)
        hidden = (exponent > 0) | (self.mantissa == 0)
        fraction = np.where(hidden, mantissa + (1 << self.mantissa), mantissa)
        power = np.where(hidden, exponent, 1) - self.bias - self.mantissa
        value = np.ldexp(fraction.astype(np.float64), power)
        top = exponent == (1 << self.exponent) - 1
        if self.special == "ieee":
            value = np.where(top, np.where(mantissa == 0, np.inf, np.nan), value)
        elif self.special == "fn":
            value = np.where(top & (mantissa == (1 << self.mantissa) - 1), np.nan, value)
        if not self.unsigned:
            value = np.where(held >> (self.bits - 1) & 1 == 1, -value, value)
        with np.errstate(over="ignore"):
            out: Floats = value.astype(np.float32)
        return out

    def nearest(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Nearest values, ties to even; beyond the range the largest one.  NaN stays.

        What `decode` makes of `encode`, without patterns between them.
        """
        given = np.clip(np.asarray(values, dtype=np.float64), *self.ends)
        power = np.maximum(np.frexp(given)[1] - 1, 1 - self.bias) - self.mantissa
        out: npt.NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(given, -power)), power)
        return out

    def encode(self, values: npt.ArrayLike, *, clip: bool = False) -> Patterns:
        """Nearest patterns, ties to even; InputError beyond the range unless ``clip``.

        Without mantissa and sign (e8m0) the next power of two upwards, so that what a scale of it
        divides stays in range.
        """
        given = np.asarray(values, dtype=np.float64)
        if clip:
            given = np.clip(given, -self.limit, self.limit)
        if self.unsigned:
            _inside(given, 0.0, self.limit, self)
        if self.mantissa == 0 and self.unsigned:
            fraction, power = np.frexp(given)
            power = np.where(fraction == 0.5, power - 1, power) + self.bias
            return np.where(given == 0, 0, np.maximum(power, 0)).astype(np.int64)
        largest = float(np.finfo(np.float32).max)
        _inside(given, -largest, largest, self)
        magnitude = np.abs(given)
        _, power = np.frexp(magnitude)
        exponent = np.where(magnitude == 0, 1, np.maximum(power - 1 + self.bias, 1))
        step = exponent - self.bias - self.mantissa
        units = np.rint(np.ldexp(magnitude, -step)).astype(np.int64)
        # A full carry moves to the next exponent by itself; below the hidden bit: subnormal.
        pattern = units + ((exponent - 1) << self.mantissa)
        _inside(np.ldexp(units.astype(np.float64), step), -self.limit, self.limit, self)
        if not self.unsigned:
            pattern |= np.signbit(given).astype(np.int64) << (self.bits - 1)
        found: Patterns = pattern
        return found


@dataclass(frozen=True)
class Lut:
    """A codebook: pattern ``i`` stands for ``values[i]``, each exact in float32."""

    values: tuple[float, ...]
    name: str = ""

    def __post_init__(self) -> None:
        values = tuple(map(float, self.values))
        if len(values) & (len(values) - 1) or not 2 <= len(values) <= 256:
            raise SpecError(f"a codebook of {len(values)} entries", hint="2, 4, 8, ... 256")
        if not all(math.isfinite(v) and v == float(np.float32(v)) for v in values):
            raise SpecError("codebook entries must be finite and exact in float32", where=self.name)
        object.__setattr__(self, "values", values)

    @property
    def bits(self) -> int:
        """Bits of a pattern."""
        return len(self.values).bit_length() - 1

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest entry."""
        return min(self.values), max(self.values)

    @property
    def limit(self) -> float:
        """Largest magnitude reached on both sides."""
        low, high = min(self.values), max(self.values)
        return min(-low, high) if low < 0 < high else max(abs(low), abs(high))

    def decode(self, patterns: npt.ArrayLike) -> Floats:
        """Values of patterns."""
        out: Floats = np.asarray(self.values, np.float32)[np.asarray(patterns, dtype=np.int64)]
        return out

    def encode(self, values: npt.ArrayLike, *, clip: bool = False) -> Patterns:
        """Nearest patterns, ties to the smaller value; InputError beyond the ends unless ``clip``.

        Half a step beyond an end still rounds to it.
        """
        given = np.asarray(values, dtype=np.float64)
        order, entries = _ascending(self.values)
        if not clip:
            low = entries[0] - (entries[1] - entries[0]) / 2
            high = entries[-1] + (entries[-1] - entries[-2]) / 2
            _inside(given, low, high, self)
        cuts = (entries[1:] + entries[:-1]) / 2
        found: Patterns = order[np.searchsorted(cuts, given, side="left")]
        return found


@dataclass(frozen=True)
class TwinLog:
    """Signs and positions on a logarithmic grid: ``sign * (2**((q + zero) * delta) - eta)``.

    ``levels`` are the bits of the method, ``n = 2**(levels - 1)`` positions a sign.  Published
    (``"paper"``): ``2**levels`` symbols, each sign over its own range; a zero weight takes the
    smallest positive one.  Public code (``"code"``): zero is a symbol, the negative side has
    ``n + 1`` positions, so that a pattern takes ``levels + 1`` bits; zero points are whole.
    """

    levels: int
    variant: str = "paper"

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "code") or not 2 <= self.levels <= 7:
            raise SpecError(f"{self!r}", hint='2 to 7 levels, "paper" or "code"')

    @property
    def bits(self) -> int:
        """Bits of a pattern."""
        return self.levels + (self.variant == "code")

    @property
    def positions(self) -> int:
        """Positions of a sign."""
        return 1 << (self.levels - 1)

    def split(self, patterns: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], Patterns]:
        """Signs (-1, 0, 1) and positions of patterns."""
        held, n = np.asarray(patterns, np.int64), self.positions
        if self.variant == "paper":
            return np.where(held < n, 1, -1), held % n
        sign = np.where(held == 0, 0, np.where(held <= n, 1, -1))
        return sign, np.where(sign > 0, held - 1, np.maximum(held - n - 1, 0))

    def join(self, sign: npt.NDArray[Any], position: Patterns) -> Patterns:
        """The patterns of signs and positions."""
        n = self.positions
        if self.variant == "paper":
            return np.where(sign < 0, position + n, position)
        return np.where(sign > 0, position + 1, np.where(sign < 0, position + n + 1, 0))

    @property
    def ends(self) -> tuple[float, float]:
        """A SpecError: the range is that of the parameters."""
        raise _bare()

    @property
    def limit(self) -> float:
        """A SpecError: the range is that of the parameters."""
        raise _bare()

    def decode(self, patterns: npt.ArrayLike) -> Floats:
        """A SpecError: patterns have values with parameters alone."""
        raise _bare()

    def encode(self, values: npt.ArrayLike, *, clip: bool = False) -> Patterns:
        """A SpecError: see `kdsl.layouts.fit_tlq`."""
        raise _bare()

    def decode_with(self, patterns: npt.ArrayLike, parameters: Sequence[Floats]) -> Floats:
        """Values, from the parameters in the order of `PARAMETERS`, in float32."""
        sign, position = self.split(patterns)
        up, zero_up, down, zero_down, eta = parameters
        delta, zero = np.where(sign > 0, up, down), np.where(sign > 0, zero_up, zero_down)
        magnitude = np.exp2((position.astype(np.float32) + zero) * delta) - eta
        out: Floats = (sign.astype(np.float32) * magnitude).astype(np.float32)
        return out


def _bare() -> SpecError:
    return SpecError("twin-log patterns have no values of their own", hint="layouts.fit_tlq")


PARAMETERS = ("delta_plus", "zero_plus", "delta_minus", "zero_minus", "eta")
"""What `TwinLog.decode_with` takes, in this order."""
Code = Int | Float | Lut | TwinLog

E2M1 = Float(2, 1, 1)
E2M3 = Float(2, 3, 1)
E3M2 = Float(3, 2, 3)
E4M3 = Float(4, 3, 7, "fn")
E5M2 = Float(5, 2, 15, "ieee")
E8M0 = Float(8, 0, 127, "fn", unsigned=True)
F16 = Float(5, 10, 15, "ieee")
BF16 = Float(8, 7, 127, "ieee")
F32 = Float(8, 23, 127, "ieee")
I32 = Int(32, signed=True)


@lru_cache(maxsize=256)
def _ascending(values: tuple[float, ...]) -> tuple[Patterns, npt.NDArray[np.float64]]:
    order = np.argsort(values, kind="stable")
    return order, np.asarray(values)[order]


def _inside(values: npt.NDArray[Any], low: float, high: float, code: Code) -> None:
    bad = ~((values >= low) & (values <= high))
    if bad.any():
        raise InputError(
            f"{values[bad].flat[0]:.6g} does not fit the code",
            where=repr(code),
            hint=f"finite values from {low:.6g} to {high:.6g}",
        )


def code_to_json(code: Code) -> dict[str, Any]:
    """The canonical form; codebook entries as hexadecimal floats."""
    if isinstance(code, Int):
        return {
            "kind": "int",
            "bits": code.bits,
            "signed": code.signed,
            "bias": code.bias,
            "negated": code.negated,
        }
    if isinstance(code, Float):
        return {
            "kind": "float",
            "exponent": code.exponent,
            "mantissa": code.mantissa,
            "bias": code.bias,
            "special": code.special,
            "unsigned": code.unsigned,
        }
    if isinstance(code, TwinLog):
        return {"kind": "twinlog", "levels": code.levels, "variant": code.variant}
    return {"kind": "lut", "values": [v.hex() for v in code.values], "name": code.name}


@reading("code")
def code_from_json(value: Mapping[str, Any]) -> Code:
    """The code written by `code_to_json`."""
    given = dict(value)
    kind = given.pop("kind")
    if kind == "int":
        return Int(**given)
    if kind == "float":
        return Float(**given)
    if kind == "twinlog":
        return TwinLog(**given)
    if kind == "lut":
        return Lut(tuple(float.fromhex(v) for v in given.pop("values")), **given)
    raise SpecError(f"code of kind {kind!r}", hint="int, float, lut or twinlog")
