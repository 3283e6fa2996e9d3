"""The form of a row: types of its fields, canonical JSON, and the id that is a hash of it.

The **canonical form** of a row is JSON with sorted keys and no whitespace, every float written by
``float.hex()``; fields at their default are left out, so that a field added later leaves old ids
alone, and fields that this version does not know stay in ``extra`` and count. The id is the first
32 hex digits of the form's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache, cached_property
from typing import Any, ClassVar

from kdsl.errors import StoreError

type_name = str
Scalar = str | int | float | bool


def dumps(value: Any) -> str:
    """Readable JSON: sorted keys, no whitespace, ASCII, decimal floats (which round-trip)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hexed(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: _hexed(item) for key, item in value.items()}
    return [_hexed(item) for item in value] if isinstance(value, list | tuple) else value


def canonical(value: Any) -> str:
    """The form that is hashed: :func:`dumps` with floats by ``float.hex()``."""
    return dumps(_hexed(value))


def _text(value: Any, limit: int = 1 << 20) -> str:
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise ValueError("is no text" if not isinstance(value, str) else "is too long or has NULs")
    value.encode()  # a lone surrogate has no UTF-8 form
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError("is no 64-bit integer")
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is no finite number")
    return float(value) + 0.0  # no negative zero: SQLite keeps none, and ids must survive it


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError("is neither true nor false")
    return bool(value)


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | str):
        return value if isinstance(value, bool) else _text(value)
    return _real(value) if isinstance(value, float) else _whole(value)


def _json(value: Any, depth: int = 16) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping) and depth:
        return {_text(key): _json(item, depth - 1) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple) and depth:
        return [_json(item, depth - 1) for item in value]
    return _scalar(value)


def _mapping(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("is no mapping")
        return {_text(key, 200): of(item) for key, item in sorted(value.items())}

    return check


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": _whole,
    "bool": _flag,
    "int | None": lambda v: None if v is None else _whole(v),
    "float | None": lambda v: None if v is None else _real(v),
    "tuple[float, ...]": lambda v: tuple(map(_real, v)),
    "Mapping[str, str]": _mapping(_text),
    "Mapping[str, int]": _mapping(_whole),
    "Mapping[str, float]": _mapping(_real),
    "Mapping[str, Scalar]": _mapping(_scalar),
    "Mapping[str, Any]": _mapping(_json),
}


@cache
def _specs(cls: Any) -> tuple[tuple[str, Callable[[Any], Any], Any], ...]:
    """Name, check and default of each field."""

    def default(spec: Field[Any]) -> Any:
        return spec.default_factory() if spec.default_factory is not MISSING else spec.default

    return tuple((s.name, _CHECKS[str(s.type)], default(s)) for s in fields(cls))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fact. ``extra`` keeps fields of a newer version, so that passing them on loses nothing.

    A field that has the wrong type or range raises :class:`~kdsl.errors.StoreError`.
    """

    table: ClassVar[type_name] = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, check, _ in _specs(cls):
            try:
                value = check(getattr(self, name))
            except (ValueError, TypeError, RecursionError) as error:
                shown = repr(getattr(self, name))[:80]
                raise StoreError(f"{self.table}.{name} {error}", where=shown) from error
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raise what is wrong beyond the types of single fields."""

    def _require(self, right: bool, what: str) -> None:
        if not right:
            raise StoreError(f"{self.table}: {what}")

    def content(self) -> dict[str, Any]:
        """The fields that say something, as JSON values."""
        cls: Any = type(self)
        said = {
            name: getattr(self, name)
            for name, _, default in _specs(cls)
            if name != "extra" and getattr(self, name) != default
        }
        return {**self.extra, **said}

    @cached_property
    def id(self) -> str:
        """32 hex digits, the same for the same content everywhere."""
        form = canonical({**self.content(), "table": self.table})
        return hashlib.sha256(form.encode()).hexdigest()[:32]

    def __hash__(self) -> int:
        return hash(self.id)

    def line(self) -> str:
        """The row as one line of JSON, id and table included."""
        return dumps({**self.content(), "table": self.table, "id": self.id})
