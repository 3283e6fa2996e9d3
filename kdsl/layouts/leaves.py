"""Decode leaves of a format: ``dequantize(row, col, ...)`` as Triton and CUDA C source.

Addresses and bit extraction are expressions over ``row`` and ``col``, printed by the readers that
masks use; the float steps around them are fixed text.  Buffers are read as bytes, so one leaf
serves every word size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import UnsupportedError
from kdsl.expr import cuda_source, triton_source
from kdsl.expr.nodes import Expr, const, maximum, minimum, var, where
from kdsl.expr.printing import table_name
from kdsl.expr.tables import Table
from kdsl.layouts.codes import BF16, E8M0, F32, Code, Float, Int, Lut
from kdsl.layouts.format import Buffer, Buffers, Field, Format, Level, Part
from kdsl.layouts.groups import Indexed, Shape

PARAMS = ("row", "col")
INT32 = (-(2**31), 2**31 - 1)

TRITON_HELPERS = '''
@triton.jit
def from_bits(pattern):
    """The float32 of a 32-bit pattern."""
    return pattern.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def small_float(
    pattern, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr,
    SIGNED: tl.constexpr, SPECIAL: tl.constexpr,
):
    """Value of a small float; SPECIAL 1: IEEE infinities and NaN, 2: NaN of all ones."""
    mantissa = pattern & ((1 << MANTISSA) - 1)
    exponent = (pattern >> MANTISSA) & ((1 << EXPONENT) - 1)
    hidden = tl.where(exponent > 0, 1 << MANTISSA, 0)
    power = from_bits((tl.maximum(exponent, 1) - BIAS - MANTISSA + 127) << 23)
    value = (mantissa + hidden).to(tl.float32) * power
    top = exponent == (1 << EXPONENT) - 1
    if SPECIAL == 1:
        value = tl.where(top, tl.where(mantissa == 0, float("inf"), float("nan")), value)
    if SPECIAL == 2:
        value = tl.where(top & (mantissa == (1 << MANTISSA) - 1), float("nan"), value)
    if SIGNED:
        value = tl.where(((pattern >> (EXPONENT + MANTISSA)) & 1) != 0, -value, value)
    return value


@triton.jit
def power_of_two(pattern):
    """Value of e8m0."""
    value = from_bits(tl.where(pattern == 0, 0x00400000, (pattern & 255) << 23))
    return tl.where(pattern == 255, float("nan"), value)
'''

CUDA_HELPERS = """\
#ifndef __CUDACC__
#include <cmath>
#include <cstring>
#define INFINITY_F HUGE_VALF
#define NAN_F NAN
#else
#define INFINITY_F __int_as_float(0x7f800000)
#define NAN_F __int_as_float(0x7fffffff)
#endif

// The float32 of a 32-bit pattern.
KDSL_LEAF float from_bits(int pattern) {
#ifdef __CUDA_ARCH__
  return __int_as_float(pattern);
#else
  float value;
  std::memcpy(&value, &pattern, 4);
  return value;
#endif
}

