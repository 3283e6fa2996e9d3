"""A recipe's steps as a differentiable function of torch.

Every step is linear, or moves numbers by a constant; torch differentiates each by its exact
transpose, rotations included, which are not symmetric at most orders that are no power of two.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kdsl.errors import InputError
from kdsl.layouts import Outline, tables
from kdsl.layouts.hadamard import factors
from kdsl.layouts.transforms import Recipe


class Transform(torch.nn.Module):
    """``[..., columns]`` through a recipe, as `Recipe.forward`; `inverse` undoes it.

    float16 and bfloat16 are computed in float32 and rounded once.  Values of the recipe are
    buffers by the names of `layouts.tables`: they move with the module, keep their dtypes, and have
    no gradients of their own.
    """

    def __init__(self, recipe: Recipe, columns: int) -> None:
        super().__init__()
        self.outline, self.columns = Outline.of(recipe), columns
        self.outline.check(columns)
        held = tables(recipe)
        for name, shape in self.outline.shapes(columns).items():
            if np.asarray(held[name]).shape != shape:
                raise InputError(f"{name} has shape {held[name].shape}", hint=str(shape))
            self.register_buffer(name, as_buffer(name, held[name]))
        for i, (kind, order) in enumerate(self.outline.steps):
            if kind == "hadamard":
                for j, matrix in enumerate(factors(order)):
                    name = f"factor_{i}_{j}"
                    self.register_buffer(name, torch.from_numpy(matrix.copy()), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moved, never cast: values keep the dtypes they were calibrated in."""
        return super()._apply(lambda t: moved(fn, t), recurse)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """What is quantized, in the shape and dtype of x."""
        self._check(x)
        y = wide(x)
        for i in range(len(self.outline.steps)):
            y = self._step(i, y, transposed=False)
        return y.to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` makes y of."""
        self._check(y)
        x = wide(y)
        for i in reversed(range(len(self.outline.steps))):
            x = self._step(i, x, transposed=True)
        return x.to(y.dtype)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.columns or not x.is_floating_point():
            raise InputError(
                f"x is {x.dtype} of shape {tuple(x.shape)}",
                hint=f"floating-point numbers, [..., {self.columns}]",
            )

    def _step(self, i: int, x: Tensor, *, transposed: bool) -> Tensor:
        kind, order = self.outline.steps[i]
        if kind == "hadamard":
            names = [n for n, _ in self.named_buffers() if n.startswith(f"factor_{i}_")]
            held = [cast("Tensor", getattr(self, n)) for n in names]
            turned: Tensor = blocks_times(x, held, transposed) * order**-0.5
            return turned
        value = cast("Tensor", getattr(self, f"{kind}_{i}"))
        if kind == "rotate":
            return blocks_times(x, [value], transposed)
        if kind == "channels":
            index = torch.argsort(value) if transposed else value
            return x.index_select(-1, index)
        value = value.to(x.dtype)
        if kind == "mean":
            return x + value if transposed else x - value
        if kind == "signs":
            return x * value
        return x * value if transposed else x / value

    def extra_repr(self) -> str:
        """The steps."""
        steps = (f"{kind} {block}" if block else kind for kind, block in self.outline.steps)
        return f"{self.columns}: {', '.join(steps) or 'nothing'}"


def transform(x: Tensor, recipe: Recipe) -> Tensor:
    """``x [..., columns]`` through a recipe, with gradients; see `Transform`, which keeps values on
    a device from call to call."""
    made: Tensor = Transform(recipe, x.shape[-1]).to(x.device)(x)
    return made


def blocks_times(x: Tensor, matrices: list[Tensor], transposed: bool) -> Tensor:
    """Blocks of columns times the Kronecker product of matrices, or times its transpose."""
    sizes = [len(m) for m in matrices]
    count = x.shape[-1] // math.prod(sizes)
    y = x.reshape(*x.shape[:-1], count, *sizes)
    for axis, matrix in enumerate(matrices, y.ndim - len(sizes)):
        m = matrix.to(x.dtype)
        y = (y.movedim(axis, -1) @ (m.T if transposed else m)).movedim(-1, axis)
    return y.reshape(x.shape)


def as_buffer(name: str, value: Any) -> Tensor:
    """A value of a recipe as a tensor: orders int64, matrices and factors as precise as given."""
    held = np.asarray(value)
    if name.startswith("channels"):
        return torch.from_numpy(held.astype(np.int64))
    kind = np.float64 if held.dtype == np.float64 and name.startswith("rotate") else np.float32
    return torch.from_numpy(held.astype(kind))


def moved(fn: Any, t: Tensor) -> Tensor:
    """What a module's conversion makes of a tensor whose dtype is part of a format."""
    out: Tensor = fn(t)
    return out if out.dtype == t.dtype else t.to(out.device)


def wide(x: Tensor) -> Tensor:
    """Numbers of 16 bits in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
