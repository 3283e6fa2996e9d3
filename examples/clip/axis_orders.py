"""The six ways to store a (frames, height, width) grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdsl import orders
from kdsl.grid import Grid

ORDERS = ("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")


def stored_to_original(grid: Grid, order: str) -> npt.NDArray[np.int64]:
    """Original token at every stored position, ``[tokens]``; ``order``: axes, slowest first."""
    return orders.axes(grid, order).index()
