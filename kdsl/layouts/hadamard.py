"""Hadamard matrices from constructions, and which orders they reach.

Sylvester (doubling), Paley I and II (squares in finite prime fields), Kronecker products of these.
Entries are +1 and -1, ``h @ h.T == n * eye(n)`` exactly; a matrix from Paley I is not symmetric, so
the inverse of a rotation is its transpose, never itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.grid import count

Signs = npt.NDArray[np.int8]
LARGEST = 32768
SINGLE = 256
"""Orders up to this are one product for matrix units."""


def hadamard(order: int) -> Signs:
    """A Hadamard matrix of this order, int8; SpecError where no construction here reaches it."""
    plan = construction(order)
    if plan is None:
        near = [n for n in range(order - 1, 0, -1) if construction(n) is not None][:1]
        raise SpecError(
            f"no construction of a Hadamard matrix of order {order}",
            hint=f"order {near[0]}, or blocks whose order divides" if near else "1, 2, 4, ...",
        )
    return _built(plan)


def construction(order: int) -> tuple[tuple[str, int], ...] | None:
    """The factors of an order that constructions reach, as (name, order), or None.

    ``("paley1", q + 1)``, ``("paley2", 2 (q + 1))`` or ``("sylvester", 2**k)``; their Kronecker
    product has the order asked for.  As few factors beside powers of two as will do.
    """
    size = count(order)
    if size is None or size > LARGEST:
        raise SpecError(f"order {order!r}", hint=f"1 to {LARGEST}")
    return _factors(size)


@lru_cache(maxsize=4096)
def _factors(order: int) -> tuple[tuple[str, int], ...] | None:
    if order & (order - 1) == 0:
        return (("sylvester", order),)
    if order % 4:
        return None
    # The largest power of two in front is the fastest transform.
    power = order & -order
    while power:
        rest = order // power
        found = _single(rest)
        if found is not None:
            return ((found, rest),) if power == 1 else (("sylvester", power), (found, rest))
        power //= 2
    for left in range(12, int(order**0.5) + 1, 4):
        if order % left == 0 and _single(left) is not None:
            rest_plan = _factors(order // left)
            if rest_plan is not None:
                return (*rest_plan, (str(_single(left)), left))
    return None


def _single(order: int) -> str | None:
    """Paley's construction of an order, if a prime field has one."""
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and _prime(order - 1):
        return "paley1"
    half = order // 2 - 1
    if half % 4 == 1 and _prime(half):
        return "paley2"
    return None


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@lru_cache(maxsize=32)
def _built(plan: tuple[tuple[str, int], ...]) -> Signs:
    out: Signs = np.ones((1, 1), np.int8)
    for name, order in plan:
        out = np.kron(out, _MAKE[name](order)).astype(np.int8)
    out.setflags(write=False)
    return out


def _sylvester(order: int) -> Signs:
    at = np.arange(order)
    both = at[:, None] & at[None, :]
    odd = np.zeros_like(both)
    while both.any():
        odd ^= both & 1
        both = both >> 1
    return (1 - 2 * odd).astype(np.int8)


def _jacobsthal(q: int) -> npt.NDArray[np.int64]:
    """Quadratic characters of differences in the field of ``q`` elements."""
    character = np.full(q, -1)
    character[np.arange(q, dtype=np.int64) ** 2 % q] = 1
    character[0] = 0
    at = np.arange(q)
    found: npt.NDArray[np.int64] = character[(at[:, None] - at[None, :]) % q]
    return found


def _paley1(order: int) -> Signs:
    """``I + S`` with the skew conference matrix ``S`` of a prime ``q = 3 mod 4``, order q + 1."""
    skew = np.zeros((order, order), np.int64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _jacobsthal(order - 1)
    return (skew + np.eye(order, dtype=np.int64)).astype(np.int8)


def _paley2(order: int) -> Signs:
    """From the symmetric conference matrix of a prime ``q = 1 mod 4``, order 2 (q + 1)."""
    half = order // 2
    conference = np.zeros((half, half), np.int64)
    conference[0, 1:] = conference[1:, 0] = 1
    conference[1:, 1:] = _jacobsthal(half - 1)
    cross, eye = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return (np.kron(conference, cross) + np.kron(np.eye(half, dtype=np.int64), eye)).astype(np.int8)


_MAKE = {"sylvester": _sylvester, "paley1": _paley1, "paley2": _paley2}


def factors(order: int) -> tuple[Signs, ...]:
    """Matrices whose Kronecker product is `hadamard` of this order; one alone where it is small.

    Multiplying by one after the other takes fewer operations; a small matrix is one product.
    """
    plan = construction(order)
    if plan is None or order <= SINGLE:
        return (hadamard(order),)
    return tuple(_built((part,)) for part in plan)


def multiply(x: npt.NDArray[Any], order: int, *, transpose: bool = False) -> npt.NDArray[Any]:
    """``x @ h / sqrt(order)`` along the last axis in blocks of ``order``; factor by factor.

    ``transpose`` gives ``x @ h.T / sqrt(order)``, the exact inverse and the gradient of the first.
    """
    width = x.shape[-1]
    if width % order:
        raise SpecError(f"blocks of {order} do not divide a width of {width}")
    plan = construction(order)
    if plan is None:
        raise SpecError(f"no construction of a Hadamard matrix of order {order}")
    sizes = [n for _, n in plan]
    y = x.reshape(*x.shape[:-1], width // order, *sizes)
    for axis, (name, n) in enumerate(plan, y.ndim - len(sizes)):
        h = _built(((name, n),)).astype(x.dtype)
        y = np.moveaxis(np.tensordot(y, h.T if transpose else h, axes=(axis, 0)), -1, axis)
    scaled: npt.NDArray[Any] = y.reshape(x.shape) / np.sqrt(order)
    return scaled.astype(x.dtype)
