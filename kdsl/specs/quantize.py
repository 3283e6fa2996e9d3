"""Activations rotated and quantized on their way into a product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from kdsl import layouts
from kdsl.errors import SpecError, reading
from kdsl.expr.tables import Table
from kdsl.layouts import Format, Outline
from kdsl.layouts.transforms import Recipe
from kdsl.specs.common import DTYPES, check_length, digest, positive, whole

NORMS = ("rms", "layer")
NOTHING = Outline()
ACTIVATIONS = ("gelu_tanh", "silu")


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """``[rows, columns]`` through a recipe into the buffers of a format, in one pass.

    In this order: ``norm`` of each row (``"rms"``, or ``"layer"``: less its mean), with
    ``modulate`` times ``1 + scale`` plus ``shift`` (two operands ``[batch, columns]`` or
    ``[columns]``); or ``activation`` (``"gelu_tanh"``, ``"silu"``); then the steps of ``recipe``;
    then the format.  A `Recipe` counts by its outline: its values are operands,
    ``tables=layouts.tables(recipe)``.  Rotations are of blocks along the diagonal.

    A group that holds NaN or an infinity when it is quantized gets NaN for a scale, and one whose
    float32 scale would be below the least normal number counts as zeros.
    """

    rows: int
    columns: int
    format: Format
    recipe: Outline = NOTHING
    dtype: str = "bfloat16"
    norm: str | None = None
    eps: float = 1e-6
    modulate: bool = False
    activation: str | None = None

    tables: ClassVar[tuple[Table, ...]] = ()
    """No integer tables: the recipe's values are floating-point operands, see `shapes`."""
    open_tables: ClassVar[tuple[Table, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        check_length(self.rows, "rows")
        check_length(self.columns, "columns")
        if isinstance(self.recipe, Recipe):
            object.__setattr__(self, "recipe", Outline.of(self.recipe))
        if not isinstance(self.recipe, Outline):
            raise SpecError(f"recipe={self.recipe!r}", hint="layouts.Outline(...), or a Recipe")
        if not isinstance(self.format, Format):
            raise SpecError(f"format={self.format!r}", hint='kdsl.layouts.activations("int8")')
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype={self.dtype!r}", hint=" or ".join(map(repr, DTYPES)))
        self._check_before()
        self.recipe.check(self.columns)
        self.format.check((self.rows, self.columns))
        if self.format.level.scale is None or self.format.extra:
            raise SpecError(
                f"the format {self.format.name!r} is not fitted from numbers alone",
                hint="one with a scale, and without given fields",
            )

    def _check_before(self) -> None:
        if self.norm is not None and self.norm not in NORMS:
            raise SpecError(f"norm={self.norm!r}", hint=" or ".join(map(repr, NORMS)))
        if self.activation is not None and self.activation not in ACTIVATIONS:
            hint = " or ".join(map(repr, ACTIVATIONS))
            raise SpecError(f"activation={self.activation!r}", hint=hint)
        if self.norm is not None and self.activation is not None:
            raise SpecError("both a norm and an activation", hint="one of them; two specs for both")
        if not isinstance(self.modulate, bool) or (self.modulate and self.norm is None):
            raise SpecError(f"modulate={self.modulate!r}", hint="True or False; it follows a norm")
        if not isinstance(self.eps, (int, float)) or isinstance(self.eps, bool):
            raise SpecError(f"eps={self.eps!r}", hint="a number above 0")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise SpecError(f"eps={self.eps!r}", hint="a number above 0")
        object.__setattr__(self, "eps", float(self.eps))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the recipe's values by name."""
        return self.recipe.shapes(self.columns)

    def buffers(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Shape and dtype of each buffer of the result, by name, for one batch item."""
        shape = (self.rows, self.columns)
        return {b.name: (self.format.buffer_shape(b, shape), b.word) for b in self.format.buffers}

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {
            "op": "quantize",
            "rows": self.rows,
            "columns": self.columns,
            "format": layouts.to_json(self.format),
            "recipe": self.recipe.to_json(),
            "dtype": self.dtype,
            "norm": self.norm,
            "eps": self.eps.hex(),
            "modulate": self.modulate,
            "activation": self.activation,
        }

    @staticmethod
    @reading("quantize spec")
    def from_json(value: Mapping[str, Any]) -> Quantize:
        """The spec written by `to_json`."""
        whole(value, {"op", *(f.name for f in fields(Quantize))}, "quantize spec")
        return Quantize(
            rows=value["rows"],
            columns=value["columns"],
            format=layouts.from_json(value["format"]),
            recipe=Outline.from_json(value["recipe"]),
            dtype=value["dtype"],
            norm=value["norm"],
            eps=float.fromhex(value["eps"]),
            modulate=value["modulate"],
            activation=value["activation"],
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the whole spec."""
        return digest(self.to_json())

    @property
    def program(self) -> str:
        """Identity of the generated program: no sizes, names or constants."""
        sized = ("op", "rows", "columns", "eps")
        held = {name: v for name, v in self.to_json().items() if name not in sized}
        held["format"].pop("name")
        return digest(["quantize", held])
