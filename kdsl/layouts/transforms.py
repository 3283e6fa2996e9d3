"""Transforms before quantization: what is done to activations, and to weights to match.

A recipe is a sequence of steps over the last axis.  `forward` changes activations; `matched`
changes weights ``[outputs, channels]`` so that ``x @ w.T == forward(x) @ matched(w).T + bias(w)``
in exact arithmetic; `inverse` undoes `forward`, and `gradient` takes a gradient of its result to
one of its input: rotations by their exact transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError
from kdsl.layouts.hadamard import construction, multiply

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Smooth:
    """Channels divided by positive factors, which the weights take (SmoothQuant, 2211.10438)."""

    factors: Array

    def __post_init__(self) -> None:
        if not (np.isfinite(self.factors).all() and (np.asarray(self.factors) > 0).all()):
            raise InputError("smoothing factors must be finite and positive")

    def forward(self, x: Array) -> Array:
        """Activations divided."""
        return x / self.factors

    def inverse(self, y: Array) -> Array:
        """Activations multiplied."""
        return y * self.factors

    def matched(self, w: Array) -> Array:
        """Weights multiplied."""
        return w * self.factors

    gradient = forward


@dataclass(frozen=True, eq=False)
class Mean:
    """A static mean per channel taken away; its product with the weights joins the bias."""

    values: Array

    def forward(self, x: Array) -> Array:
        """Activations less their mean."""
        return x - self.values

    def inverse(self, y: Array) -> Array:
        """Activations with their mean."""
        return y + self.values

    def matched(self, w: Array) -> Array:
        """Weights as they are."""
        return w

    gradient = matched


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels in another order: position ``i`` takes channel ``index[i]``."""

    index: Array

    def __post_init__(self) -> None:
        given = np.asarray(self.index)
        if not np.array_equal(np.sort(given), np.arange(given.size)):
            raise InputError("an order of channels names each of them once")

    def forward(self, x: Array) -> Array:
        """Channels in the new order."""
        return x[..., self.index]

    def inverse(self, y: Array) -> Array:
        """Channels in the old order."""
        return y[..., np.argsort(self.index)]

    matched = forward
    gradient = inverse


@dataclass(frozen=True, eq=False)
class Signs:
    """Channels times +1 or -1."""

    signs: Array

    def __post_init__(self) -> None:
        if not (np.abs(self.signs) == 1).all():
            raise InputError("signs are +1 and -1")

    def forward(self, x: Array) -> Array:
        """Channels with their signs."""
        return x * self.signs

    inverse = matched = gradient = forward


@dataclass(frozen=True, eq=False)
class Hadamard:
    """Blocks of ``order`` channels times a Hadamard matrix over the root of its order."""

    order: int

    def __post_init__(self) -> None:
        if construction(self.order) is None:
            raise SpecError(f"no Hadamard matrix of order {self.order} is constructed")

    def forward(self, x: Array) -> Array:
        """``x @ h / sqrt(order)``."""
        return multiply(x, self.order)

    def inverse(self, y: Array) -> Array:
        """``y @ h.T / sqrt(order)``."""
        return multiply(y, self.order, transpose=True)

    matched = forward
    gradient = inverse


@dataclass(frozen=True, eq=False)
class Rotate:
    """Blocks of channels times one orthogonal matrix (DuQuant, SpinQuant, PCA)."""

    matrix: Array

    def __post_init__(self) -> None:
        m = np.asarray(self.matrix, np.float64)
        if m.ndim != 2 or m.shape[0] != m.shape[1]:
            raise InputError(f"a rotation of shape {m.shape}", hint="[block, block]")
        off = float(np.abs(m @ m.T - np.eye(len(m))).max())
        if not off < 1e-5:
            raise InputError(f"a rotation whose rows are off orthonormal by {off:.2g}")

    def _times(self, x: Array, matrix: Array) -> Array:
        if x.shape[-1] % len(matrix):
            raise SpecError(f"blocks of {len(matrix)} do not divide a width of {x.shape[-1]}")
        count = x.shape[-1] // len(matrix)
        blocks = x.reshape(*x.shape[:-1], count, len(matrix)) @ matrix.astype(x.dtype)
        return np.asarray(blocks).reshape(x.shape)

    def forward(self, x: Array) -> Array:
        """``x @ matrix`` by block."""
        return self._times(x, self.matrix)

    def inverse(self, y: Array) -> Array:
        """``y @ matrix.T`` by block."""
        return self._times(y, self.matrix.T)

    matched = forward
    gradient = inverse


Step = Smooth | Mean | Channels | Signs | Hadamard | Rotate
KINDS: dict[str, type[Any]] = {
    "smooth": Smooth,
    "mean": Mean,
    "channels": Channels,
    "signs": Signs,
    "hadamard": Hadamard,
    "rotate": Rotate,
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """Steps, first to last."""

    steps: tuple[Step, ...] = ()

    def forward(self, x: Array) -> Array:
        """Activations as the quantizer sees them."""
        for step in self.steps:
            x = step.forward(x)
        return x

    def inverse(self, y: Array) -> Array:
        """The activations that `forward` makes ``y`` of."""
        for step in reversed(self.steps):
            y = step.inverse(y)
        return y

    def gradient(self, g: Array) -> Array:
        """A gradient of the result as one of the input."""
        for step in reversed(self.steps):
            g = step.gradient(g)
        return g

    def matched(self, w: Array) -> Array:
        """Weights for transformed activations."""
        for step in self.steps:
            w = step.matched(w)
        return w

    def bias(self, w: Array) -> Array:
        """What the means that were taken away add to the outputs, ``[outputs]``."""
        out = np.zeros(w.shape[0], np.result_type(w, np.float32))
        for step in self.steps:
            if isinstance(step, Mean):
                out = out + w @ step.values
            w = step.matched(w)
        return out

    def to_json(self) -> tuple[list[dict[str, Any]], dict[str, Array]]:
        """Header and arrays: kinds and orders as JSON, vectors and matrices by name."""
        header: list[dict[str, Any]] = []
        arrays: dict[str, Array] = {}
        for i, step in enumerate(self.steps):
            kind = next(k for k, t in KINDS.items() if type(step) is t)
            (field,) = fields(step)
            value = getattr(step, field.name)
            if isinstance(step, Hadamard):
                header.append({"kind": kind, field.name: value})
            else:
                header.append({"kind": kind})
                arrays[f"{i}.{field.name}"] = np.asarray(value)
        return header, arrays

    @staticmethod
    def from_json(header: Sequence[dict[str, Any]], arrays: dict[str, Array]) -> Recipe:
        """The recipe written by `to_json`; every step is checked again."""
        steps: list[Step] = []
        for i, item in enumerate(header):
            if item.get("kind") not in KINDS:
                raise SpecError(f"step {item!r}", hint=", ".join(KINDS))
            made = KINDS[item["kind"]]
            (field,) = fields(made)
            value = item.get(field.name, arrays.get(f"{i}.{field.name}"))
            if value is None:
                raise InputError(f"step {i} ({item['kind']}) lacks {field.name!r}")
            steps.append(made(value))
        return Recipe(tuple(steps))
