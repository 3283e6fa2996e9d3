"""The six ways to store a (frames, height, width) grid, behind the one name the example uses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.grid import Grid

ORDERS = ("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")


def stored_to_original(grid: Grid, order: str) -> npt.NDArray[np.int64]:
    """Original token at every stored position, ``[tokens]``; ``order``: axes, slowest first.

    Raises ``SpecError`` where ``order`` does not name every axis of ``grid`` once.
    """
    if sorted(order) != sorted(grid.letters) or grid.text:
        raise SpecError(
            f"order {order!r} does not store this grid",
            where=repr(grid),
            hint=f"the letters of {grid.letters!r}, each once, on a grid without text",
        )
    axes = [grid.axis(letter) for letter in order]
    return np.arange(grid.visual).reshape(grid.shape).transpose(axes).reshape(-1)
