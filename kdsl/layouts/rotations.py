"""Which rotation a layer gets: the published rule of ARS, and a choice by calibrated error.

LRQ-DiT (arXiv 2508.03485) measures the fluctuation of a layer's input and takes a Hadamard rotation
below a threshold, DuQuant's two rotations with a permutation between (arXiv 2406.01721) above it.
`choose` instead measures the output error of several recipes on calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.layouts.codes import Int
from kdsl.layouts.hadamard import construction
from kdsl.layouts.transforms import (
    Array,
    Channels,
    Hadamard,
    Mean,
    Recipe,
    Rotate,
    Signs,
)

THRESHOLD = 1.0
STEPS = 256


def fluctuation(x: npt.ArrayLike) -> float:
    """``J = ||X||_F / sqrt(number of entries)``, the root mean square of a layer's input."""
    values = _calibration(x)
    return float(np.sqrt(np.mean(values**2)))


def published(x: npt.ArrayLike, block: int = 128, seed: int = 0) -> Recipe:
    """ARS as published: a Hadamard rotation where J is below 1, else ``R1 P R2``.

    The Hadamard matrix has the full width (with random signs) where one is constructed, else blocks
    of the largest power of two that divides it.
    """
    values = _calibration(x)
    if fluctuation(values) < THRESHOLD:
        width = values.shape[1]
        order = width if construction(width) else width & -width
        return Recipe((_signs(width, seed), Hadamard(order)))
    return two_rotations(values, block, seed)


def two_rotations(x: npt.ArrayLike, block: int = 128, seed: int = 0, steps: int = STEPS) -> Recipe:
    """DuQuant's ``R1 P R2``: a greedy block rotation, a zigzag permutation, another rotation."""
    values = _calibration(x)
    _check_block(values.shape[1], block)
    rng = np.random.default_rng(seed)
    first = Rotate(_greedy(values, block, rng, steps))
    turned = first.forward(values)
    order = Channels(zigzag(turned, block))
    second = Rotate(_greedy(order.forward(turned), block, rng, steps))
    return Recipe((first, order, second))


def zigzag(x: npt.ArrayLike, block: int) -> npt.NDArray[np.int64]:
    """Channels by falling range, dealt to the blocks there and back again (DuQuant, 3.3)."""
    values = _calibration(x)
    blocks = values.shape[1] // block
    by_range = np.argsort(-np.ptp(values, axis=0), kind="stable")
    dealt = by_range.reshape(block, blocks)
    dealt[1::2] = dealt[1::2, ::-1].copy()
    return np.ascontiguousarray(dealt.T).reshape(-1)


def _greedy(values: Array, block: int, rng: np.random.Generator, steps: int) -> Array:
    """The best prefix of elementary rotations, each spreading the largest entry's column."""
    rows = values.reshape(-1, block).astype(np.float64)
    # Only rows that hold a block's extremes decide; the rest cannot be the largest for long.
    if len(rows) > 512:
        rows = rows[np.argsort(-np.abs(rows).max(axis=1), kind="stable")[:512]]
    total, best = np.eye(block), np.eye(block)
    least = float(np.ptp(rows))
    for _ in range(steps):
        column = int(np.argmax(np.abs(rows).max(axis=0)))
        step = _spreading(block, column, rng)
        rows, total = rows @ step, total @ step
        if float(np.ptp(rows)) < least:
            least, best = float(np.ptp(rows)), total
    return best


def _spreading(block: int, column: int, rng: np.random.Generator) -> Array:
    """An orthogonal matrix that spreads one column evenly, and turns the others at random."""
    even = np.full(block, block**-0.5)
    normal = even - np.eye(block)[0]
    reflect = np.eye(block) - 2 * np.outer(normal, normal) / (normal @ normal)
    turn = np.eye(block)
    q, r = np.linalg.qr(rng.standard_normal((block - 1, block - 1)))
    turn[1:, 1:] = q * np.sign(np.diag(r))
    swap = np.arange(block)
    swap[[0, column]] = swap[[column, 0]]
    out: Array = (turn @ reflect)[swap]
    return out


def candidates(x: npt.ArrayLike, block: int = 128, seed: int = 0) -> dict[str, Recipe]:
    """Recipes that one kernel can run: Hadamard blocks, with permutation, mean, or both before."""
    values = _calibration(x)
    _check_block(values.shape[1], block)
    turn = (_signs(values.shape[1], seed), Hadamard(block))
    mean = Mean(values.mean(axis=0).astype(np.float32))
    return {
        "hadamard": Recipe(turn),
        "permuted": Recipe((Channels(zigzag(values, block)), *turn)),
        "centred": Recipe((mean, *turn)),
        "centred, permuted": Recipe((mean, Channels(zigzag(mean.forward(values), block)), *turn)),
    }


def choose(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    recipes: Mapping[str, Recipe],
    *,
    bits: int = 4,
    coded: Callable[[Array], Array] | None = None,
    held: Callable[[Array], Array] | None = None,
) -> tuple[str, dict[str, float]]:
    """The recipe with the least output error, and the relative Frobenius errors of all.

    ``x [tokens, channels]`` is calibration input, quantized by token to ``bits`` symmetric bits, or
    passed through ``held``; ``weight [outputs, channels]`` passes through ``coded`` (both: quantize
    and dequantize), if given.
    """
    values, w = _calibration(x), _calibration(weight)
    if values.shape[1] != w.shape[1] or not recipes:
        raise InputError(f"input {values.shape} and weight {w.shape}", hint="equal channels")
    exact = values @ w.T
    size = float(np.linalg.norm(exact)) or 1.0
    errors = {}
    for name, recipe in recipes.items():
        weights, rotated = recipe.matched(w), recipe.forward(values)
        weights = weights if coded is None else coded(weights)
        rotated = by_token(rotated, bits) if held is None else held(rotated)
        got = rotated @ weights.T + recipe.bias(w)
        errors[name] = float(np.linalg.norm(got - exact)) / size
    return min(errors, key=lambda n: errors[n]), errors


def by_token(x: Array, bits: int) -> Array:
    """Values as symmetric integers of ``bits`` bits with a scale per token hold them."""
    code = Int(bits, signed=True)
    scale = np.abs(x).max(axis=-1, keepdims=True) / code.limit
    safe = np.where(scale == 0, 1, scale)
    held: Array = code.decode(code.encode(x / safe)) * scale
    return held


def _signs(width: int, seed: int) -> Signs:
    return Signs(np.random.default_rng(seed).choice(np.array([-1.0, 1.0], np.float32), width))


def _check_block(width: int, block: int) -> None:
    if width % block:
        raise InputError(
            f"blocks of {block} do not divide a width of {width}", hint=f"{width & -width}"
        )


def _calibration(x: npt.ArrayLike) -> Array:
    values = np.asarray(x)
    values = values if values.dtype == np.float64 else values.astype(np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(f"a matrix of shape {values.shape}", hint="finite, [tokens, channels]")
    return values
