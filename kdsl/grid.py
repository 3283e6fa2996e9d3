"""Tokens laid out on a grid: frames x height x width, or fewer axes, with text at one end."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError, reading

AXES = ("frames", "height", "width")


def count(value: object, least: int = 1) -> int | None:
    """An integer (also NumPy's) as a Python int; None for anything else, and below ``least``.

    Truth values count nothing.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        number = operator.index(value)
    except TypeError:  # an array of more than one entry
        return None
    return number if number >= least else None


@dataclass(frozen=True)
class Grid:
    """A sequence of tokens with coordinates.

    ``Grid(frames=21, height=30, width=52)`` numbers its tokens row-major, width fastest;
    ``Grid(height=64, width=64)`` is an image and ``Grid(4096)`` a plain sequence.  ``text`` tokens
    without coordinates stand before (``text_at="start"``) or behind (``"end"``) the visual ones.
    """

    length: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    text: int = 0
    text_at: Literal["start", "end"] = "start"

    def __post_init__(self) -> None:
        for name in ("length", *AXES, "text"):
            size = getattr(self, name)
            if size is None and name != "text":
                continue
            counted = count(size, 0)
            if counted is None:
                raise SpecError(
                    f"{name}={size!r} is not a token count",
                    where=self._called(),
                    hint="a Python int of at least 0",
                )
            object.__setattr__(self, name, counted)
        if self.text_at not in ("start", "end"):
            raise SpecError(
                f"text_at={self.text_at!r}", where=self._called(), hint='"start" or "end"'
            )
        if (self.length is None) == (not self.axes):
            raise SpecError(
                "a grid has either a length or named axes",
                where=self._called(),
                hint="Grid(4096), Grid(height=64, width=64), Grid(frames=21, height=30, width=52)",
            )
        if not self.text:
            # Without text there is one way to say where it stands.
            object.__setattr__(self, "text_at", "start")

    def _called(self) -> str:
        fields = ("length", *AXES, "text", "text_at")
        given = [f"{n}={getattr(self, n)!r}" for n in fields if getattr(self, n) not in (None, 0)]
        return f"Grid({', '.join(given)})"

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, slowest first; empty for a plain sequence."""
        return tuple(name for name in AXES if getattr(self, name) is not None)

    @cached_property
    def letters(self) -> str:
        """First letters of the axes, ``"FHW"`` for a video; ``"L"`` for a plain sequence."""
        return "".join(name[0].upper() for name in self.axes) or "L"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes, slowest first; a plain sequence has one axis."""
        return tuple(getattr(self, name) for name in self.axes) or (self.length or 0,)

    @property
    def strides(self) -> tuple[int, ...]:
        """Tokens between neighbours along each axis, in the original row-major numbering."""
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

    @property
    def visual(self) -> int:
        """Tokens that have coordinates."""
        return math.prod(self.shape)

    @property
    def tokens(self) -> int:
        """All tokens, text included."""
        return self.visual + self.text

    @property
    def visual_start(self) -> int:
        """Position of the first token that has coordinates."""
        return self.text if self.text_at == "start" else 0

    def axis(self, name: str) -> int:
        """Position of an axis given by name (``"height"``) or letter (``"H"``)."""
        for i, (full, letter) in enumerate(
            zip(self.axes or ("length",), self.letters, strict=True)
        ):
            if name in (full, letter):
                return i
        raise SpecError(
            f"axis {name!r} is not on this grid",
            where=repr(self),
            hint=" or ".join(repr(n) for n in self.axes or ("length",)),
        )

    def coordinates(self) -> npt.NDArray[np.int32]:
        """Coordinates of every token, ``[axes, tokens]``; text tokens read 0 on every axis."""
        out = np.zeros((len(self.shape), self.tokens), np.int32)
        visual = np.indices(self.shape, dtype=np.int32).reshape(len(self.shape), -1)
        out[:, self.visual_start : self.visual_start + self.visual] = visual
        return out

    def to_json(self) -> dict[str, int | str]:
        """The fields that are set."""
        out: dict[str, int | str] = {
            name: size for name in ("length", *AXES) if (size := getattr(self, name)) is not None
        }
        return {**out, "text": self.text, "text_at": self.text_at} if self.text else out

    @staticmethod
    @reading("grid")
    def from_json(value: dict[str, Any]) -> Grid:
        """The grid written by `to_json`."""
        return Grid(**value)

    def __repr__(self) -> str:
        return f"Grid({', '.join(f'{k}={v!r}' for k, v in self.to_json().items())})"


def as_grid(tokens: Grid | int, what: str = "tokens") -> Grid:
    """A grid as it is; a token count as a plain sequence."""
    if isinstance(tokens, Grid):
        return tokens
    if (counted := count(tokens, 0)) is not None:
        return Grid(counted)
    raise SpecError(
        f"{what}={tokens!r}", hint=f"{what}=4096 or {what}=Grid(frames=..., height=..., width=...)"
    )
