"""A product with quantized weights, finished by an epilogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from kdsl import layouts
from kdsl.errors import SpecError, reading
from kdsl.expr.tables import Table
from kdsl.layouts import Format
from kdsl.layouts.format import Buffer
from kdsl.layouts.groups import Shape
from kdsl.specs.common import DTYPES, check_length, digest, optional, positive, whole

ACTIVATIONS = ("gelu_tanh", "gelu_erf", "silu")


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """``activation(x @ weight.T + bias) + residual``, where x and weight are stored in formats.

    x is ``[rows, inner]`` and weight ``[columns, inner]``, as in ``torch.nn.Linear``; what they
    stand for is multiplied.  ``bias`` (``[columns]``) and ``residual`` (``[rows, columns]``) are
    optional operands in ``dtype``, as is the result ``[rows, columns]``.  ``x=None`` is x itself,
    in ``dtype`` and not quantized.  ``activation`` is ``"gelu_tanh"``, ``"gelu_erf"`` (the exact
    one, torch's default) or ``"silu"``.
    """

    rows: int
    inner: int
    columns: int
    x: Format | None = None
    weight: Format
    dtype: str = "bfloat16"
    bias: bool = False
    activation: str | None = None
    residual: bool = False

    tables: ClassVar[tuple[Table, ...]] = ()
    """No integer tables: operands are named by `operands`."""
    open_tables: ClassVar[tuple[Table, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "inner", "columns"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
            check_length(getattr(self, name), name)
        for name in ("x", "weight"):
            held = getattr(self, name)
            if not isinstance(held, Format) and (name != "x" or held is not None):
                hint = "kdsl.layouts.activations(), or None" if name == "x" else "kdsl.layouts.w8()"
                raise SpecError(f"{name}={held!r}", hint=hint)
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype={self.dtype!r}", hint=" or ".join(map(repr, DTYPES)))
        if self.activation is not None and self.activation not in ACTIVATIONS:
            hint = " or ".join(map(repr, ACTIVATIONS))
            raise SpecError(f"activation={self.activation!r}", hint=hint)
        for name in ("bias", "residual"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name}={getattr(self, name)!r}", hint="True or False")
        if self.x is not None:
            self.x.check(self.x_shape)
        self.weight.check(self.weight_shape)

    @property
    def x_shape(self) -> Shape:
        """``(rows, inner)``."""
        return self.rows, self.inner

    @property
    def weight_shape(self) -> Shape:
        """``(columns, inner)``."""
        return self.columns, self.inner

    @property
    def operands(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every operand of a call, by name and in order.

        ``x_codes``, ``x_scales`` and so on, as the buffers of x are called, or ``x`` where it is
        not quantized; ``weight_...`` likewise; then ``bias`` and ``residual``.
        """
        out: dict[str, tuple[tuple[int, ...], str]] = {}
        for side, fmt, shape in (
            ("x", self.x, self.x_shape),
            ("weight", self.weight, self.weight_shape),
        ):
            if fmt is None:
                out[side] = shape, self.dtype
            else:
                out |= {f"{side}_{b.name}": _buffer(fmt, b, shape) for b in fmt.buffers}
        if self.bias:
            out["bias"] = (self.columns,), self.dtype
        if self.residual:
            out["residual"] = (self.rows, self.columns), self.dtype
        return out

    @property
    def flop(self) -> float:
        """Operations of the product."""
        return 2.0 * self.rows * self.inner * self.columns

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {
            "op": "matmul",
            "rows": self.rows,
            "inner": self.inner,
            "columns": self.columns,
            "x": None if self.x is None else layouts.to_json(self.x),
            "weight": layouts.to_json(self.weight),
            "dtype": self.dtype,
            "bias": self.bias,
            "activation": self.activation,
            "residual": self.residual,
        }

    @staticmethod
    @reading("matmul spec")
    def from_json(value: Mapping[str, Any]) -> Matmul:
        """The spec written by `to_json`."""
        whole(value, {"op", *(f.name for f in fields(Matmul))}, "matmul spec")
        given = {f.name: value[f.name] for f in fields(Matmul)}
        given["x"] = optional(layouts.from_json)(value["x"])
        given["weight"] = layouts.from_json(value["weight"])
        return Matmul(**given)

    @property
    def fingerprint(self) -> str:
        """Identity of the whole spec."""
        return digest(self.to_json())

    @property
    def program(self) -> str:
        """Identity of the generated program: no sizes or names."""
        sized = ("op", "rows", "inner", "columns")
        held = {name: v for name, v in self.to_json().items() if name not in sized}
        for side in ("x", "weight"):
            if held[side] is not None:
                held[side].pop("name")
        return digest(["matmul", held])


def _buffer(fmt: Format, buffer: Buffer, shape: Shape) -> tuple[tuple[int, int], str]:
    return fmt.buffer_shape(buffer, shape), buffer.word
