"""What the mask changes: outputs of dense and block-sparse attention, and one token's view of both.

NumPy in float32, the example's own yardstick for what the *mask* costs; whether a *kernel* is right
is for the library's reference to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.clip.arrays import Floats
from examples.clip.axis_orders import stored_to_original
from examples.clip.calibrate import Calibration
from examples.clip.heads import Projected
from examples.clip.maps import softmax
from kdsl import orders
from kdsl.calibrate import output_error


@dataclass(frozen=True, eq=False)
class Glance:
    """What one query token attends to: probabilities ``[tokens]`` in original order, both kinds."""

    head: int
    token: int
    dense: Floats
    sparse: Floats


def glance(made: Projected, found: Calibration, head: int, token: int) -> Glance:
    """One row of the attention map of ``head``, dense and after its blocks were dropped."""
    q, k = made.q[0, head], made.k[0, head]
    p = softmax((q[token] @ k.T) * np.float32(q.shape[-1] ** -0.5))
    index = stored_to_original(found.grid, found.orders[head])
    row = int(np.flatnonzero(index == token)[0]) // found.settings.block[0]
    kept = np.zeros(len(p), np.bool_)
    kept[index] = spread(found.blocks[head, row], found.settings.block[1], len(p))
    return Glance(head, token, p, _renormalised(p, kept))


def mask_errors(made: Projected, found: Calibration) -> tuple[float, ...]:
    """Relative Frobenius error of each head's block-sparse output against its dense one."""
    order = orders.per_head([orders.axes(found.grid, name) for name in found.orders])
    block = found.settings.block
    return tuple(output_error(made.q, made.k, made.v, order, found.blocks, block=block)[0].tolist())


def spread(keep: npt.NDArray[np.bool_], block_k: int, tokens: int) -> npt.NDArray[np.bool_]:
    """One row of blocks as one row of tokens."""
    return np.repeat(keep, block_k)[:tokens]


def _renormalised(p: Floats, kept: npt.NDArray[np.bool_]) -> Floats:
    left = np.where(kept, p, np.float32(0))
    total = left.sum(-1, keepdims=True)
    return np.asarray(left / np.where(total > 0, total, 1), np.float32)
