"""The built-in choice of a configuration: an ordered list, of which the first legal one is taken.

First comes what was distilled from measured rows (`kdsl.kernels.attention.distilled`), where the
facts of a spec lie within them.  The written list stands behind it.  Its Hopper entries are from an
H100 (docs/performance.md); the others are untested guesses that keep registers and shared memory in
bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kdsl.kernels.attention.config import ITEM_BYTES, Config, describable
from kdsl.kernels.attention.hopper import config as hopper
from kdsl.kernels.attention.hopper.launch import to_copy
from kdsl.specs import Attention
from kdsl.targets import Target

MANY_PARTIAL = 0.25
"""Share of partial blocks from which the mask decides the time, and small tiles win."""
SOME_PARTIAL = 0.05
"""Share of partial blocks from which bits of them are made before the first call."""
GATHERED_TFLOPS, STORED_TFLOPS = 320.0, 490.0
"""Of an H100 on Flux's and CogVideoX's orders: the portable template that gathers rows (312 and
335), the Hopper one behind its copies (504 and 484); benchmarks/tuning/h100.jsonl."""
COPY_GBS, LAUNCH_US = 2500.0, 5.0
"""Assumed of the copies (a plain one moves 3,000)."""


def facts(
    spec: Attention, target: Target, sizes: Mapping[str, int], statistics: Mapping[str, float]
) -> dict[str, Any]:
    """What a distilled rule may ask: sizes, mask statistics where known, dtype, order, capability.

    ``in_order`` is 1 where tokens are stored as they are, so that every kind of load is legal.
    """
    named = {"cc": target.cc, "dtype": spec.dtype, "in_order": int(describable(spec))}
    return {**named, **sizes, **statistics}


def copied_bytes(spec: Attention) -> float:
    """Bytes that the Hopper template moves, a batch item, to have q, k, v in their stored order."""
    queries, keys = to_copy(spec)
    rows = spec.heads * spec.query_grid.tokens if queries else 0
    rows += 2 * spec.group_heads * spec.key_grid.tokens if keys else 0
    return 2.0 * rows * spec.head_dim * ITEM_BYTES[spec.dtype]


def worth_copying(spec: Attention, density: float) -> bool:
    """Whether copies in stored order cost less than they gain."""
    pairs = density * spec.heads * spec.query_grid.tokens * spec.key_grid.tokens
    operations = 4.0 * pairs * spec.head_dim
    gain_us = operations * (1 / GATHERED_TFLOPS - 1 / STORED_TFLOPS) * 1e-6
    return copied_bytes(spec) / COPY_GBS * 1e-3 + LAUNCH_US < gain_us


def preferences(
    spec: Attention, target: Target, statistics: Mapping[str, float]
) -> Iterator[Config]:
    """Configurations from the most to the least wanted; the last ones fit almost anything."""
    partial_share = statistics.get("partial_share", 0.0)
    first = describable(spec) or worth_copying(spec, statistics.get("density", 1.0))
    if first:
        yield from _masked(spec, partial_share)
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
    # Without tensor cores a tile's products live in plain registers: wide heads spill least with
    # many threads and one stage, as compiled for sm_90 (none at 128, 1.9 KiB at 256).
    rows, columns = (min(n, 32) for n in spec.block)
    for warps in (8, 4) if spec.head_dim > 80 else (4, 8):
        for stages in (1, 2) if spec.head_dim > 96 else (2, 1):
            yield Config(rows, columns, warps, stages)
    if not first and target.capability == hopper.CAPABILITY:
        # Where Hopper's alone may be chosen, copies or not.
        yield from _masked(spec, partial_share)


def _masked(spec: Attention, partial_share: float) -> Iterator[Config]:
    """The Hopper template's, partial blocks from bits where there are more than a few."""
    for config in hopper.preferences(spec):
        if partial_share >= SOME_PARTIAL:
            yield replace(config, masks="bits")
        yield config


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
