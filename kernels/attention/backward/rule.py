"""The built-in choice of configurations for the backward kernels, until the database has rows.

Tile sides follow what each kernel keeps in registers: dK and dV of `block_n` keys, dQ of `block_m`
queries, beside two tiles of scores.  A third stage makes dK's kernel spill more on every GPU.  For
compute capability 9.0 they are what an H100 measured (docs/performance.md); others are reckoned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import Config
from kdsl.specs import Attention
from kdsl.targets import Target

MEASURED: Mapping[tuple[Part, bool], Config] = {
    ("keys", True): Config(128, 64, 4, 2),
    ("keys", False): Config(64, 64, 4, 2),
    ("queries", True): Config(64, 64, 4, 2),
    ("queries", False): Config(128, 64, 8, 3),
}
"""The fastest on an H100, by part and whether head_dim is at most 64; above 64 it was 128."""


def preferences(spec: Attention, target: Target, part: Part) -> Iterator[Config]:
    """Configurations from the most to the least wanted; the last ones fit almost anything."""
    if spec.dtype == "float32":
        # Without tensor cores a tile's products live in plain registers.
        for m, n in ((32, 32), (16, 32), (32, 16), (16, 16)):
            yield from (Config(m, n, warps, stages) for warps in (4, 8) for stages in (2, 1))
    else:
        wide = (64, 128) if part == "keys" else (128, 64)
        if target.capability == (9, 0) and spec.head_dim <= 128:
            best = MEASURED[part, spec.head_dim <= 64]
            yield from (replace(best, loads="descriptor"), best)
        if target.capability[0] in (9, 10):
            yield Config(*wide, 8, 2, "descriptor")
        for m, n in (wide, (64, 64), (32, 64) if part == "keys" else (64, 32), (32, 32)):
            yield from (Config(m, n, warps, 2) for warps in ((8,) if (m, n) == wide else (4, 8)))
    rows, columns = (min(n, 32) for n in spec.block)
    yield from (Config(rows, columns, w, stages) for w in (4, 8) for stages in (2, 1))
