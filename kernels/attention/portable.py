"""The portable template's legality, and what its compiler is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsl.kernels.attention.arguments import SHORT, add_integers, add_tables
from kdsl.kernels.attention.config import (
    ARCHITECTURES,
    Config,
    describable,
    head_parts,
)
from kdsl.kernels.attention.shared import shared_bytes
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime


def legal(spec: Attention, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    problem = tile_problem(spec, config, target) or narrow_problem(spec, config)
    if problem:
        return problem
    each = config.block_m * config.block_n // (config.num_warps * 32)
    single = spec.dtype == "float32"
    if config.num_warps > 4 and each < (4 if single else 8):
        return "too many warps for the tile"
    # Without tensor cores the products are unrolled: beyond this compilation takes minutes and most
    # of a tile lies in local memory.
    if single and each * spec.head_dim > 1024:
        return f"{each * spec.head_dim} multiply-adds a thread and product, 1024 at most"
    # Accumulators alone: beyond this they spill far and wide, and compile for minutes.
    held = accumulators(spec, config)
    if held > 256:
        return f"{held} accumulator registers a thread"
    need = shared_bytes(spec, config, target)
    if need > target.smem_optin:
        return f"{need} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def tile_problem(spec: Attention, config: Config, target: Target) -> str | None:
    """Why tiles or loads do not go with a spec and a GPU, or None."""
    if target.capability < min(ARCHITECTURES):
        return f"{target.name} is below compute capability 8.0"
    block_q, block_k = spec.block
    if block_q % config.block_m or block_k % config.block_n:
        tile = f"{config.block_m} x {config.block_n}"
        return f"tiles of {tile} do not divide blocks of {block_q} x {block_k}"
    if config.loads == "descriptor":
        if target.capability < (9, 0):
            return f"{target.name} has no tensor descriptors"
        if not describable(spec):
            return "tensor descriptors need the original order, or stored=True"
        if spec.dtype == "float32":
            return "tensor descriptors are for 16-bit products, which read shared memory"
    return None


def narrow_problem(spec: Attention, config: Config) -> str | None:
    """Why a narrow tile does not go with the spec's blocks, or None."""
    for side, block in zip((config.block_m, config.block_n), spec.block, strict=True):
        if side == 16 < block:
            return f"a tile side of 16 is for mask blocks of 16 alone, this one is {block}"
    return None


def accumulators(spec: Attention, config: Config) -> int:
    """Registers of a thread that hold the scores of a step and the output."""
    columns = sum(head_parts(spec.head_dim)) + config.block_n
    return config.block_m * columns // (config.num_warps * 32)


def ahead_of_time(
    spec: Attention, config: Config, source: str, integers: Mapping[str, int | None]
) -> AheadOfTime:
    """The kernel's types and constants, as a call with aligned, contiguous tensors gives them."""
    short = SHORT[spec.dtype]
    d0, d1 = head_parts(spec.head_dim)
    described = config.loads == "descriptor"
    constants: dict[Any, Any] = {
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "DESCRIBED": described,
        "LSE": spec.return_lse,
        "STORED": spec.stored,
        "PRECISION": "ieee",
    }
    signature: dict[str, Any] = {"o": f"*{short}", "lse": "*fp32"}
    divisible: list[Any] = ["o", "lse"]
    rows = {"q": config.block_m, "k": config.block_n, "v": config.block_n}
    for name, n in rows.items():
        signature[name] = f"tensordesc<{short}[1, 1, {n}, {d0}]>" if described else f"*{short}"
        if described and d1:
            signature[f"{name}_tail"] = f"tensordesc<{short}[1, 1, {n}, {d1}]>"
        else:
            constants[f"{name}_tail"] = None
        divisible += [] if described else [name]
    for name in ("start", "full", "partial", "index", "tiles"):
        signature[name] = "*i32"
        divisible.append(name)
    add_tables(spec, signature, divisible)
    for name in "qkvo":
        constants[f"{name}_d"] = 1
    add_integers(integers, signature, constants, divisible)
    signature["scale_log2"] = "fp32"
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return AheadOfTime(source, "attention_forward", signature, constants, tuple(divisible), options)
