"""Quantization layouts: how numbers are coded, and over which groups they share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError, reading
from kdsl.grid import count

CODES = {"int8": 127}
"""Signed symmetric codes and their largest magnitude."""


@dataclass(frozen=True)
class Layout:
    """Codes of ``[..., tokens, channels]`` with one scale for each group.

    ``group`` is (tokens, channels) a scale, None for the whole axis: ``(1, None)`` is per token,
    ``(None, 1)`` per channel.  ``value = code * scale``; the last group of tokens may be shorter.
    """

    code: str
    group: tuple[int | None, int | None]
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise SpecError(f"code {self.code!r}", hint=" or ".join(CODES))
        if self.scale_dtype != "float32":
            raise SpecError(f"scales of {self.scale_dtype}", hint='"float32"')
        if len(self.group) != 2 or any(g is not None and count(g) is None for g in self.group):
            raise SpecError(f"scale group {self.group}", hint="sizes of at least 1, or None")
        tokens, channels = (None if g is None else count(g) for g in self.group)
        object.__setattr__(self, "group", (tokens, channels))

    def scale_shape(self, tokens: int, channels: int) -> tuple[int, int]:
        """Groups along tokens and channels."""
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
        size = self.group[1]
        if size is not None and channels % size:
            fits = [str(n) for n in (16, 32, 64, 128) if channels % n == 0]
            raise SpecError(
                f"groups of {size} channels do not divide {channels}",
                where=repr(self),
                hint=", ".join(fits) or str(channels),
            )

    def quantize(self, x: npt.ArrayLike) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """(codes ``[..., tokens, channels]``, scales ``[..., groups, groups]``), in float32.

        ``scale = max|x| / 127`` over the group, at least 2**-126; codes rounded to nearest, ties to
        even.  A group of zeros has scale 0.  A group that holds NaN or an infinity has codes 0 and
        a scale of NaN, so that it comes back as NaN.
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
            codes = np.rint(values / spread)
        codes = np.where(np.isfinite(codes) & (spread > 0), codes, 0)
        return codes.astype(np.int8), scale

    def dequantize(self, codes: npt.ArrayLike, scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The values that codes and scales stand for."""
        held = np.asarray(codes)
        spread = self._spread(np.asarray(scale, dtype=np.float32), held.shape)
        values: npt.NDArray[np.float32] = held.astype(np.float32) * spread
        return values

    def _largest(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not x.size:
            return np.zeros((*x.shape[:-2], *self.scale_shape(*x.shape[-2:])), np.float32)
        for axis, size in zip((-2, -1), self.group, strict=True):
            n = x.shape[axis]
            x = np.maximum.reduceat(x, np.arange(0, n, size or n), axis=axis)
        return x

    def _spread(self, scale: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Any:
        for axis, size in zip((-2, -1), self.group, strict=True):
            if size is not None:
                n = shape[axis]
                scale = np.take(np.repeat(scale, size, axis=axis), np.arange(n), axis=axis)
        return scale

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {"code": self.code, "group": list(self.group), "scale_dtype": self.scale_dtype}

    @staticmethod
    @reading("layout")
    def from_json(value: dict[str, Any]) -> Layout:
        """The layout written by `to_json`."""
        return Layout(value["code"], tuple(value["group"]), value["scale_dtype"])


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
