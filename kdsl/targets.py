"""The GPUs this library knows by name, and how many blocks of a kernel fit on one.

Every figure is a data sheet's, so tuning, prediction and compilation work for a card that is not
there. Peaks are dense (no 2:4 sparsity), tensor-core rates with float32 or int32 accumulation at
the *boost* clock of the data sheet, except ``float32``, which is the ordinary cores' rate. They are
no hard ceilings: an H100 whose sheet assumes 1,830 MHz runs up to 1,980 MHz, so whoever calls a
time impossible must leave that margin. A dtype that is missing has no such unit (an emulated
instruction does not count). Memory is the nominal size; a driver keeps 1 to 3 % of it.

Sources: NVIDIA's data sheets for A100 (2021), A10, A30, L4, L40S, H100, H200, GH200 and HGX B200;
the GA102, Ada (AD102) and RTX Blackwell (GB202) architecture white papers for the GeForce cards.
GeForce cards run float16 at half rate with float32 accumulation, which is the rate given.
``int4`` of L4 and L40S is twice ``int8``, the ratio of the Ada white paper: their own sheets do not
settle it. L2 of H200, GH200 and B200 is what drivers report. Limits of a multiprocessor come from
the CUDA C++ programming guide's table of compute capabilities. Of ``a100`` the SXM module is
described; the PCIe card of the same name has 300 W and 1.935 TB/s.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Protocol

from kdsl.errors import ConfigError, UnsupportedError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Target:
    """A GPU model. Bytes, bytes/s, FLOP/s (OP/s for integers) and watts throughout."""

    name: str
    capability: tuple[int, int]
    """Compute capability, ``(9, 0)`` for an H100."""
    sms: int
    smem_optin: int
    """Shared memory one block may ask for, in bytes (the opt-in limit)."""
    smem_sm: int
    """Shared memory of a multiprocessor, in bytes."""
    registers_sm: int
    warps_sm: int
    blocks_sm: int
    l2_bytes: int
    memory_bytes: int
    bandwidth: float
    """Of the device memory, bytes/s; 0 where unknown (a live GPU whose driver does not say)."""
    peaks: tuple[tuple[str, float], ...]
    """Dense peak a dtype; see :meth:`peak`."""
    power_w: float
    aliases: tuple[str, ...] = ()
    device_names: tuple[str, ...] = field(default=(), repr=False)
    """What a driver calls it, without maker and family."""
    live: bool = False
    """Built by :func:`from_device` from a driver's answers; its peaks are estimates."""

    @property
    def cc(self) -> int:
        """Compute capability as one number, 90 for an H100."""
        return self.capability[0] * 10 + self.capability[1]

    def peak(self, dtype: str) -> float | None:
        """Dense peak for ``dtype`` in FLOP/s or OP/s; None where the chip has no such unit."""
        return dict(self.peaks).get(dtype)


@dataclass(frozen=True)
class _Limits:
    smem_optin: int
    smem_sm: int
    warps: int
    blocks: int


_BIG = _Limits(227 * KIB, 228 * KIB, 64, 32)
_LIMITS = {
    (8, 0): _Limits(163 * KIB, 164 * KIB, 64, 32),
    (8, 6): _Limits(99 * KIB, 100 * KIB, 48, 16),
    (8, 9): _Limits(99 * KIB, 100 * KIB, 48, 24),
    (9, 0): _BIG,
    (10, 0): _BIG,
    (12, 0): _Limits(99 * KIB, 100 * KIB, 48, 24),
}
_REGISTERS_SM = 65_536
_SMEM_RESERVED = 1 * KIB
"""What the driver takes of shared memory in every block, compute capability 8.0 and later."""


def _target(
    name: str,
    capability: tuple[int, int],
    *,
    sms: int,
    l2_mib: int,
    memory_gib: int,
    gb_s: float,
    watts: float,
    tera: dict[str, float],
    aliases: tuple[str, ...] = (),
    device_names: tuple[str, ...],
) -> Target:
    limits = _LIMITS[capability]
    if "float16" in tera:
        tera = {**tera, "bfloat16": tera["float16"]}  # one rate on every chip here
    return Target(
        name,
        capability,
        sms,
        limits.smem_optin,
        limits.smem_sm,
        _REGISTERS_SM,
        limits.warps,
        limits.blocks,
        l2_mib * MIB,
        memory_gib * GIB,
        gb_s * 1e9,
        tuple(sorted((dtype, rate * 1e12) for dtype, rate in tera.items())),
        watts,
        aliases,
        device_names,
    )


_A100 = {"float32": 19.5, "tf32": 156, "float16": 312, "int8": 624, "int4": 1248}
_H100 = {"float32": 66.9, "tf32": 494.7, "float16": 989.4, "float8_e4m3": 1978.9, "int8": 1978.9}

