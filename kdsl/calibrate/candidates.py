"""Orders to choose from: the nestings of the axes, and cubes of about a block's size."""

from __future__ import annotations

import itertools
import math

from kdsl import orders
from kdsl.grid import Grid
from kdsl.orders import Order


def axis_orders(grid: Grid) -> tuple[Order, ...]:
    """Every nesting of the axes, the model's own first: six of a video, two of an image."""
    return tuple(orders.axes(grid, "".join(p)) for p in itertools.permutations(grid.letters))


def cube_orders(grid: Grid, tokens: int = 64, most: int = 6) -> tuple[Order, ...]:
    """Cubes of about ``tokens`` tokens with sides that are powers of two, most compact first.

    An axis order keeps blocks local in one or two axes, a cube in all three.  At most ``most``.
    """
    if len(grid.shape) < 2:
        return ()
    sides = [[1 << i for i in range(n.bit_length())] for n in grid.shape]
    fitting = [c for c in itertools.product(*sides) if math.prod(c) == tokens]
    # The surface of a cube of given volume says how far it is from compact.
    fitting.sort(key=lambda c: (sum(math.prod(c) / side for side in c), c))
    made = [orders.cubes(grid, c) for c in fitting]
    return tuple(o for o in made if not o.is_identity)[:most]


def candidates(grid: Grid, tokens: int = 64) -> tuple[Order, ...]:
    """Axis orders, then cubes of ``tokens`` tokens: what `OrderSearch` tries unless told."""
    return (*axis_orders(grid), *cube_orders(grid, tokens))
