"""Maps of blocks chosen from queries and keys, on the device, on the current stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WIDEST = 8192
"""Columns of a row that one program holds: more than a million keys in blocks of 128."""


def pool(x: Tensor, block: int) -> Tensor:
    """Mean of each block of tokens: float32 ``[batch, heads, blocks, d]``.

    ``x`` is ``[batch, heads, tokens, d]`` in any strides, its tokens in the order in which blocks
    are cut; the last block may be ragged.
    """
    import torch

    from kdsl.kernels.lists.choose import pool_blocks

    batch, heads, tokens, d = x.shape
    blocks = -(-tokens // block)
    out = torch.empty((batch, heads, blocks, d), dtype=torch.float32, device=x.device)
    if out.numel():
        width = 1 << (d - 1).bit_length()
        pool_blocks[(batch * heads * blocks,)](
            x, out, *x.stride(), heads, blocks, tokens, d,
            BLOCK=block, STRIP=min(block, 32), WIDTH=width, num_warps=4,
        )  # fmt: skip
    return out


def scores(q: Tensor, k: Tensor, block: tuple[int, int], scale: float) -> Tensor:
    """Scaled products of pooled queries and keys: float32 ``[batch, heads, rows, columns]``.

    Neighbouring query heads share a key head.
    """
    queries, keys = pool(q, block[0]), pool(k, block[1])
    batch, heads, rows, d = queries.shape
    groups, columns = keys.shape[1:3]
    if not groups or heads % groups:
        raise InputError(f"{heads} query heads on {groups} key heads", hint="a multiple of them")
    # Heads of a group stand above each other: one product for each key head.
    product = queries.view(batch, groups, heads // groups * rows, d) @ keys.transpose(2, 3)
    return (product * scale).view(batch, heads, rows, columns)


def topk(
    score: Tensor, count: int, always: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """The ``count`` best allowed columns of each row, the lower one where scores are equal.

    ``score`` is float32 ``[batch, heads, rows, columns]`` without NaN; ``always`` and ``allowed``
    are boolean maps that broadcast to it: columns kept beside the chosen ones, and those that may
    be chosen.  A boolean map of the same shape, as `from_map` takes it.
    """
    if count < 0:
        raise InputError(f"the best {count} blocks of a row", hint="0 or more")
    return _chosen(score, float(count), False, always, allowed)


def topp(
    score: Tensor, mass: float, always: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """The fewest best allowed columns of each row whose softmax weights reach ``mass``.

    Everything else as in `topk`.  Sums are in float32: where the mass of a set is within rounding
    of ``mass``, one block more or less may be kept than in exact arithmetic.
    """
    if not 0 < mass <= 1:
        raise InputError(f"a mass of {mass}", hint="above 0, at most 1")
    return _chosen(score, mass, True, always, allowed)


def _chosen(
    score: Tensor, wanted: float, by_mass: bool, always: Tensor | None, allowed: Tensor | None
) -> Tensor:
    import torch

    from kdsl.kernels.lists.choose import choose_blocks

    if score.ndim != 4 or score.dtype != torch.float32:
        raise InputError(
            f"scores of {score.dtype} and shape {tuple(score.shape)}",
            hint="float32 [batch, heads, rows, columns]",
        )
    batch, heads, rows, columns = score.shape
    if columns > WIDEST:
        raise InputError(f"{columns} columns to choose from", hint=f"at most {WIDEST}")
    kept = torch.empty(score.shape, dtype=torch.uint8, device=score.device)
    given = []
    for x in (always, allowed):
        if x is not None and x.dtype not in (torch.bool, torch.uint8):
            raise InputError(f"a map of {x.dtype}", hint="boolean or uint8")
        spread = None if x is None else x.expand(score.shape)
        given.append(spread.view(torch.uint8) if spread is not None else None)
    if kept.numel():
        strides = [n for x in given for n in (kept if x is None else x).stride()]
        choose_blocks[(batch * heads * rows,)](
            score.contiguous(), *given, kept, *strides, heads, rows, columns, wanted,
            BY_MASS=by_mass, WIDTH=1 << (columns - 1).bit_length(), num_warps=4,
        )  # fmt: skip
    return kept.view(torch.bool)
