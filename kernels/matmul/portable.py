"""The portable template's legality, resources and constants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import ACTIVATIONS, Packed, View, view
from kdsl.specs import Matmul
from kdsl.targets import Target

TEMPLATE = Path(__file__).parent / "template.py"
ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities the template is written and compiled for."""
FP8_UNITS = (8, 9)
"""The first compute capability that multiplies e4m3."""
REGISTERS = 65_536
OTHER_REGISTERS = 48
"""Of a thread beside those of its sums and operands, about."""
BARRIERS = 128
"""Bytes of products that run beside the program, and of where in tensor memory they are."""


def fp8(spec: Matmul, target_capability: tuple[int, int]) -> int:
    """0 for integers, 1 where the GPU multiplies e4m3, 2 where it has to be float16."""
    if view(spec).integer:
        return 0
    return 1 if target_capability >= FP8_UNITS else 2


def sums(config: Config) -> int:
    """Registers of a thread that hold its part of a tile."""
    return config.block_m * config.block_n // (32 * config.num_warps)


def shared_bytes(spec: Matmul, config: Config, target: Target) -> int:
    """Bytes that a block asks for, a little above the compiler's figure: its stages.

    Where products read shared memory themselves one stage more is in use than is loaded ahead.
    """
    held = view(spec)
    beside = target.capability[0] == 10 and not held.integer and not held.group
    direct = config.block_m >= 64 and (target.capability[0] == 9 or beside)
    stages = config.num_stages - (not direct)
    x, weight = (n * config.block_k for n in (config.block_m, config.block_n))
    if held.group:
        # Codes are loaded ahead, and lie decoded beside.
        ahead = weight * held.bits // 8 * (config.num_stages - 1)
        decoded = weight * (1 + (fp8(spec, target.capability) == 2))
        return x * stages + ahead + decoded + BARRIERS
    return (x + weight) * stages + BARRIERS


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    held = view(spec)
    if target.capability < ARCHITECTURES[0]:
        return f"{target.name} is below compute capability 8.0"
    if config.chunks != 1:
        return "chunks are the hopper template's"
    if not 8 <= sums(config) <= 128:
        return f"{sums(config)} sums a thread, 8 to 128 may be"
    if config.block_m < 64 and config.num_warps > 4:
        return f"{config.num_warps} warps for {config.block_m} rows"
    if fp8(spec, target.capability) == 2 and (sums(config) > 64 or config.block_k > 64):
        return "operands as float16: at most 64 sums a thread, and steps of 64"
    if held.group and held.group % config.block_k:
        return f"steps of {config.block_k} do not divide groups of {held.group}"
    # In tensor memory a step's sums come and go with operands that are computed.
    most = 32 if target.capability[0] == 10 and not held.integer else 64
    if held.group and sums(config) > most:
        return f"sums of a step beside more than {most} sums of all"
    asked = shared_bytes(spec, config, target)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def preferences(spec: Matmul, target: Target) -> Iterator[Config]:
    """Configurations from the most to the least wanted."""
    tiles: tuple[tuple[int, int], ...] = ((128, 128), (128, 64), (64, 64), (32, 64), (16, 64))
    if target.capability in ((8, 0), (9, 0)):
        tiles = ((128, 256), *tiles)
    fits = [(m, n) for m, n in tiles if m <= max(16, 2 * spec.rows - 1)]
    full = [(m, n) for m, n in fits if -(-spec.rows // m) * -(-spec.columns // n) >= target.sms]
    for m, n in (*full, *fits[::-1], *tiles[::-1]):
        for k in (128, 64):
            for stages in (4, 3, 2):
                yield Config(m, n, k, 8 if m * n >= 128 * 128 else 4, stages, 8)


def constants(spec: Matmul, config: Config, capability: tuple[int, int]) -> dict[str, Any]:
    """The template's compile-time arguments."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "FP8": fp8(spec, capability),
        "ACTIVATION": ACTIVATIONS[spec.activation],
        "STAGES": config.num_stages,
        **_book(view(spec)),
    }


def _book(held: View) -> dict[str, int]:
    """How weights are coded; a book of eight bytes is a signed 64-bit number."""
    if not isinstance(held.weight, Packed):
        return {"BITS": 8, "SCALED": 0, "LOW": 0, "HIGH": 0}
    raw = bytes(held.weight.entries)
    low, high = (int.from_bytes(raw[i : i + 8], "little", signed=True) for i in (0, 8))
    return {"BITS": held.bits, "SCALED": held.group, "LOW": low, "HIGH": high}


def options(config: Config) -> dict[str, Any]:
    """Triton's own."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def source() -> str:
    """The complete kernel file: the template itself, for constants say all about a spec."""
    return TEMPLATE.read_text()
