"""The portable template: Triton, any number of rows; its legality, resources and constants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.facts import ACTIVATIONS, view
from kdsl.specs import Matmul
from kdsl.targets import Target

TEMPLATE = Path(__file__).parent / "template.py"
ENTRY = "weight_only_tiles"
ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities the templates are written and compiled for."""
OTHER_REGISTERS = 64
"""Of a thread beside those of its sums and of a decoded step, about."""


def tiles(spec: Matmul, config: Config) -> tuple[int, int]:
    """Tiles down and across."""
    return -(-spec.rows // config.block_m), -(-spec.columns // config.block_n)


def programs(spec: Matmul, config: Config) -> int:
    """Programs of a launch."""
    down, across = tiles(spec, config)
    return down * across


def registers(config: Config) -> int:
    """Of a thread, about: sums of all and of a step, and a step's decoded weights."""
    threads = 32 * config.num_warps
    sums = 2 * config.block_m * config.block_n // threads
    return sums + 2 * config.block_n * config.block_k // threads + OTHER_REGISTERS


def shared_bytes(spec: Matmul, config: Config) -> int:
    """Bytes a block asks for, at most: stages of x and codes, and a step decoded, whose way to the
    product may be padded."""
    held = view(spec)
    ahead = 2 * config.block_m * config.block_k + config.block_n * config.block_k * held.bits // 8
    return ahead * config.num_stages + 5 * config.block_n * config.block_k // 2 + 128


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    held = view(spec)
    if target.capability < ARCHITECTURES[0]:
        return f"{target.name} is below compute capability 8.0"
    if (config.split, config.hold, config.blocks, config.table) != (1, 0, 1, 0):
        return "split, hold, blocks and table are the stream template's"
    if config.block_m not in (16, 32, 64, 128) or config.block_n not in (32, 64, 128):
        return f"tiles of {config.block_m} x {config.block_n}"
    if config.num_warps not in (4, 8):
        return f"{config.num_warps} warps, 4 or 8 may be"
    if held.group % config.block_k:
        return f"steps of {config.block_k} do not divide groups of {held.group}"
    if registers(config) > 255:
        return f"about {registers(config)} registers a thread"
    asked = shared_bytes(spec, config)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def preferences(spec: Matmul, target: Target) -> Iterator[Config]:
    """Configurations from the most to the least wanted."""
    del target
    sizes = ((128, 128), (64, 64), (32, 64), (16, 64), (16, 32))
    fits = [(m, n) for m, n in sizes if m <= max(16, 2 * spec.rows - 1)]
    for m, n in (*fits, (16, 32)):
        for k in (64, 32):
            for stages in (3, 2):
                yield Config("portable", m, n, k, 8 if m == 128 else 4, stages, 8)


def integers(spec: Matmul, config: Config) -> dict[str, int]:
    """Sizes among the kernel's arguments."""
    down, across = tiles(spec, config)
    sizes = {"rows": spec.rows, "columns": spec.columns, "inner": spec.inner}
    return {**sizes, "down": down, "across": across}


def steps(spec: Matmul) -> dict[str, int]:
    """Entries from row to row of contiguous operands."""
    held = view(spec)
    groups = spec.inner // held.group
    return {
        "x_r": spec.inner,
        "codes_r": spec.inner // (2 if held.bits == 4 else 4),
        "signs_r": spec.inner // 8 if held.signs else 0,
        "scales_r": groups,
        "zeros_r": groups if held.zeros else 0,
        "residual_r": spec.columns if spec.residual else 0,
        "out_r": spec.columns,
    }


def constants(spec: Matmul, config: Config) -> dict[str, Any]:
    """The template's compile-time arguments."""
    held = view(spec)
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "STAGES": config.num_stages,
        "BITS": held.bits,
        "SCALED": held.group,
        "ACTIVATION": ACTIVATIONS[spec.activation],
    }


def options(config: Config) -> dict[str, Any]:
    """Triton's own."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def source() -> str:
    """The complete kernel file: the template itself, for constants say all about a spec."""
    return TEMPLATE.read_text()
