"""The key of a tunable: what the tuning database files its results under."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from kdsl.runtime.records import Device, Key, Toolchain, Workload
from kdsl.runtime.records.keys import STATS
from kdsl.runtime.tunable import Tunable
from kdsl.specs import canonical, digest
from kdsl.targets import Target

NUMERICS = {"fp_fusion": True}
"""Switches every kernel here is compiled with."""
ALIGNMENT = 16
"""Bytes to which pointers and strides of a tuned call are aligned: contiguous tensors."""


def key_for(tunable: Tunable, target: Target) -> Key:
    """Where the results of a tunable on a GPU are found, as far as this process knows."""
    return Key(workload(tunable), Device.of(target), toolchain(tunable))


def workload(tunable: Tunable) -> Workload:
    """What is computed."""
    spec = tunable.spec
    # Four digits: the last ones are noise, and would give equal masks different names.
    stats = {n: float(f"{v:.4g}") for n, v in tunable.statistics().items() if n in STATS}
    return Workload(
        op=tunable.op,
        program=spec.program,
        dtypes={"tensors": spec.dtype},
        dims=tunable.sizes(),
        align={"tensors": ALIGNMENT},
        mask_stats=stats,
        numerics=NUMERICS,
        spec_json=canonical(spec.to_json()),
    )


def toolchain(tunable: Tunable, **versions: str) -> Toolchain:
    """What compiles it here; ``versions`` are those that only a process with a GPU knows."""
    known: dict[str, Any] = {"triton": _version("triton"), **versions}
    return Toolchain(
        kdsl=_version("kdsl-kernels") or "0+checkout", template_hash=tunable.template_hash, **known
    )


def space_hash(choices: Mapping[str, tuple[Any, ...]]) -> str:
    """Identity of a space of configurations."""
    return digest({name: list(values) for name, values in choices.items()})[:16]


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
