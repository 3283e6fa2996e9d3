"""The Hopper backward's legality, resources and constants, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdsl.blocks import Blocks
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.arguments import SHORT, add_integers, add_tables
from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.hopper.config import (
    CAPABILITY,
    DTYPES,
    PRODUCER_REGISTERS,
    layout_of,
    options,
    resources,
)
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime

OTHER_REGISTERS = 40
"""Registers of a consumer thread beside tiles: addresses, levels, ring positions."""
BARRIERS = 704
"""Barriers, and the arguments that partitions pass through shared memory."""


def parts(spec: Attention, part: Part) -> tuple[int, int]:
    """The head dimension as the kernel's tiles cut it.

    Two warpgroups that share dQ by columns want theirs in a tile each.
    """
    if part == "all" and spec.head_dim == 128:
        return 64, 64
    return head_parts(spec.head_dim)


def step_of(config: Config, part: Part) -> int:
    """Tokens of the other side that a step takes."""
    return config.block_n if part == "queries" else config.block_m


def tile_registers(spec: Attention, config: Config, part: Part) -> int:
    """Registers of a consumer thread that hold tiles where most are alive: gradients of 64 tokens,
    scores, and dP."""
    kept = sum(max(n, 8) for n in parts(spec, part)) // 2
    return (1 if part == "queries" else 2) * kept + step_of(config, part)


def shared_bytes(spec: Attention, config: Config, part: Part) -> int:
    """Bytes a program asks for: never below the compiler's figure, at most 10 % above."""
    row, step = 2 * spec.head_dim, step_of(config, part)
    own = 2 * config.num_warps * 16 * row
    ring = config.num_stages * 2 * step * row
    if part != "queries":
        ring += config.num_stages * 2 * 4 * step
    handed = 2 * config.num_warps * 16 * step * 2 if part == "all" else 0
    return own + ring + handed + BARRIERS + 16 * len(leaf_tables.tables(spec))


def legal(spec: Attention, config: Config, target: Target, part: Part) -> str | None:
    """Why a kernel of the template cannot run a spec so, or None."""
    own_block, step_block = spec.block if part == "queries" else spec.block[::-1]
    own, step = config.num_warps * 16, step_of(config, part)
    if target.capability != CAPABILITY:
        return f"the hopper template is for compute capability 9.0, not {target.name}'s"
    if spec.dtype not in DTYPES:
        return f"the hopper template has no products of {spec.dtype}"
    if spec.stored or not (spec.query_order.is_identity and spec.kv_order.is_identity):
        return "TMA fetches contiguous rows: gradients are for the original order"
    if (config.overlap, config.pingpong, config.workers, config.extra_keys, config.masks) != (
        "late", False, 0, 0, "leaf",
    ):  # fmt: skip
        return "overlap, pingpong, workers, extra_keys and masks are the forward's"
    if config.num_warps != 8 or own != (config.block_m if part == "queries" else config.block_n):
        return "two warpgroups have 64 tokens each"
    if own_block % own or step_block % step:
        return f"tiles of {own} and steps of {step} do not divide blocks of {spec.block}"
    if part == "all" and (step == 128) != (parts(spec, part)[1] == 0):
        return "warpgroups share dQ by its columns, or else by 128 queries"
    need, have = tile_registers(spec, config, part) + OTHER_REGISTERS, registers(config)
    if need > have:
        return f"about {need} registers a thread, {have} are to be had"
    asked = shared_bytes(spec, config, part)
    if asked > target.smem_optin:
        return f"{asked} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def preferences(part: Part) -> Iterator[Config]:
    """Configurations from the most to the least wanted."""
    for step in (128, 64):
        for stages in (3, 2, 1):
            m, n = (128, step) if part == "queries" else (step, 128)
            yield Config(m, n, 8, stages, "descriptor", "hopper")


