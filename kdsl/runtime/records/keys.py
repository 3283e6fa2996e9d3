"""Which workloads count as the same, and how far apart the others are.

A key has **hard** parts, which change the program or the binary and must be equal, and **soft**
ones. Alignment classes are hard and exact: a bucket that promised more alignment than a call has
would be wrong, not slow. Sizes are bucketed by rounded log2, so that 32,760 and 32,768 share a
bucket; mask statistics as :data:`STATS` says. Rows keep the exact values, and distances use them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kdsl.runtime.records.form import Row, dumps
from kdsl.runtime.records.rows import Device, Toolchain, Workload


class Key(NamedTuple):
    """What a configuration is wanted for."""

    workload: Workload
    device: Device
    toolchain: Toolchain


HARD_DIMS = frozenset(
    {"head_dim", "head_dim_v", "group", "summed", "block_q", "block_k", "world_size"}
)
"""Sizes that shape the program; every other size is soft."""


class Scale(NamedTuple):
    """How a mask statistic is compared: by octaves or by difference."""

    octaves: bool
    buckets: float
    """Buckets an octave, or a unit."""
    weight: float
    """Distance of an octave, or of a unit."""


STATS: Mapping[str, Scale] = {
    "density": Scale(octaves=True, buckets=2, weight=0.5),
    "partial_share": Scale(octaves=False, buckets=4, weight=1.0),
    "row_spread": Scale(octaves=True, buckets=2, weight=0.5),
    "run_length": Scale(octaves=True, buckets=1, weight=0.25),
}
"""First guesses, to be put to the test on recordings of one size with different masks."""
_TINY = 2.0**-20


def _log2(value: float) -> float:
    return math.log2(max(value, _TINY))


def soft_dims(workload: Workload) -> dict[str, int]:
    """The sizes that are bucketed."""
    return {name: size for name, size in workload.dims.items() if name not in HARD_DIMS}


def hard(workload: Workload) -> dict[str, str]:
    """The parts of the key that must be equal, by readable name; the device's capability is one
    more."""
    parts: dict[str, str] = {"op": workload.op, "program": workload.program}
    dims = {name: size for name, size in workload.dims.items() if name in HARD_DIMS}
    for group, values in (
        ("dtype", workload.dtypes),
        ("dim", dims),
        ("align", workload.align),
        ("numerics", workload.numerics),
    ):
        parts |= {
            f"{group} {name}": v if isinstance(v, str) else dumps(v) for name, v in values.items()
        }
    return parts


def buckets(workload: Workload) -> dict[str, int]:
    """The soft parts of the key: a bucket for each size and each mask statistic."""
    found = {name: round(_log2(max(size, 1))) for name, size in soft_dims(workload).items()}
    for name, value in workload.mask_stats.items():
        scale = STATS[name]
        found[name] = round((_log2(value) if scale.octaves else value) * scale.buckets)
    return found


def distance(a: Workload, b: Workload) -> float:
    """Octaves between the sizes of two workloads plus weighted differences of their masks.

    Infinite if a size or statistic is there in only one of them: then they are not comparable.
    """
    sizes, others = soft_dims(a), soft_dims(b)
    if sizes.keys() != others.keys() or a.mask_stats.keys() != b.mask_stats.keys():
        return math.inf
    total = sum(abs(_log2(max(sizes[n], 1)) - _log2(max(others[n], 1))) for n in sizes)
    for name, value in a.mask_stats.items():
        scale, other = STATS[name], b.mask_stats[name]
        apart = _log2(value) - _log2(other) if scale.octaves else value - other
        total += abs(apart) * scale.weight
    return total


def same_device(a: Device, b: Device) -> bool:
    """Whether both are the same model in the same slice (power cap and sizes aside)."""
    return (a.name, a.cc, a.sms, a.mig) == (b.name, b.cc, b.sms, b.mig)


_DEVICE = ("name", "sms", "mig", "power_cap_w")
_TOOLS = ("template_hash", "triton", "ptxas", "nvrtc", "cuda", "driver", "numerics_env")


def changes(wanted: Key, row: Key) -> list[tuple[str, str, str]]:
    """Field, wanted and row's value of what is known on both sides of device and tools, and
    differs.

    The versions of kdsl and torch do not count: what they change of a kernel is in
    ``template_hash``.
    """
    sides: list[tuple[Row, Row, str]] = [(wanted.device, row.device, n) for n in _DEVICE]
    sides += [(wanted.toolchain, row.toolchain, n) for n in _TOOLS]
    values = ((name, getattr(here, name), getattr(there, name)) for here, there, name in sides)
    return [(name, str(a), str(b)) for name, a, b in values if a and b and a != b]


class Difference(NamedTuple):
    """One line of the table that explains a miss."""

    mark: str
    """``!`` hard, ``~`` soft and in another bucket, blank for the rest."""
    field: str
    wanted: str
    row: str


def differences(wanted: Key, row: Key) -> list[Difference]:
    """Every part of the key in which a row differs from what is wanted, hard ones first."""
    left = {**hard(wanted.workload), "capability": str(wanted.device.cc)}
    right = {**hard(row.workload), "capability": str(row.device.cc)}
    found = [
        Difference("!", name, left.get(name, "-"), right.get(name, "-"))
        for name in left | right
        if left.get(name) != right.get(name)
    ]
    here, there = buckets(wanted.workload), buckets(row.workload)
    ours, theirs = ({**soft_dims(k.workload), **k.workload.mask_stats} for k in (wanted, row))
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            mark = " " if here.get(name) == there.get(name) else "~"
            found.append(Difference(mark, name, _shown(ours.get(name)), _shown(theirs.get(name))))
    return found + [Difference("~", *change) for change in changes(wanted, row)]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(found: Iterable[Difference]) -> list[str]:
    """Lines of a table of differences."""
    lines = [Difference(" ", "field", "wanted", "row"), *found]
    widths = [max(len(line[i]) for line in lines) for i in (1, 2)]
    return [
        f"{mark} {name:<{widths[0]}}  {wanted:<{widths[1]}}  {row}".rstrip()
        for mark, name, wanted, row in lines
    ]
