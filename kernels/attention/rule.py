"""The built-in choice of a configuration: an ordered list, of which the first legal one is taken.

First comes what was distilled from measured rows (`kdsl.kernels.attention.distilled`), where the
facts of a spec lie within them.  The written list stands behind it.  Its Hopper entries are from an
H100 (docs/performance.md); the others are untested guesses that keep registers and shared memory in
bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdsl.kernels.attention.config import Config, describable
from kdsl.kernels.attention.hopper import config as hopper
from kdsl.specs import Attention
from kdsl.targets import Target

MANY_PARTIAL = 0.25
"""Share of partial blocks from which the mask decides the time, and small tiles win."""


def facts(
    spec: Attention, target: Target, sizes: Mapping[str, int], statistics: Mapping[str, float]
) -> dict[str, Any]:
    """What a distilled rule may ask: sizes, mask statistics where known, dtype, order, capability.

    ``in_order`` is 1 where tokens are stored as they are, so that every kind of load is legal.
    """
    named = {"cc": target.cc, "dtype": spec.dtype, "in_order": int(describable(spec))}
    return {**named, **sizes, **statistics}


def preferences(spec: Attention, target: Target, partial_share: float) -> Iterator[Config]:
    """Configurations from the most to the least wanted; the last ones fit almost anything."""
    yield from hopper.preferences(spec)
    if spec.dtype != "float32":
        if target.capability[0] in (9, 10):
            yield from _hopper(spec, partial_share)
        else:
            if spec.head_dim <= 128:
                warps = 8 if spec.head_dim > 64 else 4
                yield from (Config(128, 64, warps, n) for n in (3, 2, 1))
            yield from (Config(64, 64, 8, n) for n in (2, 1))
        for m, n in ((64, 64), (64, 32), (32, 32)):
            yield from (Config(m, n, 4, stages) for stages in (3, 2, 1))
    # Without tensor cores a tile's products live in plain registers.
    rows, columns = (min(n, 32) for n in spec.block)
    yield from (Config(rows, columns, warps, stages) for warps in (4, 8) for stages in (2, 1))


def _hopper(spec: Attention, partial_share: float) -> Iterator[Config]:
    if spec.head_dim > 128:
        # Two warpgroups: one alone has not the registers for its share of the output.
        yield Config(64, 64, 8, 2, "descriptor")
        yield Config(64, 64, 8, 2)
    if partial_share > MANY_PARTIAL:
        yield Config(64, 64, 4, 3, "descriptor")
        yield Config(64, 64, 4, 3)
    if spec.head_dim > 64:
        yield Config(128, 64, 4, 2, "descriptor")
        yield Config(128, 128, 8, 3)
        yield Config(128, 64, 8, 2)
    else:
        yield Config(128, 128, 4, 2, "descriptor")
        yield Config(128, 128, 4, 2)
    yield Config(64, 64, 4, 2, "descriptor")
