"""What is to be done to a model: formats, rotations, clip search, which layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kdsl import layouts
from kdsl.errors import SpecError
from kdsl.grid import count
from kdsl.layouts import Format
from kdsl.layouts.hadamard import construction
from kdsl.layouts.quantizer import CLIPS

ROTATIONS = ("choose", "none", "hadamard", "permuted", "centred", "centred, permuted")
"""``"choose"`` tries them all; the others are names of `kdsl.layouts.rotations.candidates`."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Formats of weights and activations, and how each layer's rotation and scales are found.

    ``x=None`` leaves activations in 16 bits.  ``rotation="choose"`` takes the recipe of least
    output error on calibration rows; ``block`` is the most columns that a rotation turns together.
    ``clips`` are factors of each weight scale that are tried.  ``only`` and ``skip`` are patterns
    of layers' names (``"blocks.*.to_q"``), ``skip`` decides last.  ``samples`` rows of each layer's
    input are kept for it, in float32.
    """

    weight: Format
    x: Format | None
    rotation: str = "choose"
    block: int = 128
    clips: Sequence[float] = CLIPS
    only: Sequence[str] = ("*",)
    skip: Sequence[str] = ()
    samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, optional in (("weight", False), ("x", True)):
            held = getattr(self, name)
            if not isinstance(held, Format) and not (optional and held is None):
                hint = "kdsl.layouts.slog(4)" if name == "weight" else "kdsl.layouts.activations()"
                raise SpecError(f"{name}={held!r}", hint=hint)
        if self.rotation not in ROTATIONS:
            raise SpecError(f"rotation={self.rotation!r}", hint=" or ".join(map(repr, ROTATIONS)))
        if count(self.block, 2) is None or count(self.samples, 8) is None:
            raise SpecError(
                f"block={self.block!r}, samples={self.samples!r}",
                hint="at least 2 columns, at least 8 rows",
            )
        if not self.clips or any(not 0 < c <= 1 for c in self.clips):
            raise SpecError(f"clips={tuple(self.clips)!r}", hint="factors above 0, at most 1")
        for name in ("only", "skip"):
            if isinstance(getattr(self, name), str):
                raise SpecError(f"{name}={getattr(self, name)!r}", hint='patterns, ("blocks.*",)')

    def takes(self, name: str) -> bool:
        """Whether a layer of this name is quantized."""
        wanted = any(fnmatchcase(name, p) for p in self.only)
        return wanted and not any(fnmatchcase(name, p) for p in self.skip)

    def block_for(self, width: int) -> int:
        """Columns of a rotation for a layer of this width: the most that divide it, in an order
        that is constructed; 1 where there is none."""
        fits = (n for n in range(min(self.block, width), 1, -1) if width % n == 0)
        return next((n for n in fits if construction(n) is not None), 1)

    def to_json(self) -> dict[str, Any]:
        """For a plan's provenance."""
        return {
            "weight": layouts.to_json(self.weight),
            "x": None if self.x is None else layouts.to_json(self.x),
            "rotation": self.rotation, "block": self.block, "samples": self.samples,
            "clips": [float(c).hex() for c in self.clips], "seed": self.seed,
            "only": list(self.only), "skip": list(self.skip),
        }  # fmt: skip


def w8a8(code: str = "int8", **fields: Any) -> Scheme:
    """8-bit weights by output channel, 8-bit activations by token: ``"int8"`` or ``"fp8"``."""
    return Scheme(
        **{"weight": layouts.w8("channel", code), "x": layouts.activations(code)} | fields
    )


def w4a8(bits: int = 4, unit: str = "int8", group: int = 128, **fields: Any) -> Scheme:
    """The shifted-log codebook of four or three bits in groups, 8-bit activations by token.

    ``unit`` is what multiplies, ``"int8"`` or ``"fp8"``: entries are exact in it.
    """
    if unit not in ("int8", "fp8"):
        raise SpecError(f"w4a8(unit={unit!r})", hint='"int8" or "fp8"')
    exact = "e4m3" if unit == "fp8" else "int8"
    weight = layouts.slog(bits, None, group, exact)
    return Scheme(**{"weight": weight, "x": layouts.activations(unit)} | fields)


def w4a16(bits: int = 4, group: int = 128, **fields: Any) -> Scheme:
    """The shifted-log codebook of four or three bits in groups, activations in 16 bits."""
    plain = {"weight": layouts.slog(bits, None, group), "x": None, "rotation": "none"}
    return Scheme(**plain | fields)