# fmt: off
_TABLE = (
    _target("a100", (8, 0), sms=108, l2_mib=40, memory_gib=80, gb_s=2039, watts=400, tera=_A100,
            aliases=("a100-80gb", "a100-sxm"),
            device_names=("A100-SXM4-80GB", "A100-SXM-80GB", "A100 80GB PCIe", "A100-PCIE-80GB")),
    _target("a100-40gb", (8, 0), sms=108, l2_mib=40, memory_gib=40, gb_s=1555, watts=400,
            tera=_A100,
            device_names=("A100-SXM4-40GB", "A100-SXM-40GB", "A100-PCIE-40GB")),
    _target("a10", (8, 6), sms=72, l2_mib=6, memory_gib=24, gb_s=600, watts=150,
            tera={"float32": 31.2, "tf32": 62.5, "float16": 125, "int8": 250, "int4": 500},
            device_names=("A10",)),
    _target("a30", (8, 0), sms=56, l2_mib=24, memory_gib=24, gb_s=933, watts=165,
            tera={"float32": 10.3, "tf32": 82, "float16": 165, "int8": 330, "int4": 661},
            device_names=("A30",)),
    _target("l4", (8, 9), sms=58, l2_mib=48, memory_gib=24, gb_s=300, watts=72,
            tera={"float32": 30.3, "tf32": 60.5, "float16": 121, "float8_e4m3": 242.5,
                  "int8": 242.5, "int4": 485},
            device_names=("L4",)),
    _target("l40s", (8, 9), sms=142, l2_mib=96, memory_gib=48, gb_s=864, watts=350,
            tera={"float32": 91.6, "tf32": 183, "float16": 362, "float8_e4m3": 733, "int8": 733,
                  "int4": 1466},
            device_names=("L40S",)),
    _target("rtx3090", (8, 6), sms=82, l2_mib=6, memory_gib=24, gb_s=936, watts=350,
            tera={"float32": 35.6, "tf32": 35.6, "float16": 71, "int8": 284, "int4": 568},
            aliases=("3090",), device_names=("RTX 3090",)),
    _target("rtx4090", (8, 9), sms=128, l2_mib=72, memory_gib=24, gb_s=1008, watts=450,
            tera={"float32": 82.6, "tf32": 82.6, "float16": 165.2, "float8_e4m3": 330.3,
                  "int8": 660.6, "int4": 1321.2},
            aliases=("4090",), device_names=("RTX 4090",)),
    _target("rtx5090", (12, 0), sms=170, l2_mib=96, memory_gib=32, gb_s=1792, watts=575,
            tera={"float32": 104.8, "tf32": 104.8, "float16": 209.5, "float8_e4m3": 419,
                  "int8": 838},
            aliases=("5090",), device_names=("RTX 5090",)),
    _target("h100", (9, 0), sms=132, l2_mib=50, memory_gib=80, gb_s=3352, watts=700, tera=_H100,
            aliases=("h100-sxm", "h100-80gb"), device_names=("H100 80GB HBM3",)),
    _target("h100-pcie", (9, 0), sms=114, l2_mib=50, memory_gib=80, gb_s=2039, watts=350,
            tera={"float32": 51.2, "tf32": 378, "float16": 756, "float8_e4m3": 1513, "int8": 1513},
            device_names=("H100 PCIe",)),
    _target("h200", (9, 0), sms=132, l2_mib=60, memory_gib=141, gb_s=4800, watts=700, tera=_H100,
            aliases=("h200-sxm",), device_names=("H200",)),
    _target("gh200", (9, 0), sms=132, l2_mib=60, memory_gib=96, gb_s=4000, watts=1000, tera=_H100,
            device_names=("GH200 480GB",)),
    _target("b200", (10, 0), sms=148, l2_mib=126, memory_gib=180, gb_s=8000, watts=1000,
            tera={"float32": 75, "tf32": 1125, "float16": 2250, "float8_e4m3": 4500, "int8": 4500},
            device_names=("B200",)),
)
# fmt: on


def known() -> tuple[Target, ...]:
    """Every GPU of the table, oldest architecture first."""
    return _TABLE


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def get(name: str) -> Target:
    """The GPU called ``name``; case, spaces, dashes and underscores do not matter.

    Raises :class:`~kdsl.errors.UnsupportedError` with the known names and the nearest of them.
    """
    by_name = {_plain(n): t for t in _TABLE for n in (t.name, *t.aliases)}
    listed = ", ".join(t.name for t in _TABLE)
    if not isinstance(name, str):
        raise UnsupportedError(f"{name!r} is no name of a GPU", hint=f"one of: {listed}")
    found = by_name.get(_plain(name))
    if found is not None:
        return found
    nearest = difflib.get_close_matches(_plain(name), by_name, n=1, cutoff=0.5)
    raise UnsupportedError(
        f"unknown GPU {name!r}",
        where="the table of GPUs (kdsl.targets)",
        hint=f"{by_name[nearest[0]].name!r}; known: {listed}" if nearest else f"one of: {listed}",
    )


