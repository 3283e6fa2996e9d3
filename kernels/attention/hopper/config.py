"""The Hopper template's legality, resources and constants, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.arguments import SHORT, add_integers, add_tables
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime

CAPABILITY = (9, 0)
DTYPES = ("bfloat16", "float16")
PRODUCER_REGISTERS = 24
MOST_REGISTERS = 240
"""Of a consumer thread; what is left of 512 for two consumers goes to the producer."""
SLACK = 8.0
"""A row's maximum is left behind by up to this much (log2) before its sums are rescaled: weights
then reach 2**8, which both 16-bit types and float32 sums hold with the same relative precision."""
OTHER_REGISTERS = 30
"""Registers of a consumer thread beside tiles: addresses, row state, ring positions."""
BARRIERS = 704
"""Barriers, notes, and the arguments that partitions pass through shared memory."""
BIT_TABLES = 3
"""Tables behind those of the leaves that hold partial blocks as bits."""
RESERVED = 1024
"""What the driver takes of a program's shared memory."""


@dataclass(frozen=True)
class Resources:
    """Registers a thread."""

    at_launch: int
    consumer: int


def consumers(config: Config) -> int:
    """Warpgroups that compute."""
    return config.block_m // 64


def resident(config: Config) -> int:
    """Programs a multiprocessor is meant to hold."""
    return config.workers or (1 if config.block_m == 128 else 2)


