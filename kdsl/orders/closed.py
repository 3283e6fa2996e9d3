"""Orders in closed form: axis permutations and cube tilings.  No index array anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdsl.errors import SpecError
from kdsl.expr.nodes import Expr, const, maximum, minimum, where
from kdsl.grid import Grid, count
from kdsl.orders.base import Order, stored


def _with_text(grid: Grid, visual: Callable[[Expr], Expr]) -> Expr:
    """An index expression from one over visual tokens counted from 0; text stays in place."""
    s, start = stored(), grid.visual_start
    if not grid.visual:
        return s
    if not grid.text:
        return visual(s)
    # The branch not taken is computed too: keep it on the grid.
    if start:
        return where(s >= start, visual(maximum(s, start) - start) + start, s)
    return where(s < grid.visual, visual(minimum(s, grid.visual - 1)), s)


@dataclass(frozen=True)
class Axes(Order):
    """Row-major over the grid's axes in another nesting: ``letters`` names them slowest first."""

    grid: Grid
    letters: str

    def __post_init__(self) -> None:
        if sorted(self.letters) != sorted(self.grid.letters):
            raise SpecError(
                f"order {self.letters!r} does not name each axis once",
                where=repr(self.grid),
                hint=f"a permutation of {self.grid.letters!r}",
            )

    @property
    def permutation(self) -> tuple[int, ...]:
        """The grid's axes in stored nesting, slowest first."""
        return tuple(self.grid.letters.index(letter) for letter in self.letters)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Axis sizes in stored nesting, slowest first."""
        return tuple(self.grid.shape[i] for i in self.permutation)

    @property
    def is_identity(self) -> bool:
        """Whether the nesting is the grid's own."""
        return self.letters == self.grid.letters

    @property
    def expr(self) -> Expr:
        """The original token at stored position ``s`` (an affine map of its digits)."""
        if self.is_identity:
            return stored()

        def visual(u: Expr) -> Expr:
            digits = mixed_radix(u, self.sizes)
            return sum(
                (d * self.grid.strides[i] for d, i in zip(digits, self.permutation, strict=True)),
                const(0),
            )

        return _with_text(self.grid, visual)

    @property
    def inverse_expr(self) -> Expr:
        """The stored position of original token ``s``."""
        if self.is_identity:
            return stored()

        def visual(u: Expr) -> Expr:
            digits = mixed_radix(u, self.grid.shape)
            strides = [math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))]
            return sum(
                (digits[i] * n for i, n in zip(self.permutation, strides, strict=True)), const(0)
            )

        return _with_text(self.grid, visual)

    def __repr__(self) -> str:
        return f"orders.axes({self.grid!r}, {self.letters!r})"


def mixed_radix(u: Expr, sizes: Sequence[int]) -> list[Expr]:
    """Digits of a row-major position, slowest first."""
    digits = []
    for i, size in enumerate(sizes):
        digit = u // max(math.prod(sizes[i + 1 :]), 1)
        digits.append(digit % max(size, 1) if i else digit)
    return digits


@dataclass(frozen=True)
class Cubes(Order):
    """Cubes one after another, each row-major inside; cubes at the far edges may be smaller."""

    grid: Grid
    cube: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.cube) != len(self.grid.shape) or min(self.cube, default=0) < 1:
            raise SpecError(
                f"cube {self.cube} does not fit the grid's axes",
                where=repr(self.grid),
                hint=f"{len(self.grid.shape)} sizes of at least 1",
            )

    @property
    def is_identity(self) -> bool:
        """Whether the cubes are so long or so flat that nothing moves."""
        n = next((i for i, c in enumerate(self.cube) if c > 1), len(self.cube))
        return all(
            c >= size for c, size in zip(self.cube[n + 1 :], self.grid.shape[n + 1 :], strict=True)
        )

    @property
    def expr(self) -> Expr:
        """The original token at stored position ``s``."""
        if self.is_identity:
            return stored()
        return _with_text(self.grid, self._token)

    def _token(self, u: Expr) -> Expr:
        shape, cube = self.grid.shape, self.cube
        corner: list[Expr] = []
        thick: list[Expr] = []
        rest = u
        for i, (size, side) in enumerate(zip(shape, cube, strict=True)):
            # A slab: all whole axes behind this one, times what the slower axes left of a cube.
            behind = math.prod(shape[i + 1 :])
            slab = _product(thick) * (side * behind)
            n = rest // slab
            rest = rest % slab
            corner.append(n * side)
            thick.append(_side(size, side, n))
        out: Expr = const(0)
        for i, stride in enumerate(self.grid.strides):
            inner = _product(thick[i + 1 :])
            digit = rest // inner
            out = out + (corner[i] + (digit % thick[i] if i else digit)) * stride
        return out

    @property
    def inverse_expr(self) -> Expr:
        """The stored position of original token ``s``."""
        if self.is_identity:
            return stored()
        return _with_text(self.grid, self._position)

    def _position(self, u: Expr) -> Expr:
        shape, cube = self.grid.shape, self.cube
        at = mixed_radix(u, shape)
        number = [x // side for x, side in zip(at, cube, strict=True)]
        thick = [_side(size, side, n) for size, side, n in zip(shape, cube, number, strict=True)]
        out: Expr = const(0)
        for i, side in enumerate(cube):
            behind = math.prod(shape[i + 1 :])
            out = out + number[i] * (_product(thick[:i]) * (side * behind))
            out = out + at[i] % side * _product(thick[i + 1 :])
        return out

    def __repr__(self) -> str:
        return f"orders.cubes({self.grid!r}, {self.cube})"


def _product(factors: Sequence[Expr]) -> Expr:
    out: Expr = const(1)
    for f in factors:
        out = out * f
    return out


def _side(size: int, side: int, number: Expr) -> Expr:
    """Length of cube ``number`` along an axis; the last one may be cut."""
    if size % side == 0:
        return const(side)
    if size < side:
        return const(size)
    return where(number < size // side, const(side), const(size % side))


def axes(grid: Grid, letters: str) -> Axes:
    """Row-major in another nesting of the axes: ``axes(grid, "HWF")`` runs fastest over frames."""
    if not isinstance(grid, Grid):
        raise SpecError(f"axes({grid!r}, ...)", hint='axes(grid, "HWF") with the grid first')
    return Axes(grid, str(letters).upper())


def identity(grid: Grid) -> Axes:
    """The original order."""
    return Axes(grid, grid.letters)


def cubes(grid: Grid, cube: Sequence[int]) -> Cubes:
    """Tokens of each cube side by side: ``cubes(grid, (3, 5, 4))`` keeps all axes local."""
    sides = cube if isinstance(cube, Sequence) else (cube,)
    return Cubes(grid, tuple(count(c) or 0 for c in sides))


def windows(grid: Grid, window: Sequence[int]) -> Cubes:
    """Spatial windows, frame by frame: ``windows(grid, (8, 8))``."""
    sides = window if isinstance(window, Sequence) else (window,)
    return cubes(grid, (*((1,) * (len(grid.shape) - len(sides))), *sides))
