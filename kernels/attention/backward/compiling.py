"""What to hand to the compiler for the backward kernels, as a call would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kdsl.blocks import Blocks
from kdsl.kernels.attention.arguments import SHORT, add_integers, add_tables
from kdsl.kernels.attention.backward.launch import summed
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.specs import Attention
from kdsl.work import AheadOfTime

Part = Literal["keys", "queries", "all"]
"""Which gradients a kernel makes: dK and dV, dQ, or all three at once."""


def describe(
    spec: Attention, config: Config, part: Part, source: str, lists: Blocks | None
) -> AheadOfTime:
    """Types and constants of one kernel, for aligned, contiguous tensors.

    ``lists`` are those that the kernel reads, None where a table is not known.
    """
    short, (d0, d1) = SHORT[spec.dtype], head_parts(spec.head_dim)
    described, spread = config.loads == "descriptor", summed(spec) < spec.group
    constants: dict[Any, Any] = {
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "DESCRIBED": described,
        "PRECISION": "ieee",
    }
    if part == "keys":
        constants["SUMMED"] = summed(spec)
    signature: dict[str, Any] = {"level": "*fp32", "delta": "*fp32"}
    outputs = ("dk", "dv") if part == "keys" else ("dq",)
    signature |= dict.fromkeys(outputs, "*fp32" if spread and part == "keys" else f"*{short}")
    for name in ("q", "k", "v", "do"):
        constants[f"{name}_d"] = 1
        mine = described and not (part == "keys" and name in "kv")
        n = config.block_n if name in "kv" else config.block_m
        signature[name] = f"tensordesc<{short}[1, 1, {n}, {d0}]>" if mine else f"*{short}"
        if mine and d1:
            signature[f"{name}_tail"] = f"tensordesc<{short}[1, 1, {n}, {d1}]>"
        elif part == "queries" or name not in "kv":
            constants[f"{name}_tail"] = None
    constants |= {f"{name}_d": 1 for name in outputs}
    signature |= dict.fromkeys(("start", "full", "partial", "index", "tiles"), "*i32")
    divisible: list[Any] = [n for n, t in signature.items() if t.startswith("*")]
    add_tables(spec, signature, divisible)
    add_integers(_integers(spec, part, lists), signature, constants, divisible)
    signature |= {"scale": "fp32", "scale_log2": "fp32"}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    entry = f"attention_backward_{part}"
    return AheadOfTime(source, entry, signature, constants, tuple(divisible), options)


def _integers(spec: Attention, part: Part, lists: Blocks | None) -> Mapping[str, int | None]:
    """Integer arguments of a call with contiguous tensors; None where they are not known."""
    d, queries, keys = spec.head_dim, spec.query_grid.tokens, spec.key_grid.tokens
    out: dict[str, int | None] = {"heads": spec.heads, "queries": queries, "keys": keys}
    own, shared = (spec.heads, queries), (spec.group_heads, keys)
    sizes = {"q": own, "k": shared, "v": shared, "do": own}
    if part == "keys":
        heads = spec.heads // summed(spec)
        sizes |= {"dk": (heads, keys), "dv": (heads, keys)}
        out["columns"] = -(-keys // spec.block[1])
    else:
        sizes["dq"] = own
        out["rows"] = -(-queries // spec.block[0])
    for name, (heads, tokens) in sizes.items():
        out |= {f"{name}_b": heads * tokens * d, f"{name}_h": tokens * d, f"{name}_n": d}
    out["list_b"] = out["list_h"] = None
    if lists is not None:
        batch, heads, rows = lists.start.shape
        out["list_b"] = heads * rows if batch > 1 else 0
        out["list_h"] = rows if heads > 1 else 0
    return out
