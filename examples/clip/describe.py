"""From a calibration to a spec: orders and block maps, head by head."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import kdsl
from examples.clip.calibrate import Calibration
from kdsl import masks, orders

PLAN = "plan"
"""Name of the table of kept blocks."""


def spec_of(found: Calibration, head_dim: int, dtype: str) -> kdsl.Attention:
    """Attention over the blocks that calibration kept, each head in its own order."""
    order = orders.per_head([orders.axes(found.grid, name) for name in found.orders])
    block = found.settings.block
    return kdsl.Attention(
        tokens=found.grid,
        heads=len(found.orders),
        head_dim=head_dim,
        dtype=dtype,
        mask=masks.blocks(PLAN, order=order, block=block),
        order=order,
        block=block,
    )


def tables_of(found: Calibration) -> dict[str, npt.NDArray[np.uint8]]:
    """The values of the spec's table: kept blocks ``[heads, rows, columns]``."""
    return {PLAN: found.blocks.astype(np.uint8)}