_FAMILY = re.compile(r"^(nvidia|tesla|geforce)\s+", re.IGNORECASE)


def recognise(device_name: str, *, sms: int | None = None) -> Target | None:
    """The row of the table for what a CUDA driver calls a device, or None.

    The whole name must fit, so that an ``H200 NVL``, an ``RTX 4090 D``, a laptop's chip or a MIG
    slice is not taken for its bigger brother; ``sms``, where given, must agree too.
    """
    name = device_name.strip()
    while _FAMILY.match(name):
        name = _FAMILY.sub("", name)
    for target in _TABLE:
        if _plain(name) in map(_plain, target.device_names) and sms in (None, target.sms):
            return target
    return None


class DeviceProperties(Protocol):
    """What ``torch.cuda.get_device_properties`` answers; more attributes are used if there."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int


def from_device(properties: DeviceProperties) -> Target:
    """A live GPU: its row of the table, or else a target made of what the driver says.

    The second kind has ``live=True``. Its limits are the driver's, or those of its compute
    capability; its bandwidth comes from memory clock and bus width; its peaks are those of the
    fastest known sibling of the same compute capability, by multiprocessors: good for ranking,
    not for a verdict. A compute capability that is not in the table raises
    :class:`~kdsl.errors.UnsupportedError` unless the driver states every limit.
    """
    sms = properties.multi_processor_count
    found = recognise(properties.name, sms=sms)
    if found is not None:
        return found
    capability = (properties.major, properties.minor)
    limits = _LIMITS.get(capability)

    def said(attribute: str, otherwise: int | None) -> int:
        value = getattr(properties, attribute, None) or otherwise
        if value is None:
            raise UnsupportedError(
                f"the driver does not state {attribute} of {properties.name!r}",
                where=f"compute capability {capability[0]}.{capability[1]}, which is not known",
                hint="a newer PyTorch, or gpu= with one of: " + ", ".join(t.name for t in _TABLE),
            )
        return int(value)

    siblings = [t for t in _TABLE if t.capability == capability]
    rates: dict[str, float] = {}
    for dtype, rate in (pair for t in siblings for pair in ((d, r / t.sms) for d, r in t.peaks)):
        rates[dtype] = max(rates.get(dtype, 0.0), rate)
    clock_khz = getattr(properties, "memory_clock_rate", 0)
    bus_bits = getattr(properties, "memory_bus_width", 0)
    return Target(
        name=re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-"),
        capability=capability,
        sms=sms,
        smem_optin=said("shared_memory_per_block_optin", limits.smem_optin if limits else None),
        smem_sm=said("shared_memory_per_multiprocessor", limits.smem_sm if limits else None),
        registers_sm=said("regs_per_multiprocessor", _REGISTERS_SM),
        warps_sm=said("max_threads_per_multi_processor", limits.warps * 32 if limits else None)
        // 32,
        blocks_sm=limits.blocks if limits else 16,
        l2_bytes=int(getattr(properties, "L2_cache_size", 0)),
        memory_bytes=properties.total_memory,
        bandwidth=2.0 * clock_khz * 1e3 * bus_bits / 8,  # both clock edges carry data
        peaks=tuple(sorted((dtype, rate * sms) for dtype, rate in rates.items())),
        power_w=max((t.power_w for t in siblings), default=0.0),
        device_names=(properties.name,),
        live=True,
    )


def occupancy(target: Target, registers: int, shared_bytes: int, warps: int) -> int:
    """Blocks of a kernel that run at once on one multiprocessor; 0 if it cannot be launched.

    ``registers`` a thread, ``shared_bytes`` a block without the driver's own share (as Triton's
    ``metadata.shared`` and ptxas count it), ``warps`` a block. Follows the rules of NVIDIA's
    ``cuda_occupancy.h`` for compute capability 8.0 and later with the largest shared-memory
    carve-out: registers go to warps in units of 256 and live in four partitions, shared memory goes
    to blocks in units of 128 bytes after 1 KiB for the driver.
    """
    if warps < 1 or registers < 0 or shared_bytes < 0:
        raise ConfigError(f"no such kernel: {registers=}, {shared_bytes=}, {warps=}")
    if warps > 32 or registers > 256 or shared_bytes > target.smem_optin:
        return 0
    shared = _round_up(shared_bytes + _SMEM_RESERVED, 128)
    limit = min(target.blocks_sm, target.warps_sm // warps, target.smem_sm // shared)
    a_warp = _round_up(registers * 32, 256)
    if a_warp == 0:
        return limit
    if a_warp * _round_up(warps, 4) > target.registers_sm:
        return 0
    return min(limit, target.registers_sm // 4 // a_warp * 4 // warps)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
