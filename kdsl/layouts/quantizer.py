"""Quantization into a format, clip search, and conversion between formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError
from kdsl.layouts.codes import Floats, Patterns
from kdsl.layouts.format import Buffers, Field, Fields, Format, Level, entry_index
from kdsl.layouts.groups import Block, Groups, Shape

Index = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
CLIPS = tuple(1.0 - i / 32 for i in range(17))
"""Default scale factors of a clip search: 1 down to 0.5."""


def quantize(
    fmt: Format,
    x: npt.ArrayLike,
    *,
    clips: Sequence[float] = (1.0,),
    weights: npt.ArrayLike | None = None,
    given: Fields | None = None,
) -> dict[str, Patterns]:
    """Patterns of the nearest representable matrix, scales from the largest magnitude of a group.

    ``clips`` are factors of that scale to try; each group of the first scale keeps the one with the
    least squared error, weighted by ``weights`` (broadcast to ``[rows, columns]``; the diagonal of
    the Hessian ``x @ x.T`` of the layer's input, say).  With a factor below 1, what lies beyond is
    clipped, which is what the search is for; with 1 alone only what the rounding of a scale by its
    own code leaves out of reach goes to the end of the range.  ``given`` are patterns of
    fields that are not fitted (``g_idx``).  InputError for values that are not finite or that a
    scale's code cannot hold.
    """
    values = _matrix(x)
    fmt.check(_shape(values))
    job = _Fit(fmt, _shape(values), dict(given or {}))
    if not clips or any(not 0 < c <= 1 for c in clips):
        raise InputError(f"clips={tuple(clips)}", hint="factors above 0, at most 1")
    if tuple(clips) == (1.0,):
        job.level(fmt.level, values, 1.0)
        return job.found
    weight = np.asarray(1.0 if weights is None else weights, np.float64)
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError("weights of the error must be finite and not negative")
    return _search(job, values, clips, weight)


def _search(
    job: _Fit, values: Floats, clips: Sequence[float], weight: npt.NDArray[np.float64]
) -> dict[str, Patterns]:
    fmt, shape = job.fmt, job.shape
    if fmt.level.scale is None:
        raise SpecError("a clip search needs a scale", where=fmt.name)
    groups = fmt.level.scale.field.groups
    at = job.index(fmt.level.scale.field)
    least = np.full(groups.shape(shape), np.inf)
    best = np.ones(groups.shape(shape))
    for clip in clips:
        trial = job.copy()
        trial.level(fmt.level, values, clip)
        error = (fmt.decode(trial.found, shape) - values.astype(np.float64)) ** 2 * weight
        total = np.zeros(groups.shape(shape))
        np.add.at(total, tuple(np.broadcast_arrays(*at, error)[:2]), error)
        better = total < least
        least[better], best[better] = total[better], clip
    job.level(fmt.level, values, best[at])
    return job.found


class _Fit:
    """Patterns found so far for a matrix of one shape."""

    def __init__(self, fmt: Format, shape: Shape, found: dict[str, Patterns]) -> None:
        self.fmt, self.shape, self.found = fmt, shape, found
        for field in fmt.extra:
            if field.name not in found:
                raise InputError(f"field {field.name!r} is not given", where=fmt.name)
        self.tables = fmt.tables(found, shape)

    def copy(self) -> _Fit:
        return _Fit(self.fmt, self.shape, dict(self.found))

    def index(self, field: Field) -> Index:
        return entry_index(field.groups, self.shape, self.tables)

    def over(self, field: Field, values: Any, start: float, by: np.ufunc) -> Any:
        """A reduction of values over each group of a field, at every position of the matrix."""
        at = self.index(field)
        return extremes(by, values, field.groups, self.shape, at, start)[at]

    def level(self, level: Level, values: Any, clip: Any) -> Floats:
        """Fit a level to what it shall stand for at each position; what it then stands for."""
        field, code = level.field, level.field.code
        work = np.broadcast_to(np.asarray(values, np.float64), self.shape)
        offset: Any = np.float32(0)
        scale: Any = np.float32(1)
        zero: Any = np.float32(0)
        if level.offset is not None:
            offset = self.level(level.offset, self._centre(level.offset.field, work), 1.0)
            work = work - offset
        if level.scale is not None:
            scale, zero = self._affine(level, level.scale, work, clip)
        safe = np.where(scale == 0, 1, scale).astype(np.float64)
        wanted = np.where(scale == 0, 0.0, work / safe) + zero
        entries = _scattered(field, self.index(field), wanted, self.shape)
        self.found[field.name] = code.encode(entries, clip=level.scale is not None)
        value = code.decode(self.found[field.name])[self.index(field)]
        out: Floats = ((value - zero) * scale + offset).astype(np.float32)
        return out

    def _centre(self, field: Field, work: Any) -> Any:
        if field.fit == "mean":
            number = self.over(field, np.ones(self.shape), 0.0, np.add)
            return self.over(field, work, 0.0, np.add) / number
        return self.over(field, work, 0.0, np.minimum)

    def _affine(self, level: Level, scale: Level, work: Any, clip: Any) -> tuple[Any, Any]:
        """Scale and zero point at each position, as their own codes hold them."""
        code = level.field.code
        if scale.field.fit == "largest":
            largest = self.over(scale.field, np.abs(work), 0.0, np.maximum)
            return self.level(scale, largest / code.limit * clip, 1.0), np.float32(0)
        low, high = code.ends
        top = self.over(scale.field, work, 0.0, np.maximum)
        bottom = self.over(scale.field, work, 0.0, np.minimum)
        steps = (top - bottom) / (high - low)
        if level.zero is None:
            return self.level(scale, steps * clip, 1.0), np.float32(0)
        # A zero point that its code cannot hold (GPTQ has none below 1) takes a longer step.
        first, last = level.zero.field.code.ends
        steps = np.maximum(steps, np.maximum(top / (high - first), -bottom / (last - low)))
        found = self.level(scale, steps * clip, 1.0)
        safe = np.where(found == 0, 1, found).astype(np.float64)
        zero = np.where(found == 0, low, low - bottom * clip / safe)
        return found, self.level(level.zero, np.clip(zero, first, last), 1.0)


def extremes(
    by: np.ufunc, values: Any, groups: Groups, shape: Shape, at: Index, start: float
) -> npt.NDArray[np.float64]:
    """A reduction of values over each group; ``at`` are the entries that positions belong to."""
    wanted = groups.shape(shape)
    if isinstance(groups, Block) and by is not np.add:
        rows, columns = (n // g for n, g in zip(shape, wanted, strict=True))
        if (rows * wanted[0], columns * wanted[1]) == tuple(shape):  # none is shorter than others
            spread = np.broadcast_to(values, shape).reshape(wanted[0], rows, wanted[1], columns)
            return np.asarray(by.reduce(spread, axis=(1, 3), initial=start), np.float64)
    out = np.full(wanted, start, np.float64)
    by.at(out, tuple(np.broadcast_arrays(*at, values)[:2]), values)
    return out


def convert(
    buffers: Buffers, source: Format, target: Format, shape: Shape, given: Fields | None = None
) -> dict[str, npt.NDArray[Any]]:
    """The same matrix in another format, exactly: codes, scales and zero points keep their values.

    Groups may become finer, and a zero point may move into the code.  InputError where the target
    cannot hold a number or two entries of the source would have to share one of the target's.
    """
    target.check(shape)
    fields = source.unpack(buffers, shape)
    held = dict(given or {}) | {f.name: fields[f.name] for f in target.extra if f.name in fields}
    made = _Copy(source, target, shape, fields, held)
    made.level(source.level, target.level)
    return target.pack(made.found, shape)


class _Copy:
    """Patterns of the target found so far."""

    def __init__(
        self, source: Format, target: Format, shape: Shape, fields: Fields, found: dict[str, Any]
    ) -> None:
        self.source, self.target, self.shape, self.fields, self.found = (
            source, target, shape, fields, found,
        )  # fmt: skip
        self.from_tables = source.tables(fields, shape)
        self.to_tables = target.tables(found, shape)

    def field(self, level: Level) -> Floats:
        """Values of a source's field at every position."""
        at = entry_index(level.field.groups, self.shape, self.from_tables)
        return level.field.code.decode(self.fields[level.field.name])[at]

    def level(self, source: Level, target: Level) -> None:
        values = self.field(source)
        if source.zero is not None and target.zero is None:
            if source.zero.scale is not None or source.zero.offset is not None:
                raise SpecError("a scaled zero point stays one", where=self.target.name)
            values = values - self.field(source.zero)
        elif source.zero is not None and target.zero is not None:
            self.level(source.zero, target.zero)
        elif target.zero is not None:
            self.put(target.zero, np.zeros((1, 1), np.float32))
        self.put(target, values)
        for old, new, neutral in (
            (source.scale, target.scale, 1.0),
            (source.offset, target.offset, 0.0),
        ):
            if old is not None and new is not None:
                self.level(old, new)
            elif old is not None:
                raise SpecError(
                    f"{self.target.name} has no place for {old.field.name!r}",
                    where=self.source.name,
                )
            elif new is not None:
                self.put(new, np.full((1, 1), neutral, np.float32))

    def put(self, target: Level, values: Floats) -> None:
        """Patterns of a target's field, checked to stand for the same values."""
        field = target.field
        at = entry_index(field.groups, self.shape, self.to_tables)
        spread = np.broadcast_to(values, self.shape)
        entries = _scattered(field, at, spread, self.shape)
        # A shared entry that holds the value of only some of its positions shows here, too.
        patterns = field.code.encode(entries)
        if not np.array_equal(field.code.decode(patterns)[at] + 0 * spread, spread):
            raise InputError(
                f"field {field.name!r} of {self.target.name} cannot hold these values exactly",
                where=f"from {self.source.name}",
            )
        self.found[field.name] = patterns


def _scattered(field: Field, at: Index, values: Any, shape: Shape) -> npt.NDArray[np.float64]:
    """One of the values at each entry's positions."""
    out = np.zeros(field.groups.shape(shape))
    out[tuple(np.broadcast_to(a, shape) for a in at)] = values
    return out


def _matrix(x: npt.ArrayLike) -> Floats:
    values = np.asarray(x, dtype=np.float32)
    if values.ndim != 2:
        raise InputError(f"shape {values.shape}", hint="[rows, columns]")
    bad = ~np.isfinite(values)
    if bad.any():
        row, col = np.argwhere(bad)[0]
        raise InputError(
            f"{int(bad.sum())} values are not finite", where=f"first at row {row}, column {col}"
        )
    return values


def _shape(values: Floats) -> Shape:
    return values.shape[0], values.shape[1]
