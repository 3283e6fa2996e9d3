"""The quantized template's legality and resources, and what its compiler is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdsl.kernels.attention.arguments import SHORT, add_integers, add_tables
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.portable import narrow_problem, tile_problem
from kdsl.kernels.attention.quantized.shared import shared_bytes, warpgroups
from kdsl.layouts import AttentionLayout, Layout
from kdsl.layouts.attention import SUMMED, WEIGHTS
from kdsl.layouts.groups import Lanes
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime

ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
"""Compute capabilities the template is written and compiled for."""
TEMPLATE = Path(__file__).parent / "template.py"
POINTERS = {"int8": "*i8", "int16": "*i16", "float32": "*fp32", "float8_e4m3fn": "*fp8e4nv"}
ELEMENTS = {"int8": "i8", "float8_e4m3fn": "fp8e4nv"}
EVERYTHING = 1 << 30
"""Tokens of a group that holds all of them."""
NARROWEST = 32
"""Channels, or keys, that an 8-bit product takes at a time."""


def layout_of(spec: Attention) -> AttentionLayout:
    """The layout of a quantized spec."""
    assert spec.layout is not None
    return spec.layout


def legal(spec: Attention, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    layout = layout_of(spec)
    if target.capability not in ARCHITECTURES:
        return f"the quantized template is not for {target.name}"
    if layout.weights == "e4m3" and target.capability < (8, 9):
        return f"{target.name} has no products of e4m3"
    tail = head_parts(spec.head_dim)[1]
    if 0 < tail < NARROWEST:
        return f"8-bit products take {NARROWEST} channels at a time: {spec.head_dim} leaves {tail}"
    problem = tile_problem(spec, config, target) or narrow_problem(spec, config)
    if problem:
        return problem
    if layout.weights is not None and config.block_n < NARROWEST:
        return f"8-bit products take {NARROWEST} keys at a time"
    if config.num_stages < 2:
        return "two stages at least: loads run beside the step before"
    if config.loads == "descriptor" and layout.v_stored == "lanes":
        return 'v_stored="lanes" loads keys one by one: pointer loads'
    if config.loads == "descriptor" and not warpgroups(config, target):
        return "tensor descriptors are for products of warpgroups: sm_90, 64 queries at least"
    if config.num_warps > 4 and config.block_m * config.block_n < config.num_warps * 32 * 8:
        return "too many warps for the tile"
    held = accumulators(spec, config)
    if held > 256:
        return f"{held} accumulator registers a thread"
    need = shared_bytes(spec, config, target)
    if need > target.smem_optin:
        return f"{need} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def accumulators(spec: Attention, config: Config) -> int:
    """Registers of a thread for the scores of a step, its product with v, and the output."""
    parts = 1 if layout_of(spec).weights is None else 2
    columns = parts * sum(head_parts(spec.head_dim)) + config.block_n
    return config.block_m * columns // (config.num_warps * 32)


def preferences(spec: Attention, target: Target) -> Iterator[Config]:
    """Configurations from the most to the least wanted: guesses, until rows are measured.

    Tiles as those of 16-bit attention, with half the bytes and, where weights have 8 bits, twice
    the accumulators.
    """
    if target.capability == (9, 0) and layout_of(spec).v_stored != "lanes":
        if spec.head_dim <= 128:
            yield Config(128, 64, 8, 3, "descriptor")
        yield Config(64, 64, 4, 2, "descriptor")
    if spec.head_dim <= 128:
        yield from (Config(128, 64, 8, n) for n in (3, 2))
    for m, n in ((64, 64), (64, 32), (32, 32)):
        yield from (Config(m, n, 4, stages) for stages in (3, 2))
    rows, columns = (min(n, 32) for n in spec.block)
    yield from (Config(rows, columns, warps, 2) for warps in (4, 8))


def group_of(layout: Layout) -> tuple[int, int, int]:
    """Span, period and width of token groups."""
    if isinstance(layout.group, Lanes):
        return layout.group.span, layout.group.period, layout.group.width
    return layout.group[0] or EVERYTHING, 1, 1


def constants(spec: Attention, config: Config) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    layout = layout_of(spec)
    d0, d1 = head_parts(spec.head_dim)
    out: dict[str, Any] = {
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "DESCRIBED": config.loads == "descriptor",
        "LSE": spec.return_lse,
        "TRANSPOSED": layout.v is not None,
        "LANES": layout.v_stored == "lanes",
        "ONE": WEIGHTS[layout.weights] if layout.weights else 0,
        "SHIFT": shift(layout),
        "V_SCALED": layout.v is not None,
        "SUMMED": SUMMED,
    }
    for name, held in (("Q", layout.q), ("K", layout.k)):
        fields = ("SPAN", "PERIOD", "WIDTH")
        out |= {f"{name}_{f}": n for f, n in zip(fields, group_of(held), strict=True)}
    return out


def shift(layout: AttentionLayout) -> float:
    """Base-2 logarithm of the code of a weight of one."""
    from math import log2

    return log2(WEIGHTS[layout.weights]) if layout.weights else 0.0


def ahead_of_time(
    spec: Attention, config: Config, source: str, integers: Mapping[str, int | None]
) -> AheadOfTime:
    """The kernel's types and constants, as a call with aligned, contiguous tensors gives them."""
    layout = layout_of(spec)
    d0, d1 = head_parts(spec.head_dim)
    described = config.loads == "descriptor"
    fixed: dict[Any, Any] = constants(spec, config)
    signature: dict[str, Any] = {"o": f"*{SHORT[spec.dtype]}", "lse": "*fp32"}
    divisible: list[Any] = ["o", "lse"]
    shapes = layout.shapes((1, 1, 1, spec.head_dim), (1, 1, 1, spec.head_dim), spec.dtype)
    for name in ("q", "k", "v"):
        dtype = shapes[name][1]
        element = ELEMENTS.get(dtype) or SHORT[dtype]
        fixed[f"{name}_tail"] = None
        if not described:
            signature[name] = f"*{element}"
            divisible.append(name)
            continue
        n = config.block_m if name == "q" else config.block_n
        turned = name == "v" and layout.v is not None

        def tile(d: int, n: int = n, turned: bool = turned, element: str = element) -> str:
            return (
                f"tensordesc<{element}[1, 1, {d}, {n}]>"
                if turned
                else (f"tensordesc<{element}[1, 1, {n}, {d}]>")
            )

        signature[name] = tile(d0)
        if d1:
            signature[f"{name}_tail"] = tile(d1)
            del fixed[f"{name}_tail"]
    for name in ("q_scale", "k_scale", "v_scale", "v_sum"):
        if name in shapes:
            signature[name] = POINTERS[shapes[name][1]]
            divisible.append(name)
        else:
            fixed[name] = None
    for name in ("start", "full", "partial", "index", "tiles"):
        signature[name] = "*i32"
        divisible.append(name)
    add_tables(spec, signature, divisible)
    for name in "qkvo":
        fixed[f"{name}_d"] = 1
    add_integers(integers, signature, fixed, divisible)
    signature["scale_log2"] = "fp32"
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return AheadOfTime(source, "attention_quantized", signature, fixed, tuple(divisible), options)
