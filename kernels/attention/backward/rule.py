"""The built-in choice of configurations for the backward kernels, until the database has rows.

Tile sides follow what each kernel keeps in registers: dK and dV of `block_n` keys, dQ of `block_m`
queries, beside two tiles of scores.  None of it is measured yet (docs/performance.md has the
prediction).
"""

from __future__ import annotations

from collections.abc import Iterator

from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import Config
from kdsl.specs import Attention
from kdsl.targets import Target


def preferences(spec: Attention, target: Target, part: Part) -> Iterator[Config]:
    """Configurations from the most to the least wanted; the last ones fit almost anything."""
    if spec.dtype != "float32":
        wide, narrow = (64, 128), (64, 64)
        if part == "queries":
            wide = (128, 64)
        if target.capability[0] in (9, 10):
            yield from (Config(*wide, 8, stages, "descriptor") for stages in (3, 2))
        yield from (Config(*wide, 8, stages) for stages in (3, 2, 1))
        for m, n in (narrow, (32, 64) if part == "keys" else (64, 32), (32, 32)):
            for warps in (4, 8):
                yield from (Config(m, n, warps, stages) for stages in (2, 1))
    # Without tensor cores a tile's products live in plain registers.
    yield from (Config(32, 32, warps, stages) for warps in (4, 8) for stages in (2, 1))
    rows, columns = (min(n, 32) for n in spec.block)
    yield from (Config(rows, columns, warps, 1) for warps in (4, 2, 1))
    yield from (Config(rows, min(columns, 16), warps, 1) for warps in (4, 2, 1))