def resources(config: Config) -> Resources:
    """Registers at launch, and of a consumer once the other warps have given theirs away.

    The producer's warpgroup holds three idle warps; registers move in units of 8.
    """
    groups = consumers(config) + 1
    enough = (MOST_REGISTERS * consumers(config) + PRODUCER_REGISTERS) // groups
    at_launch = min(65536 // (128 * groups * resident(config)), enough) // 8 * 8
    free = at_launch * groups - PRODUCER_REGISTERS
    return Resources(at_launch, free // consumers(config) // 8 * 8)


def tile_registers(spec: Attention, config: Config) -> int:
    """Registers of a consumer thread that hold tiles: output, scores, their copy, weights."""
    scores = config.block_n // 2
    copies = 2 if config.overlap == "early" else 1
    return spec.head_dim // 2 + copies * scores + scores // 2


def shared_bytes(spec: Attention, config: Config) -> int:
    """Bytes a program asks for: never below the compiler's figure, at most 10 % above."""
    row = 2 * spec.head_dim
    steps = 2 * config.num_stages + config.extra_keys
    tiles = (2 * config.block_m + steps * config.block_n) * row
    tables = len(leaf_tables.tables(spec)) + (BIT_TABLES if config.masks == "bits" else 0)
    return tiles + BARRIERS + 16 * tables


def legal(spec: Attention, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    block_q, block_k = spec.block
    if target.capability != CAPABILITY:
        return f"the hopper template is for compute capability 9.0, not {target.name}'s"
    if spec.dtype not in DTYPES:
        return f"the hopper template has no products of {spec.dtype}"
    if not spec.storable:
        return "heads that share keys have several key orders: no one order to copy the keys in"
    if block_q % config.block_m or block_k % config.block_n:
        tile = f"{config.block_m} x {config.block_n}"
        return f"tiles of {tile} do not divide blocks of {block_q} x {block_k}"
    if config.num_warps != config.block_m // 16:
        return f"{config.block_m} queries take {config.block_m // 16} warps"
    if config.pingpong and config.block_m != 128:
        return "only two warpgroups take turns"
    if config.workers > 1 and config.block_m == 128:
        return "two warpgroups fill a multiprocessor: one worker"
    if config.num_stages == 1 and not config.extra_keys and config.overlap == "early":
        return "products that start early want keys of two steps"
    if config.masks == "bits":
        if spec.open_tables or spec.mask.choice is not None:
            return "bits of partial blocks are made before the call, this mask comes with it"
        if block_k % 128 and block_k != 64:
            return f"bits are for blocks of 64 keys or of multiples of 128, not {block_k}"
    need, have = tile_registers(spec, config) + OTHER_REGISTERS, resources(config).consumer
    if need > have:
        return f"about {need} registers a thread, {have} are to be had"
    widest = max(head_parts(spec.head_dim)[0], config.block_n) // 2 + OTHER_REGISTERS
    if widest > resources(config).at_launch:
        return f"one product holds about {widest} registers a thread, more than at launch"
    asked = shared_bytes(spec, config)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    if config.workers == 1 and config.block_m == 64 and 2 * (asked + RESERVED) <= target.smem_sm:
        return "one warpgroup leaves room for a second program: two workers"
    if (asked + RESERVED) * resident(config) > target.smem_sm:
        return f"{resident(config)} programs of {asked} bytes do not fit a multiprocessor"
    return None


def preferences(spec: Attention) -> Iterator[Config]:
    """Configurations from the most to the least wanted.

    From a probe without partial blocks on an H200: docs/performance.md, "Hopper forward".
    """

    def config(m: int, n: int, stages: int, workers: int, **more: Any) -> Config:
        return Config(m, n, m // 16, stages, "descriptor", "hopper", workers=workers, **more)

    if spec.head_dim == 64:
        yield config(128, 128, 4, 1, overlap="early", pingpong=True)
        yield config(128, 64, 4, 1, overlap="early", pingpong=True)
        yield config(64, 64, 3, 3)
    for n in (128, 64):
        yield config(128, n, 2, 1)
    # Wide heads: the two tiles of queries leave room for little else.
    yield config(128, 64, 1, 1, extra_keys=1)
    for stages, workers in ((3, 2), (2, 2), (3, 1), (2, 1), (1, 1)):
        yield config(64, 64, stages, workers, extra_keys=1)
        yield config(64, 64, stages, workers)


def constants(spec: Attention, config: Config, described: bool) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    d0, d1 = head_parts(spec.head_dim)
    return {
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_N": config.block_n,
        "CONSUMERS": consumers(config),
        "K_STAGES": config.num_stages + config.extra_keys,
        "V_STAGES": config.num_stages,
        "EARLY": config.overlap == "early",
        "PINGPONG": config.pingpong,
        "PERSISTENT": config.workers > 0,
        "DESCRIBED": described,
        "LSE": spec.return_lse,
        "SLACK": SLACK,
        "BITS": len(leaf_tables.tables(spec)) + 1 if config.masks == "bits" else 0,
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
        "CONSUMER_REGISTERS": resources(config).consumer,
    }


def options(config: Config) -> dict[str, Any]:
    """Triton's own: a partition has four warps, and registers at launch are for all of them."""
    return {"num_warps": 4, "maxnreg": resources(config).at_launch}


def stores_by_descriptor(spec: Attention) -> bool:
    """Whether the output's rows are contiguous too: not where it goes back to another order."""
    return spec.query_order.is_identity


def layout_of(columns: int) -> Any:
    """Gluon's layout of a tile of 16-bit rows in shared memory, as TMA and the products want it."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(swizzle_byte_width=min(128, 2 * columns), element_bitwidth=16, rank=4)


def ahead_of_time(
    spec: Attention, config: Config, source: str, integers: Mapping[str, int | None]
) -> AheadOfTime:
    """The kernel's types and constants, as a call with aligned, contiguous tensors gives them."""
    short = SHORT[spec.dtype]
    d0, d1 = head_parts(spec.head_dim)
    described = stores_by_descriptor(spec)
    fixed: dict[Any, Any] = constants(spec, config, described)
    signature: dict[str, Any] = {}
    divisible: list[Any] = []

    def tile(rows: int, columns: int) -> str:
        return f"tensordesc<{short}[1, 1, {rows}, {columns}],{layout_of(columns)!r}>"

    for name, rows in (("q", 64), ("k", config.block_n), ("v", config.block_n), ("o", 64)):
        if name != "o" or described:
            signature[name] = tile(rows, d0)
            if d1:
                signature[f"{name}_tail"] = tile(rows, d1)
            else:
                fixed[f"{name}_tail"] = None
        else:
            signature[name] = f"*{short}"
            fixed["o_tail"] = None
            divisible.append(name)
    for name in ("lse", "start", "full", "partial", "index", "tiles", "counter"):
        signature[name] = "*fp32" if name == "lse" else "*i32"
        divisible.append(name)
    add_tables(spec, signature, divisible, BIT_TABLES if config.masks == "bits" else 0)
    add_integers(integers, signature, fixed, divisible)
    signature["scale_log2"] = "fp32"
    return AheadOfTime(
        source, "attention_forward", signature, fixed, tuple(divisible), options(config)
    )
