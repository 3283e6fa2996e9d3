"""The legality, resources and constants of the Hopper template for weights of four bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import ACTIVATIONS, Packed, view
from kdsl.kernels.matmul.hopper import config as plain
from kdsl.kernels.matmul.hopper.config import (
    ALIGNMENT,
    BARRIERS,
    CAPABILITY,
    ITEM_BYTES,
    PRODUCER_REGISTERS,
    options,
    resources,
)
from kdsl.specs import Matmul
from kdsl.targets import Target

__all__ = ["options"]

COLUMNS = 64
"""Of the output, that a warpgroup computes: rows of its first operand."""
STEP = 128
"""Columns of K of a step: what TMA swizzles of x."""
OTHER_REGISTERS = 40 + 32 + 16
"""Of a consumer thread beside its sums: addresses and places, operands, the next step's codes."""
MODULES = tuple(Path(__file__).parent / f"{name}.py" for name in ("choices", "epilogue", "coded"))
"""The modules of the template, each after those it imports."""


def sums(config: Config) -> int:
    """Registers of a consumer thread that hold sums: a step's, and all of them."""
    return 2 * config.block_m * COLUMNS // 128


def shared_bytes(spec: Matmul, config: Config, target: Target) -> int:
    """Bytes a program asks for: never below the compiler's figure, at most 10 % above."""
    del target
    stage = config.block_m * config.block_k + config.block_n * config.block_k // 2
    out = config.block_m * config.block_n * ITEM_BYTES[spec.dtype]
    return config.num_stages * stage + out + BARRIERS


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    item, held = ITEM_BYTES[spec.dtype], view(spec)
    if target.capability != CAPABILITY:
        return f"the hopper template is for compute capability 9.0, not {target.name}'s"
    if held.bits != 4:
        return "the hopper template decodes four bits"
    if held.group % STEP:
        return f"groups of {held.group}, steps of {STEP}"
    if spec.columns * item % ALIGNMENT:
        return f"TMA stores no rows of {spec.columns} {spec.dtype}: a multiple of 16 bytes"
    if config.num_warps != 8 or config.block_n != 2 * COLUMNS or config.chunks != 1:
        return "weights of four bits: two warpgroups of 64 columns each, in one chunk"
    if config.block_k != STEP:
        return f"weights of four bits are taken in steps of {STEP}"
    need, have = sums(config) + OTHER_REGISTERS, resources(config).consumer
    if need > have:
        return f"about {need} registers a thread, {have} are to be had"
    asked = shared_bytes(spec, config, target)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def preferences(spec: Matmul, target: Target) -> Iterator[Config]:
    """Configurations from the most to the least wanted: as many rows as registers hold."""
    del target
    for m in (128, 64) if spec.rows > 64 else (64, 128):
        for stages in (8, 6, 5, 4, 3, 2):
            yield Config(m, 2 * COLUMNS, STEP, 8, stages, 12, 1, "hopper")


def constants(spec: Matmul, config: Config, capability: tuple[int, int]) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    del capability
    held = view(spec)
    assert isinstance(held.weight, Packed), "legal configurations are of packed weights"
    book = bytes(held.weight.entries)
    words = {f"B{i}": int.from_bytes(book[4 * i : 4 * i + 4], "little") for i in range(4)}
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "CONSUMERS": 2,
        "STAGES": config.num_stages,
        "GROUP": config.group,
        "INTEGER": held.integer,
        "BIAS": spec.bias,
        "RESIDUAL": spec.residual,
        "ACTIVATION": ACTIVATIONS[spec.activation],
        "STEPS": held.group // STEP,
        **words,
        "CONSUMER_REGISTERS": resources(config).consumer,
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
    }


def boxes(spec: Matmul, config: Config) -> dict[str, tuple[int, int]]:
    """Rows and columns of what TMA moves at once, by operand; of weights, in 16 bits."""
    out = (config.block_m, COLUMNS)
    found = {"x": (config.block_m, STEP), "weight": (COLUMNS, STEP // 4), "out": out}
    return found | ({"residual": out} if spec.residual else {})


def source() -> str:
    """The complete kernel file: the modules in a row."""
    return plain.joined(MODULES)