// Value of a small float; special 1: IEEE infinities and NaN, 2: NaN of all ones.
KDSL_LEAF float small_float(int pattern, int exponent_bits, int mantissa_bits, int bias,
                            bool with_sign, int special) {
  const int mantissa = pattern & ((1 << mantissa_bits) - 1);
  const int exponent = (pattern >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int hidden = exponent > 0 ? 1 << mantissa_bits : 0;
  const int power = (exponent > 1 ? exponent : 1) - bias - mantissa_bits + 127;
  float value = (float)(mantissa + hidden) * from_bits(power << 23);
  const bool top = exponent == (1 << exponent_bits) - 1;
  if (special == 1 && top) value = mantissa == 0 ? INFINITY_F : NAN_F;
  if (special == 2 && top && mantissa == (1 << mantissa_bits) - 1) value = NAN_F;
  return with_sign && ((pattern >> (exponent_bits + mantissa_bits)) & 1) ? -value : value;
}

// Value of e8m0.
KDSL_LEAF float power_of_two(int pattern) {
  return pattern == 255 ? NAN_F : from_bits(pattern == 0 ? 0x00400000 : pattern << 23);
}
"""


@dataclass(frozen=True)
class Leaves:
    """Sources of a format's leaves for one shape, and the tables they take, in order."""

    triton: str
    cuda: str
    tables: tuple[Table, ...]


def leaves(fmt: Format, shape: Shape, name: str = "dequantize") -> Leaves:
    """``name(row, col, tables)`` in Triton, ``name(row, col, pointers...)`` in CUDA C.

    It gives the float32 value of an entry, by the steps of `Format.decode`.  SpecError where
    addresses leave 32 bits.
    """
    fmt.check(shape)
    fields = [level.field for level in fmt.level.walk()]
    exprs = {f.name: _stored(fmt, f, shape) for f in fields}
    tables = _tables(fmt, shape)
    indices = {"row": (0, shape[0] - 1), "col": (0, shape[1] - 1)}
    triton, cuda = [TRITON_HELPERS], [CUDA_HELPERS]
    for field in fields:
        variants = [((0,), exprs[field.name])]
        leaf = f"{name}_{field.name}"
        triton.append(triton_source.leaf(leaf, PARAMS, variants, indices, tables))
        cuda.append(cuda_source.leaf(leaf, PARAMS, variants, indices, tables))
    triton.append(
        f"@triton.jit\ndef {name}(row, col, tables):\n"
        f"    return {_value(fmt.level, name, 'tables', _TRITON)}\n"
    )
    pointers = [f"const {cuda_source.C_TYPES[t.dtype]}* {table_name(t)}" for t in tables]
    given = ", ".join(table_name(t) for t in tables)
    cuda.append(
        f"KDSL_LEAF float {name}(int row, int col, {', '.join(pointers)}) {{\n"
        f"  return {_value(fmt.level, name, given, _CUDA)};\n}}\n"
    )
    return Leaves("\n\n".join(triton), "\n".join(cuda), tables)


def operands(fmt: Format, buffers: Buffers, shape: Shape) -> list[npt.NDArray[Any]]:
    """The arrays behind the tables of `leaves`, in their order."""
    fields = fmt.unpack(buffers, shape)
    indexed = fmt.tables(fields, shape)
    raw = {f"{b.name}_bytes": _bytes(buffers[b.name]) for b in fmt.buffers}
    found = []
    for table in _tables(fmt, shape):
        values = raw.get(table.name, indexed.get(table.name, table.values))
        assert values is not None
        found.append(np.ascontiguousarray(values))
    return found


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    held = np.ascontiguousarray(array, np.asarray(array).dtype.newbyteorder("<"))
    return held.view(np.uint8).reshape(-1)


def _tables(fmt: Format, shape: Shape) -> tuple[Table, ...]:
    found = [_buffer_table(fmt, b, shape) for b in fmt.buffers]
    for field in fmt.fields.values():
        if isinstance(field.code, Lut):
            found.append(_lut_table(field, field.code))
        if isinstance(field.groups, Indexed):
            groups = field.groups.shape(shape)[1]
            table = Table(field.groups.table, shape[1], "int32", 0, groups - 1)
            if table.name not in {t.name for t in found}:
                found.append(table)
    return tuple(found)


def _buffer_table(fmt: Format, buffer: Buffer, shape: Shape) -> Table:
    records, words = fmt.buffer_shape(buffer, shape)
    return Table(f"{buffer.name}_bytes", records * words * buffer.width // 8, "uint8", 0, 255)


def _lut_table(field: Field, code: Lut) -> Table:
    patterns = np.asarray(code.values, np.float32).view(np.int32)
    return Table(f"{field.name}_lut", len(code.values), "int32", *INT32, patterns)


def _stored(fmt: Format, field: Field, shape: Shape) -> Expr:
    """The stored pattern of a field at (row, col); of a codebook, the float32 pattern it means."""
    row, col = field.groups.at(var("row"), var("col"), shape)
    total = const(0)
    for buffer in fmt.buffers:
        start = 0
        for part in buffer.parts:
            if part.field == field.name:
                low = part.bits[0] if part.bits else 0
                got = _part(fmt, buffer, part, (row, col), start, shape)
                total = total + _shifted(_selected(got, part, col), low)
            start += fmt.part_shape(part, shape)[1]
    if isinstance(field.code, Lut):
        return _lut_table(field, field.code)[total]
    return total


def _selected(got: Expr, part: Part, col: Expr) -> Expr:
    if part.columns is None:
        return got
    period, low, high = part.columns
    inside = (col % period >= low) & (col % period < high)
    return where(inside, got, 0)


def _part(
    fmt: Format, buffer: Buffer, part: Part, at: tuple[Expr, Expr], start: int, shape: Shape
) -> Expr:
    row, col = at
    if part.columns:
        period, low, high = part.columns
        inner = minimum(maximum(col % period - low, 0), high - low - 1)
        col = col // period * (high - low) + inner
    place = fmt.placement(part, shape)
    table = _buffer_table(fmt, buffer, shape)
    record_bytes = fmt.buffer_shape(buffer, shape)[1] * buffer.width // 8

    def byte(record: Expr, bit: Expr, more: int = 0) -> Expr:
        return table[record * record_bytes + bit // 8 + more]

    if part.trits:
        record, digit = place.at(row, col, 0)
        held = byte(record, digit // part.trits * 8 + start)
        turn = digit % part.trits
        power = reduce(
            lambda rest, n: where(turn < n, 3 ** (n - 1), rest),
            range(part.trits - 1, 0, -1),
            const(3 ** (part.trits - 1)),
        )
        return held * power % 256 * 3 >> 8
    first, last = part.bits or (0, fmt.fields[part.field].code.bits)
    bits = last - first
    record, bit = place.at(row, col, 0)
    if place.together and bits % 8 == 0 and start % 8 == 0:
        parts = [_shifted(byte(record, bit + start, i), 8 * i) for i in range(bits // 8)]
        return reduce(lambda a, b: a + b, parts)
    if place.together and 8 % bits == 0 and start % bits == 0:
        return (byte(record, bit + start) >> (bit + start) % 8) % (1 << bits)
    found = const(0)
    for i in range(bits):
        record, bit = place.at(row, col, i)
        found = found + _shifted((byte(record, bit + start) >> (bit + start) % 8) % 2, i)
    return found


def _shifted(value: Expr, bits: int) -> Expr:
    """``value << bits`` in two's complement: the top byte of four carries the sign."""
    if bits == 24:
        value = (value + 128) % 256 - 128
    return value * (1 << bits)


_TRITON = ("({0}).to(tl.float32)", "True")
_CUDA = ("(float)({0})", "true")


def _value(level: Level, name: str, tables: str, words: tuple[str, str]) -> str:
    """The float expression of a level, in the order `Format.decode` computes."""
    text = _decoded(level.field.code, f"{name}_{level.field.name}(row, col, {tables})", words)
    for part, sign in ((level.zero, "-"), (level.scale, "*"), (level.offset, "+")):
        if part is not None:
            text = f"({text} {sign} {_value(part, name, tables, words)})"
    return text


def _decoded(code: Code, stored: str, words: tuple[str, str]) -> str:
    to_float, true = words
    if isinstance(code, Lut) or code == F32:
        return f"from_bits({stored})"
    if isinstance(code, Int):
        if code.signed and code.bits < 32:
            half = 1 << (code.bits - 1)
            stored = f"({stored} ^ {half}) - {half}"
        value = to_float.format(f"({stored}) + {code.bias}" if code.bias else stored)
        return f"(-{value})" if code.negated else value
    if code == BF16:
        return f"from_bits({stored} << 16)"
    if code == E8M0:
        return f"power_of_two({stored})"
    if not isinstance(code, Float) or code.unsigned or code.exponent > 6:
        raise UnsupportedError(f"no leaf decodes {code!r}", hint="layouts.slog")
    special = {"none": 0, "ieee": 1, "fn": 2}[code.special]
    return (
        f"small_float({stored}, {code.exponent}, {code.mantissa}, {code.bias}, {true}, {special})"
    )
