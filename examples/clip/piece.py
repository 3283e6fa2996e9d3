"""A piece of the clip, small enough for Triton's interpreter, through the same generated kernel.

Run as ``TRITON_INTERPRET=1 python -m examples.clip.piece``: prints one JSON object.  Triton reads
the variable when it is first imported, so this needs a process of its own.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import numpy as np

import kdsl
from examples.clip.calibrate import Calibration, calibrate
from examples.clip.describe import spec_of, tables_of
from examples.clip.heads import Projected
from examples.clip.video import GRID, Floats
from kdsl.calibrate import Settings
from kdsl.errors import KdslError
from kdsl.grid import Grid

PIECE = Grid(frames=5, height=6, width=9)
"""270 tokens out of the middle of the clip: ragged against blocks of 64."""
BOUND = 4 * 2.0**-11
"""Relative error allowed: float16 rounds the weights, the values' product and the output once each,
half an ulp of 2**-11 at most, and the inputs not at all (both sides get the rounded ones)."""


@dataclass(frozen=True)
class PieceResult:
    """What the interpreter's run came to."""

    tokens: int
    heads: int
    density: float
    error: float
    bound: float
    seconds: float
    orders: tuple[str, ...]


def cut(made: Projected, grid: Grid = GRID, piece: Grid = PIECE) -> tuple[Floats, Floats, Floats]:
    """q, k, v of the tokens in the middle of the grid, in the piece's own row-major order."""
    at = np.arange(grid.visual).reshape(grid.shape)
    first = [(n - m) // 2 for n, m in zip(grid.shape, piece.shape, strict=True)]
    where = tuple(slice(a, a + m) for a, m in zip(first, piece.shape, strict=True))
    tokens = at[where].reshape(-1)
    q, k, v = (x[:, :, tokens] for x in (made.q, made.k, made.v))
    return q, k, v


def run(made: Projected) -> PieceResult:
    """Calibrate the piece, build its kernel, run it, compare with the reference in float64."""
    import torch

    q, k, v = cut(made)
    names = tuple(head.name for head in made.heads)
    found: Calibration = calibrate(q, k, PIECE, names, Settings(every=1))
    spec = spec_of(found, q.shape[-1], "float16")
    op = kdsl.build(spec, backend="triton", tables=tables_of(found))
    tensors = [torch.from_numpy(np.ascontiguousarray(x)).half() for x in (q, k, v)]
    started = time.perf_counter()
    out = op(*tensors).double().numpy()
    seconds = time.perf_counter() - started
    want = op.reference(*tensors)
    error = float(np.linalg.norm(out - want) / np.linalg.norm(want))
    return PieceResult(PIECE.tokens, len(names), found.density, error, BOUND, seconds, found.orders)


def main() -> int:
    """Print the result as JSON; exit code 1 where the kernel is not right."""
    from examples.clip.heads import project
    from examples.clip.video import CLIP, load

    try:
        result = run(project(load(CLIP, GRID).features, GRID))
    except KdslError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result.__dict__))
    return 0 if result.error <= result.bound else 1


if __name__ == "__main__":
    sys.exit(main())