def constants(spec: Attention, config: Config, part: Part) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    d0, d1 = parts(spec, part)
    own, step = spec.block if part == "queries" else spec.block[::-1]
    out = {
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "MASK_OWN": own,
        "MASK_STEP": step,
        "STEP": step_of(config, part),
        "CONSUMERS": config.num_warps // 4,
        "STAGES": config.num_stages,
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
        "CONSUMER_REGISTERS": registers(config),
    }
    return out if part == "queries" else {**out, "SPREAD": part == "all"}


def registers(config: Config) -> int:
    """Registers of a consumer thread."""
    return resources(_as_forward(config)).consumer


def _as_forward(config: Config) -> Config:
    """What the forward's accounting takes for a program of so many warpgroups."""
    return Config(config.num_warps * 16, 64, config.num_warps, 1, "descriptor", "hopper")


def rows(spec: Attention, config: Config, part: Part) -> dict[str, int]:
    """Rows of the tiles of each operand that descriptors move."""
    step = step_of(config, part)
    own = 64
    if part == "queries":
        return {"q": own, "k": step, "v": step, "do": own, "dq": own}
    return {"q": step, "k": own, "v": own, "do": step, "dk": own, "dv": own}


def row_layout() -> Any:
    """Gluon's layout of a step's numbers by query in shared memory."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)


def launch_options(config: Config) -> dict[str, Any]:
    """Triton's own."""
    return options(_as_forward(config))


def ahead_of_time(
    spec: Attention, config: Config, part: Part, source: str, lists: Blocks | None
) -> AheadOfTime:
    """The kernel's types and constants, as a call with aligned, contiguous tensors gives them.

    ``lists`` are those that the kernel reads, None where a table is not known.
    """
    integers = _integers(spec, config, part, lists)
    short, (d0, d1) = SHORT[spec.dtype], parts(spec, part)
    fixed: dict[Any, Any] = constants(spec, config, part)
    signature: dict[str, Any] = {}
    divisible: list[Any] = []
    for name, n in rows(spec, config, part).items():
        signature[name] = f"tensordesc<{short}[1, 1, {n}, {d0}],{layout_of(d0)!r}>"
        if d1:
            signature[f"{name}_tail"] = f"tensordesc<{short}[1, 1, {n}, {d1}],{layout_of(d1)!r}>"
        else:
            fixed[f"{name}_tail"] = None
    for name in ("level", "delta"):
        step = step_of(config, part)
        if part == "queries":
            signature[name] = "*fp32"
            divisible.append(name)
        else:
            signature[name] = f"tensordesc<fp32[1, {step}],{row_layout()!r}>"
    if part == "all":
        signature["sums"] = "*fp32"
        divisible.append("sums")
    elif part == "keys":
        fixed["sums"] = None
    for name in ("start", "full", "partial", "index", "tiles"):
        signature[name] = "*i32"
        divisible.append(name)
    add_tables(spec, signature, divisible)
    add_integers(integers, signature, fixed, divisible)
    signature |= {"scale": "fp32", "scale_log2": "fp32"}
    # In the order of the kernels' arguments.
    entry = "attention_backward_queries" if part == "queries" else "attention_backward_keys"
    return AheadOfTime(source, entry, signature, fixed, tuple(divisible), launch_options(config))


def _integers(
    spec: Attention, config: Config, part: Part, lists: Blocks | None
) -> Mapping[str, int | None]:
    """Integer arguments of a call; None where they are not known."""
    queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
    own, name = (queries, "rows") if part == "queries" else (keys, "columns")
    block = spec.block[0] if part == "queries" else spec.block[1]
    out: dict[str, int | None] = {"list_b": None, "list_h": None}
    if lists is not None:
        batch, heads, lines = lists.start.shape
        out["list_b"] = heads * lines if batch > 1 else 0
        out["list_h"] = lines if heads > 1 else 0
    out |= {"heads": spec.heads, name: -(-own // block), "queries": queries, "keys": keys}
    if part != "queries":
        out["steps"] = -(-queries // step_of(config, part)) if part == "all" else 0
    return out
