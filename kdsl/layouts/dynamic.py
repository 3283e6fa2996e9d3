"""Quantization layouts: how numbers are coded, and over which groups they share a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError, reading
from kdsl.grid import count
from kdsl.layouts.codes import E4M3
from kdsl.layouts.groups import Lanes, groups_from_json, groups_to_json

CODES = {"int8": 127, "int4": 7, "e4m3": 448}
"""Signed symmetric codes and their largest magnitude.

Each takes a byte on the way through a kernel: int4 in an int8, e4m3 (OCP) as its bits.
"""


@dataclass(frozen=True)
class Layout:
    """Codes of ``[..., tokens, channels]`` with one scale for each group.

    ``group`` is (tokens, channels) a scale, None for the whole axis: ``(1, None)`` is per token,
    ``(None, 1)`` per channel; or `Lanes` of tokens, which share a scale because one thread of a
    matrix instruction holds them.  ``value = code * scale``; the last group of tokens may be
    shorter.
    """

    code: str
    group: tuple[int | None, int | None] | Lanes
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise SpecError(f"code {self.code!r}", hint=" or ".join(CODES))
        if self.scale_dtype != "float32":
            raise SpecError(f"scales of {self.scale_dtype}", hint='"float32"')
        if isinstance(self.group, Lanes):
            return
        if len(self.group) != 2 or any(g is not None and count(g) is None for g in self.group):
            raise SpecError(f"scale group {self.group}", hint="sizes of at least 1, or None")
        tokens, channels = (None if g is None else count(g) for g in self.group)
        object.__setattr__(self, "group", (tokens, channels))

    def scale_shape(self, tokens: int, channels: int) -> tuple[int, int]:
        """Groups along tokens and channels."""
        if isinstance(self.group, Lanes):
            return self.group.shape((tokens, channels))
        sizes = zip((tokens, channels), self.group, strict=True)
        rows, columns = (1 if g is None else -(-n // g) for n, g in sizes)
        return rows, columns

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of codes and scales for a tensor of this shape."""
        *lead, tokens, channels = shape
        rows, columns = self.scale_shape(tokens, channels)
        return math.prod(lead) * (tokens * channels + 4 * rows * columns)

    def check(self, channels: int) -> None:
        """SpecError if a group cannot divide the channels."""
        size = None if isinstance(self.group, Lanes) else self.group[1]
        if size is not None and channels % size:
            fits = [str(n) for n in (16, 32, 64, 128) if channels % n == 0]
            raise SpecError(
                f"groups of {size} channels do not divide {channels}",
                where=repr(self),
                hint=", ".join(fits) or str(channels),
            )

    def quantize(self, x: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """(codes ``[..., tokens, channels]``, scales ``[..., groups, groups]``), in float32.

        ``scale = max|x| / limit`` over the group (`CODES`), at least 2**-126; codes rounded to
        nearest, ties to even; int8, or uint8 with the bits of e4m3.  A group of zeros has scale 0.
        A group that holds NaN or an infinity has codes 0 and a scale of NaN, so that it comes back
        as NaN.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(x, dtype=np.float32)
        if values.ndim < 2:
            raise InputError(f"shape {values.shape}", hint="[..., tokens, channels]")
        self.check(values.shape[-1])
        largest = self._largest(np.abs(values))
        # Below the least normal number a scale would lose its digits, and codes their range.
        with np.errstate(invalid="ignore"):  # signalling NaNs
            scale = np.maximum(largest / np.float32(CODES[self.code]), np.finfo(np.float32).tiny)
        scale = np.where(largest == 0, np.float32(0), scale)
        scale = np.where(np.isfinite(scale), scale, np.float32(np.nan)).astype(np.float32)
        spread = self._spread(scale, values.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = values / spread
        codes = np.where(np.isfinite(codes) & (spread > 0), codes, 0)
        if self.code == "e4m3":
            return E4M3.encode(codes, clip=True).astype(np.uint8), scale
        return np.rint(codes).astype(np.int8), scale

    def dequantize(self, codes: npt.ArrayLike, scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The values that codes and scales stand for."""
        held = self.numbers(codes)
        spread = self._spread(np.asarray(scale, dtype=np.float32), held.shape)
        values: npt.NDArray[np.float32] = held * spread
        return values

    def numbers(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Codes as the numbers that scales multiply."""
        held = np.asarray(codes)
        return E4M3.decode(held) if self.code == "e4m3" else held.astype(np.float32)

    def spread(self, scale: npt.ArrayLike, tokens: int, channels: int) -> npt.NDArray[np.float32]:
        """Scales ``[..., groups, groups]`` entry by entry: broadcasts to ``[..., tokens,
        channels]``."""
        held: npt.NDArray[np.float32] = self._spread(
            np.asarray(scale, dtype=np.float32), (tokens, channels)
        )
        return held

    def _largest(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not x.size:
            return np.zeros((*x.shape[:-2], *self.scale_shape(*x.shape[-2:])), np.float32)
        if isinstance(self.group, Lanes):
            out = np.zeros((*x.shape[:-2], *self.scale_shape(*x.shape[-2:])), np.float32)
            of_rows = self.group.rows(x.shape[-2])
            for group in range(out.shape[-2]):
                mine = x[..., of_rows == group, :]
                out[..., group, 0] = mine.max((-2, -1), initial=0.0)
            return out
        for axis, size in zip((-2, -1), self.group, strict=True):
            n = x.shape[axis]
            x = np.maximum.reduceat(x, np.arange(0, n, size or n), axis=axis)
        return x

    def _spread(self, scale: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Any:
        if isinstance(self.group, Lanes):
            return scale[..., self.group.rows(shape[-2]), :]
        for axis, size in zip((-2, -1), self.group, strict=True):
            if size is not None:
                n = shape[axis]
                scale = np.take(np.repeat(scale, size, axis=axis), np.arange(n), axis=axis)
        return scale

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        group = groups_to_json(self.group) if isinstance(self.group, Lanes) else list(self.group)
        return {"code": self.code, "group": group, "scale_dtype": self.scale_dtype}

    @staticmethod
    @reading("layout")
    def from_json(value: dict[str, Any]) -> Layout:
        """The layout written by `to_json`."""
        group = value["group"]
        if isinstance(group, Mapping):
            lanes = groups_from_json(group)
            if not isinstance(lanes, Lanes):
                raise SpecError(f"scale group {lanes!r}", hint="(tokens, channels), or Lanes")
            return Layout(value["code"], lanes, value["scale_dtype"])
        return Layout(value["code"], tuple(group), value["scale_dtype"])


def int8(per: str = "token", block: int = 64) -> Layout:
    """Signed 8-bit codes with a scale per ``"token"``, ``"channel"``, ``"block"`` or ``"tensor"``.

    ``block`` counts the tokens of a block, whose scale covers all channels.
    """
    groups: dict[str, tuple[int | None, int | None]] = {
        "token": (1, None),
        "channel": (None, 1),
        "block": (block, None),
        "tensor": (None, None),
    }
    if per not in groups:
        raise SpecError(f"int8(per={per!r})", hint=" or ".join(map(repr, groups)))
    return Layout("int8", groups[per])
