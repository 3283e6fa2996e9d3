"""The Hopper template's legality, resources and constants, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import ACTIVATIONS, view
from kdsl.specs import Matmul
from kdsl.targets import Target

CAPABILITY = (9, 0)
PRODUCER_REGISTERS = 24
MOST_REGISTERS = 240
"""Of a consumer thread; what is left of 512 for two consumers goes to the producer."""
OTHER_REGISTERS = 40
"""Registers of a consumer thread beside its sums: scales of rows, addresses, ring positions."""
EPILOGUE_REGISTERS = 96
"""And beside the sums while a chunk of 64 columns is finished: its values, its columns' vectors."""
WIDEST = 64
"""Columns of a chunk that the epilogue holds beside 128 sums: with 128 ptxas spills."""
BARRIERS = 512
"""Barriers, and the arguments that partitions pass through shared memory."""
ALIGNMENT = 16
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MODULES = tuple(Path(__file__).parent / f"{name}.py" for name in ("choices", "epilogue", "forward"))
"""The modules of the template, each after those it imports."""
MARK = "# --- template ---\n"
IMPORTS = """
from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

"""


@dataclass(frozen=True)
class Resources:
    """Registers a thread."""

    at_launch: int
    consumer: int


def consumers(config: Config) -> int:
    """Warpgroups that multiply."""
    return config.num_warps // 4


def resources(config: Config) -> Resources:
    """Registers at launch, and of a consumer once the other warps have given theirs away.

    The producer's warpgroup holds three idle warps; registers move in units of 8.
    """
    groups = consumers(config) + 1
    enough = (MOST_REGISTERS * consumers(config) + PRODUCER_REGISTERS) // groups
    at_launch = min(65536 // (128 * groups), enough) // 8 * 8
    free = at_launch * groups - PRODUCER_REGISTERS
    return Resources(at_launch, min(free // consumers(config) // 8 * 8, MOST_REGISTERS))


def sums(config: Config) -> int:
    """Registers of a consumer thread that hold its part of a tile."""
    return config.block_m * config.block_n // (128 * consumers(config))


def buffers(spec: Matmul, config: Config) -> int:
    """Chunks of the output of a warpgroup that are on their way at once; with a residual, which
    arrives where the output leaves, all of them."""
    return config.chunks if spec.residual else min(config.chunks, 2)


def shared_bytes(spec: Matmul, config: Config, target: Target) -> int:
    """Bytes a program asks for: never below the compiler's figure, at most 10 % above."""
    del target
    stages = config.num_stages * (config.block_m + config.block_n) * config.block_k
    chunk = config.block_m * config.block_n // config.chunks * ITEM_BYTES[spec.dtype]
    return stages + buffers(spec, config) * chunk + BARRIERS


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    item = ITEM_BYTES[spec.dtype]
    if target.capability != CAPABILITY:
        return f"the hopper template is for compute capability 9.0, not {target.name}'s"
    if spec.inner % ALIGNMENT:
        return f"TMA fetches no rows of {spec.inner} bytes: a multiple of 16"
    if spec.columns * item % ALIGNMENT:
        return f"TMA stores no rows of {spec.columns} {spec.dtype}: a multiple of 16 bytes"
    rows = config.block_m // consumers(config)
    if rows not in (64, 128):
        return f"a warpgroup computes 64 or 128 rows, not {rows}"
    if config.block_n < 64 or config.block_n // config.chunks < 32:
        return f"{config.block_n} columns in {config.chunks} chunks"
    if config.block_k > 128:
        return "a step is at most 128 bytes of K, what TMA swizzles"
    held, have = sums(config), resources(config).consumer
    if held > 128:
        return f"{held} sums a thread, at most 128"
    width = rows // 64 * config.block_n // config.chunks
    need = held + OTHER_REGISTERS + (EPILOGUE_REGISTERS - OTHER_REGISTERS) * width // WIDEST
    if need > have:
        return f"about {need} registers a thread, {have} are to be had"
    asked = shared_bytes(spec, config, target)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def preferences(spec: Matmul, target: Target) -> Iterator[Config]:
    """Configurations from the most to the least wanted.

    The first tiles are those of a probe on an H200 (int8 and e4m3, three shapes of diffusion
    transformers); narrower ones follow where the large ones leave multiprocessors idle.
    """
    tiles = ((128, 256), (128, 128), (128, 64), (64, 64))
    full = [(m, n) for m, n in tiles if -(-spec.rows // m) * -(-spec.columns // n) >= target.sms]
    for m, n in (*full, *tiles[::-1]):
        warps = 8 if m > 64 else 4
        chunks = min(max(n // WIDEST, 1), 4)
        for stages in (8, 6, 5, 4, 3, 2):
            yield Config(m, n, 128, warps, stages, 12, chunks, "hopper")


def source() -> str:
    """The complete kernel file: the modules in a row."""
    return joined(MODULES)


def joined(modules: tuple[Path, ...]) -> str:
    """Modules in a row, under the first words of the last one."""
    texts = [path.read_text() for path in modules]
    head = texts[-1].split("\n\nfrom ")[0].rstrip() + "\n" + IMPORTS
    bodies = [text.split(MARK)[1].strip("\n") for text in texts]
    return head + "\n" + "\n\n\n".join(bodies) + "\n"


def constants(spec: Matmul, config: Config, capability: tuple[int, int]) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    del capability
    held = view(spec)
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "CONSUMERS": consumers(config),
        "STAGES": config.num_stages,
        "CHUNKS": config.chunks,
        "BUFFERS": buffers(spec, config),
        "GROUP": config.group,
        "INTEGER": held.integer,
        "ZEROS": held.zeros,
        "BIAS": spec.bias,
        "RESIDUAL": spec.residual,
        "ACTIVATION": ACTIVATIONS[spec.activation],
        "CONSUMER_REGISTERS": resources(config).consumer,
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
    }


def options(config: Config) -> dict[str, Any]:
    """Triton's own: a partition has four warps, and registers at launch are for all of them."""
    return {"num_warps": 4, "maxnreg": resources(config).at_launch}


def layout_of(columns: int, bits: int) -> Any:
    """Gluon's layout of a tile of rows in shared memory, as TMA and the products want it."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(min(128, columns * bits // 8), bits, 2)


def boxes(spec: Matmul, config: Config) -> dict[str, tuple[int, int]]:
    """Rows and columns of what TMA moves at once, by operand."""
    rows, width = config.block_m // consumers(config), config.block_n // config.chunks
    found = {
        "x": (rows, config.block_k),
        "weight": (config.block_n, config.block_k),
        "out": (rows, width),
    }
    return found | ({"residual": (rows, width)} if spec.residual else {})
