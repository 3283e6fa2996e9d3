"""Formats: how a matrix is stored in low precision, as a product of parts.

A format is a `Level` (code, groups, scale chain, zero point, offset) and the `Buffer`s its fields'
bits lie in.  Packing, unpacking, dequantization, sizes, legality, conversion and the decode leaves
follow from that description; nothing is written by hand for a single format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError
from kdsl.expr.evaluate import evaluate
from kdsl.expr.nodes import var
from kdsl.layouts.codes import PARAMETERS, Code, Floats, Patterns, TwinLog
from kdsl.layouts.groups import Block, Groups, Indexed, Shape
from kdsl.layouts.pattern import Placement, resolve

Fields = Mapping[str, Patterns]
"""Patterns of every field by name, each in the shape of its groups."""
Buffers = Mapping[str, npt.NDArray[Any]]
WORDS = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float16", "float32")
EACH = Block()
"""A group for every entry of the matrix."""
FITS = ("largest", "range", "mean", "least", "given")


@dataclass(frozen=True)
class Field:
    """One stored array of patterns: its code and the groups it has an entry for.

    ``fit`` says what quantization derives entries from: the ``"largest"`` magnitude they cover, its
    ``"range"`` (for a scale with a zero point), ``"mean"``, ``"least"``, or that they are
    ``"given"``.
    """

    name: str
    code: Code
    groups: Groups = EACH
    fit: str = "largest"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name) or self.fit not in FITS:
            raise SpecError(
                f"field {self.name!r}, fit {self.fit!r}",
                hint=f"a plain name; one of {', '.join(FITS)}",
            )


@dataclass(frozen=True)
class Level:
    """``value = (field - zero) * scale + offset``, where all but the field are levels themselves.

    Float32 throughout, in this order.
    """

    field: Field
    scale: Level | None = None
    zero: Level | None = None
    offset: Level | None = None
    parameters: tuple[Level, ...] = ()
    """What a code such as twin-log decodes with; it has no values of its own."""

    def __post_init__(self) -> None:
        wanted = len(PARAMETERS) if isinstance(self.field.code, TwinLog) else 0
        if len(self.parameters) != wanted:
            raise SpecError(f"{self.field.name!r} takes {wanted} parameters")

    def walk(self) -> Iterator[Level]:
        """This level and every one below it."""
        yield self
        for part in (self.scale, self.zero, self.offset, *self.parameters):
            if part is not None:
                yield from part.walk()


@dataclass(frozen=True)
class Part:
    """Where (some) bits of (some) columns of a field lie in a buffer; see `pattern`.

    ``bits`` are the bits ``low .. high - 1`` of each pattern; ``columns`` of every ``period``
    columns those from ``low`` to ``high - 1``; ``pad`` rounds rows and columns up with zeros.  With
    ``trits`` the pattern's last axes are the base-3 digits of bytes, five a byte or fewer, most
    significant first, as in GGUF's TQ1_0.
    """

    field: str
    pattern: str
    bits: tuple[int, int] | None = None
    columns: tuple[int, int, int] | None = None
    pad: tuple[int, int] = (1, 1)
    trits: int = 0


@dataclass(frozen=True)
class Buffer:
    """An array of ``[records, words]``: in each record its parts, one after the other.

    ``pad`` fills each record up to whole words with zero bits; otherwise it must be whole.
    """

    name: str
    word: str
    parts: tuple[Part, ...]
    pad: bool = False

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise SpecError(f"words of {self.word!r}", where=self.name, hint=", ".join(WORDS))

    @property
    def width(self) -> int:
        """Bits of a word."""
        return 8 * np.dtype(self.word).itemsize


@dataclass(frozen=True)
class Format:
    """A matrix ``[rows, columns]`` as stored: what its numbers mean, and where its bits lie."""

    name: str
    level: Level
    buffers: tuple[Buffer, ...]
    extra: tuple[Field, ...] = ()
    """Fields that no level names: companions such as ``g_idx``."""

    def __post_init__(self) -> None:
        names = [level.field.name for level in self.level.walk()] + [f.name for f in self.extra]
        if len(set(names)) != len(names):
            raise SpecError(f"fields {names}: two share a name", where=self.name)
        covered: dict[str, float] = dict.fromkeys(names, 0.0)
        for part in (p for b in self.buffers for p in b.parts):
            if part.field not in covered:
                raise SpecError(f"no field {part.field!r}", where=self.name, hint=", ".join(names))
            bits = self.fields[part.field].code.bits
            low, high = part.bits or (0, bits)
            period, first, last = part.columns or (1, 0, 1)
            if not (0 <= low < high <= bits and 0 <= first < last <= period):
                raise SpecError(f"{part!r} is outside its field", where=self.name)
            covered[part.field] += (high - low) / bits * (last - first) / period
        short = [n for n, share in covered.items() if abs(share - 1) > 1e-9]
        if short:
            raise SpecError(f"field {short[0]!r} is not stored exactly once", where=self.name)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Every field by name."""
        found = {level.field.name: level.field for level in self.level.walk()}
        return found | {f.name: f for f in self.extra}

    def check(self, shape: Shape) -> None:
        """SpecError where a matrix of this shape cannot be stored so."""
        for buffer in self.buffers:
            self.buffer_shape(buffer, shape)
        for field in self.fields.values():
            field.groups.shape(shape)

    def placement(self, part: Part, shape: Shape) -> Placement:
        """Where the entries of a part lie, for a matrix of this shape."""
        field = self.fields[part.field]
        rows, cols = field.groups.shape(shape)
        if part.columns:
            period, low, high = part.columns
            if cols % period:
                raise SpecError(f"{cols} columns", where=self.name, hint=f"a multiple of {period}")
            cols = cols // period * (high - low)
        rows, cols = (-(-n // m) * m for n, m in zip((rows, cols), part.pad, strict=True))
        low, high = part.bits or (0, field.code.bits)
        return resolve(part.pattern, (rows, cols, 1 if part.trits else high - low))

    def part_shape(self, part: Part, shape: Shape) -> tuple[int, int]:
        """(records, bits in a record) of a part."""
        records, bits = self.placement(part, shape).shape
        return records, bits // part.trits * 8 if part.trits else bits

    def buffer_shape(self, buffer: Buffer, shape: Shape) -> tuple[int, int]:
        """(records, words in a record); SpecError where parts do not fit together."""
        shapes = [self.part_shape(p, shape) for p in buffer.parts]
        if len({records for records, _ in shapes}) != 1:
            raise SpecError(f"parts of {buffer.name!r} have {shapes} (records, bits)")
        bits = sum(b for _, b in shapes)
        if bits % buffer.width and not buffer.pad:
            raise SpecError(
                f"records of {bits} bits are no whole words of {buffer.width}",
                where=f"buffer {buffer.name!r} of {self.name} for shape {shape}",
                hint="a shape that fills words, or pad=True",
            )
        return shapes[0][0], -(-bits // buffer.width)

    def nbytes(self, shape: Shape) -> int:
        """Bytes of all buffers for a matrix of this shape."""
        sizes = ((self.buffer_shape(b, shape), b.width) for b in self.buffers)
        return sum(records * words * width // 8 for (records, words), width in sizes)

    def pack(self, fields: Fields, shape: Shape) -> dict[str, npt.NDArray[Any]]:
        """The buffers that hold these patterns."""
        held = {name: self._patterns(name, fields, shape) for name in self.fields}
        return {b.name: self._pack(b, held, shape) for b in self.buffers}

    def _patterns(self, name: str, fields: Fields, shape: Shape) -> Patterns:
        if name not in fields:
            raise InputError(f"no field {name!r}", where=self.name, hint=", ".join(self.fields))
        field, got = self.fields[name], np.asarray(fields[name])
        if got.shape != field.groups.shape(shape) or got.dtype.kind not in "iu":
            raise InputError(
                f"field {name!r} is {got.dtype} of shape {got.shape}",
                where=self.name,
                hint=f"integers of shape {field.groups.shape(shape)}",
            )
        if got.size and not 0 <= int(got.min()) <= int(got.max()) < 1 << field.code.bits:
            raise InputError(f"field {name!r} has patterns beyond {field.code.bits} bits")
        return got.astype(np.int64)

    def _pack(self, buffer: Buffer, fields: Fields, shape: Shape) -> npt.NDArray[Any]:
        records, words = self.buffer_shape(buffer, shape)
        parts = [self._bits(part, fields[part.field], shape) for part in buffer.parts]
        bits = np.concatenate(parts, axis=1)
        full = np.zeros((records, words * buffer.width), np.uint8)
        full[:, : bits.shape[1]] = bits
        packed = np.packbits(full, axis=1, bitorder="little")
        return packed.view(np.dtype(buffer.word).newbyteorder("<"))

    def _bits(self, part: Part, entries: Patterns, shape: Shape) -> npt.NDArray[np.uint8]:
        """The bits of a part, ``[records, bits]``."""
        place = self.placement(part, shape)
        if part.columns:
            period, low, high = part.columns
            rows = entries.shape[0]
            entries = entries.reshape(rows, -1, period)[:, :, low:high].reshape(rows, -1)
        wanted = place.steps[0].inputs
        rows, cols = (int(np.prod([s for _, s in g])) for g in wanted[:2])
        entries = np.pad(entries, ((0, rows - entries.shape[0]), (0, cols - entries.shape[1])))
        if part.trits:
            digits = place.apply(entries[..., None]).reshape(place.shape[0], -1, part.trits)
            number = digits @ 3 ** np.arange(4, 4 - part.trits, -1)
            byte = (number * 256 + 242) // 243
            return np.unpackbits(byte.astype(np.uint8), axis=1, bitorder="little")
        first, last = part.bits or (0, self.fields[part.field].code.bits)
        bits = (entries[..., None] >> np.arange(first, last)) & 1
        return place.apply(bits.astype(np.uint8))

    def unpack(self, buffers: Buffers, shape: Shape) -> dict[str, Patterns]:
        """The patterns that buffers hold; InputError where they are not of this format."""
        found = {n: np.zeros(f.groups.shape(shape), np.int64) for n, f in self.fields.items()}
        for buffer in self.buffers:
            bits = self._buffer_bits(buffer, buffers, shape)
            start = 0
            for part in buffer.parts:
                size = self.part_shape(part, shape)[1]
                self._take(part, bits[:, start : start + size], found[part.field], shape)
                start += size
        return found

    def _buffer_bits(self, buffer: Buffer, buffers: Buffers, shape: Shape) -> npt.NDArray[np.uint8]:
        if buffer.name not in buffers:
            names = ", ".join(b.name for b in self.buffers)
            raise InputError(f"no buffer {buffer.name!r}", where=self.name, hint=names)
        got, wanted = np.asarray(buffers[buffer.name]), self.buffer_shape(buffer, shape)
        if got.dtype.newbyteorder("=") != np.dtype(buffer.word) or got.shape != wanted:
            raise InputError(
                f"buffer {buffer.name!r} is {got.dtype} of shape {got.shape}",
                where=f"{self.name}, matrix of shape {shape}",
                hint=f"{buffer.word} of shape {wanted}",
            )
        held = np.ascontiguousarray(got, np.dtype(buffer.word).newbyteorder("<"))
        raw = held.view(np.uint8).reshape(wanted[0], -1)
        return np.unpackbits(raw, axis=1, bitorder="little")

    def _take(
        self, part: Part, bits: npt.NDArray[np.uint8], entries: Patterns, shape: Shape
    ) -> None:
        """Add a part's bits to the entries they belong to."""
        place = self.placement(part, shape)
        if part.trits:
            byte = np.packbits(bits, axis=1, bitorder="little").astype(np.int64)
            digits = (byte[..., None] * 3 ** np.arange(part.trits) % 256) * 3 >> 8
            got = place.undo(digits.reshape(place.shape)[..., None])[..., 0]
        else:
            first, last = part.bits or (0, self.fields[part.field].code.bits)
            weights = np.int64(1) << np.arange(first, last)
            got = place.undo(bits) @ weights
        if part.columns:
            period, low, high = part.columns
            rows = entries.shape[0]
            view = entries.reshape(rows, -1, period)
            view[:, :, low:high] += got.reshape(rows, -1, high - low)
        else:
            entries += got[: entries.shape[0], : entries.shape[1]]

    def dequantize(self, buffers: Buffers, shape: Shape) -> Floats:
        """The matrix that buffers stand for, float32 ``[rows, columns]``."""
        return self.decode(self.unpack(buffers, shape), shape)

    def decode(self, fields: Fields, shape: Shape) -> Floats:
        """The matrix that patterns stand for, float32 ``[rows, columns]``."""
        tables = self.tables(fields, shape)
        return np.array(np.broadcast_to(self._values(self.level, fields, shape, tables), shape))

    def _values(self, level: Level, fields: Fields, shape: Shape, tables: Any) -> Floats:
        field = level.field
        at = entry_index(field.groups, shape, tables)
        if isinstance(field.code, TwinLog):
            given = [self._values(p, fields, shape, tables) for p in level.parameters]
            value = field.code.decode_with(fields[field.name][at], given)
        else:
            value = field.code.decode(fields[field.name])[at]
        with np.errstate(all="ignore"):
            if level.zero is not None:
                value = value - self._values(level.zero, fields, shape, tables)
            if level.scale is not None:
                value = value * self._values(level.scale, fields, shape, tables)
            if level.offset is not None:
                value = value + self._values(level.offset, fields, shape, tables)
        return value

    def tables(self, fields: Fields, shape: Shape) -> dict[str, npt.NDArray[Any]]:
        """Index tables that groups read, from the fields that hold them."""
        found = {}
        for field in self.fields.values():
            if isinstance(field.groups, Indexed):
                name, (_, groups) = field.groups.table, field.groups.shape(shape)
                values = np.asarray(fields[name]).reshape(-1)
                if values.size and not 0 <= int(values.min()) <= int(values.max()) < groups:
                    raise InputError(
                        f"{name!r} names groups {values.min()}..{values.max()}",
                        where=self.name,
                        hint=f"0 to {groups - 1}",
                    )
                found[name] = values.astype(np.int32)
        return found


def entry_index(
    groups: Groups, shape: Shape, tables: Mapping[str, npt.NDArray[Any]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Entries that the positions of a matrix belong to: two arrays that broadcast to its shape."""
    at = groups.at(var("row"), var("col"), shape)
    indices = {"row": np.arange(shape[0])[:, None], "col": np.arange(shape[1])[None, :]}

    def values(axis: int) -> npt.NDArray[np.int64]:
        used = at[axis].variables()
        return evaluate(at[axis], {n: v for n, v in indices.items() if n in used}, tables)

    return values(0), values(1)
