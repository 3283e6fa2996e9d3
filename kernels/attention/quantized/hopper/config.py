"""The quantized Hopper template's legality, resources and constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.arguments import SHORT, add_integers, add_tables
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.config import (
    BARRIERS,
    CAPABILITY,
    OTHER_REGISTERS,
    PRODUCER_REGISTERS,
    RESERVED,
    consumers,
    options,
    resident,
    resources,
    stores_by_descriptor,
)
from kdsl.kernels.attention.hopper.config import layout_of as output_layout
from kdsl.kernels.attention.quantized.portable import group_of, layout_of
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime

HEAD_DIMS = (64, 128)
SLACK = 4.0
"""A row's maximum is left behind by up to this much (log2) before its sums are rescaled."""
SHIFT = 4.0
"""Weights are coded as 2**SHIFT times themselves: with the slack they stay at 256 or below."""
SUMS_BY_PRODUCT = True
"""Whether row sums are a product of the codes with ones, for which the matrix unit has time, and
not additions of unrounded weights (docs/performance.md, "Quantized attention")."""

_SHARED = Path(__file__).parents[2] / "hopper"
MODULES = (
    *(_SHARED / f"{name}.py" for name in ("choices", "softmax", "work")),
    *(Path(__file__).parent / f"{name}.py" for name in ("codes", "producer", "steps")),
    _SHARED / "finish.py",
    Path(__file__).parent / "forward.py",
)
"""The modules of the template, each after those it imports."""


def tile_registers(spec: Attention, config: Config) -> int:
    """Registers of a consumer thread that hold tiles: output, scores, their exponents, codes."""
    scores = config.block_n // 2
    copies = 2 if config.overlap == "early" else 1
    return spec.head_dim // 2 + copies * scores + scores // 4


def shared_bytes(spec: Attention, config: Config) -> int:
    """Bytes a program asks for: never below the compiler's figure, at most 10 % above."""
    steps = 2 * config.num_stages + config.extra_keys
    # Q twice, the output once in 16 bits.
    tiles = (4 * config.block_m + steps * config.block_n) * spec.head_dim
    tiles += 16 * config.block_n * SUMS_BY_PRODUCT
    return tiles + BARRIERS + 16 * len(leaf_tables.tables(spec))


def legal(spec: Attention, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    layout = layout_of(spec)
    if target.capability != CAPABILITY:
        return f"the hopper template is for compute capability 9.0, not {target.name}'s"
    if layout.weights != "e4m3" or layout.v_stored != "lanes":
        return 'the hopper template multiplies e4m3 weights with v_stored="lanes"'
    if spec.head_dim not in HEAD_DIMS:
        return f"the quantized hopper template has head_dim 64 and 128, not {spec.head_dim}"
    span, period, _ = group_of(layout.k)
    if period != 1 or span % config.block_n:
        return f"keys of a step have one scale: groups of a multiple of {config.block_n}"
    if spec.block[0] % config.block_m or spec.block[1] % config.block_n:
        tile = f"{config.block_m} x {config.block_n}"
        return f"tiles of {tile} do not divide blocks of {spec.block[0]} x {spec.block[1]}"
    if config.num_warps != config.block_m // 16:
        return f"{config.block_m} queries take {config.block_m // 16} warps"
    if config.pingpong:
        return "the quantized hopper template takes no turns"
    if config.masks != "leaf":
        return "the quantized hopper template masks by its leaf"
    if config.num_stages == 1 and not config.extra_keys and config.overlap == "early":
        return "products that start early want keys of two steps"
    if config.workers > 1 and config.block_m == 128 and config.block_n == 128:
        return "two warpgroups with tiles of 128 keys fill a multiprocessor: one worker"
    need, have = tile_registers(spec, config) + OTHER_REGISTERS, resources(config).consumer
    if need > have:
        return f"about {need} registers a thread, {have} are to be had"
    asked = shared_bytes(spec, config)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    if (asked + RESERVED) * resident(config) > target.smem_sm:
        return f"{resident(config)} programs of {asked} bytes do not fit a multiprocessor"
    return None


def preferences(spec: Attention) -> Iterator[Config]:
    """Configurations from the most to the least wanted; a guess from the probe's results."""

    def config(m: int, n: int, stages: int, workers: int, **more: Any) -> Config:
        return Config(m, n, m // 16, stages, "descriptor", "hopper", workers=workers, **more)

    if spec.head_dim == 64:
        # Two programs a multiprocessor: one's products run beside the other's exponentials.
        yield config(128, 64, 4, 2)
    yield config(128, 128, 3, 1, overlap="early")
    yield config(128, 128, 3, 1)
    yield config(128, 64, 4, 1)
    for n in (128, 64):
        for workers in (3, 2, 1):
            yield config(64, n, 3, workers)


def constants(spec: Attention, config: Config, described: bool) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    layout = layout_of(spec)
    fields = ("Q_SPAN", "Q_PERIOD", "Q_WIDTH")
    return {
        "D0": spec.head_dim,
        "GROUP": spec.group,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_N": config.block_n,
        "CONSUMERS": consumers(config),
        "K_STAGES": config.num_stages + config.extra_keys,
        "V_STAGES": config.num_stages,
        "EARLY": config.overlap == "early",
        "PERSISTENT": config.workers > 0,
        "DESCRIBED": described,
        "LSE": spec.return_lse,
        **dict(zip(fields, group_of(layout.q), strict=True)),
        "K_SPAN": group_of(layout.k)[0],
        "SLACK": SLACK,
        "SHIFT": SHIFT,
        "BY_PRODUCT": SUMS_BY_PRODUCT,
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
        "CONSUMER_REGISTERS": resources(config).consumer,
    }


def code_layout(columns: int) -> Any:
    """Gluon's layout of a tile of 8-bit rows in shared memory, as TMA and the products want it."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(swizzle_byte_width=min(128, columns), element_bitwidth=8, rank=4)


def ahead_of_time(
    spec: Attention, config: Config, source: str, integers: Mapping[str, int | None]
) -> AheadOfTime:
    """The kernel's types and constants, as a call with aligned, contiguous tensors gives them."""
    short, d, n = SHORT[spec.dtype], spec.head_dim, config.block_n
    described = stores_by_descriptor(spec)
    fixed: dict[Any, Any] = constants(spec, config, described)
    signature: dict[str, Any] = {
        "q": f"tensordesc<i8[1, 1, 64, {d}],{code_layout(d)!r}>",
        "k": f"tensordesc<i8[1, 1, {n}, {d}],{code_layout(d)!r}>",
        "v": f"tensordesc<fp8e4nv[1, 1, {d}, {n}],{code_layout(n)!r}>",
    }
    divisible: list[Any] = []
    if described:
        signature["o"] = f"tensordesc<{short}[1, 1, 64, {d}],{output_layout(d)!r}>"
    else:
        signature["o"] = f"*{short}"
        divisible.append("o")
    for name in ("lse", "q_scale", "k_scale", "v_scale"):
        signature[name] = "*fp32"
        divisible.append(name)
    for name in ("start", "full", "partial", "index", "tiles", "counter"):
        signature[name] = "*i32"
        divisible.append(name)
    add_tables(spec, signature, divisible)
    add_integers(integers, signature, fixed, divisible)
    signature["scale_log2"] = "fp32"
    return AheadOfTime(
        source, "attention_quantized", signature, fixed, tuple(divisible), options(config)
    )
