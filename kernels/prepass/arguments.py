"""What the kernels are launched with: constants, numbers, types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kdsl.kernels.prepass.config import Config
from kdsl.kernels.prepass.facts import CODES, groups_of, halves, heads_a_program, settles, starts
from kdsl.layouts.attention import SUMMED, padded
from kdsl.specs import Prepass
from kdsl.work import AheadOfTime

MODULES = tuple(Path(__file__).parent / f"{name}.py" for name in ("rows", "sums", "codes"))
"""The template's modules, each after those it imports."""
MARK = "# --- template ---\n"
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
NORMS = {None: 0, "rms": 1, "rms_token": 2, "layer": 3}
NATIVE_FP8 = (8, 9)
"""The first compute capability that converts to e4m3 itself."""
TINY = 2.0**-126
"""The least scale, as `Layout.quantize` has it."""
SETTLED = (256, 32)
"""Tiles and channels that a program of `prepass_settle` takes at a time."""
MOST_REGISTERS = 128
"""Of a thread of the last kernel, where that many do not spill."""
OPTIONAL = (
    "q_weight", "k_weight", "q_bias", "k_bias", "cos", "sin", "order", "q_runs", "q_listed",
    "k_runs", "k_listed", "q_root", "k_root", "mean", "inverses", "v_codes", "v_sum", "q_pool",
    "k_pool", "sums", "maxima", "scale",
)  # fmt: skip
"""Tensors that a spec may do without."""


@cache
def source() -> str:
    """The complete kernel file: the modules in a row, for constants say all about a spec."""
    texts = [path.read_text() for path in MODULES]
    head = texts[-1].split("\n\nimport ")[0].rstrip()
    bodies = [text.split(MARK)[1].strip("\n") for text in texts]
    return "\n\n\n".join([f"{head}\n\nimport triton\nimport triton.language as tl", *bodies]) + "\n"


def launches(spec: Prepass) -> tuple[str, ...]:
    """The kernels of a call, in order."""
    first = ("prepass_tiles",) if starts(spec) else ()
    return (*first, *(("prepass_settle",) if settles(spec) else ()), "prepass_codes")


def carried(spec: Prepass) -> bool:
    """Whether v is written anew: with codes, or in another order."""
    return spec.layout.v is not None or spec.moves


def constants(spec: Prepass, config: Config, kernel: str, native_fp8: bool) -> dict[str, Any]:
    """A kernel's compile-time arguments."""
    layout = spec.layout
    common = {"D": spec.head_dim, "P": halves(spec)}
    common |= {"NORM": NORMS[spec.norm], "INTERLEAVED": spec.rope == "interleaved"}
    if kernel == "prepass_settle":
        limit = float(CODES[layout.v.code]) if layout.v is not None else 1.0
        sizes = dict(zip(("ROWS", "COLUMNS"), SETTLED, strict=True))
        return {"D": spec.head_dim, **sizes, "LIMIT": limit, "TINY": TINY}
    if kernel == "prepass_tiles":
        return {**common, "ROWS": config.rows, "STAGES": 1}
    out: dict[str, Any] = {
        **common,
        "T": config.block,
        "LIMIT": float(CODES[layout.q.code]),
        "K_LIMIT": float(CODES[layout.k.code]),
        "TINY": TINY,
        "LANES": layout.v_stored == "lanes",
        "FP8": (1 if native_fp8 else 2) if layout.weights == "e4m3" else 0,
        "SUMMED": SUMMED,
        "STAGES": config.num_stages,
    }
    for name, held in (("Q", layout.q), ("K", layout.k)):
        fields = ("SPAN", "PERIOD", "WIDTH")
        out |= {f"{name}_{f}": n for f, n in zip(fields, groups_of(held), strict=True)}
    pools = spec.pool or (1, 1)
    return out | {"Q_POOL": pools[0], "K_POOL": pools[1]}


def options(spec: Prepass, config: Config, kernel: str) -> dict[str, int]:
    """What the compiler is told of a configuration.

    Left alone, ptxas takes so many registers for 32 entries a thread that half of a
    multiprocessor's stay idle.
    """
    warps = {"prepass_tiles": config.row_warps, "prepass_settle": 8}
    out = {"num_warps": warps.get(kernel, config.num_warps), "num_stages": 1}
    each = config.block * 2 * halves(spec) // (32 * config.num_warps)
    return out | ({"maxnreg": MOST_REGISTERS} if kernel == "prepass_codes" and each <= 32 else {})


def numbers(
    spec: Prepass, config: Config, kernel: str, strides: Mapping[str, int]
) -> dict[str, Any]:
    """A kernel's run-time numbers, with strides by argument."""
    tokens = spec.grid.tokens
    if kernel == "prepass_settle":
        return {"tiles": tiles(spec, config, "prepass_tiles"), "tokens": tokens}
    out: dict[str, Any] = {
        **strides,
        "heads": spec.heads,
        "kv_heads": spec.group_heads,
        "tokens": tokens,
        "text": spec.grid.visual_start,
        "visual": spec.grid.visual,
        "tiles": tiles(spec, config, kernel),
        "eps": spec.eps,
    }
    if kernel == "prepass_tiles":
        all_heads = spec.norm == "rms_token"
        most = spec.group_heads if all_heads else config.row_heads
        return {**out, "k_each": heads_a_program(spec.group_heads, most)}
    shapes = spec.shapes(1)
    pools = [shapes[f"{name}_pool"][0][2] if spec.pool else 0 for name in "qk"]
    return {
        **out,
        "q_each": heads_a_program(spec.heads, config.heads),
        "k_each": heads_a_program(spec.group_heads, config.heads),
        "q_parts": len(parts(spec, config, "q")),
        "k_parts": len(parts(spec, config, "k")),
        "padded": padded(tokens),
        "q_groups": shapes["q_scale"][0][2],
        "k_groups": shapes["k_scale"][0][2],
        "q_pools": pools[0],
        "k_pools": pools[1],
    }


def listed(spec: Prepass, name: str) -> list[int]:
    """Heads of q or of k, those of one order side by side; orders by their first head."""
    rows = rows_of(spec, name)
    return sorted(range(len(rows)), key=lambda head: rows[head])


def rows_of(spec: Prepass, name: str) -> list[int]:
    """Which of the distinct orders each head of q or of k has."""
    # Orders that differ and yet move nothing are one.
    orders = spec.stored_order.parts if spec.moves else (spec.stored_order,)
    distinct = {order: i for i, order in enumerate(dict.fromkeys(orders))}
    held = spec.key_orders if name == "k" and spec.moves else orders
    count = spec.heads if name == "q" else spec.group_heads
    return [distinct[held[h if len(held) > 1 else 0]] for h in range(count)]


def parts(spec: Prepass, config: Config, name: str) -> list[tuple[int, int, int]]:
    """(first of `listed`, how many, their order) of the heads that a program takes."""
    rows, out = sorted(rows_of(spec, name)), []
    for row in dict.fromkeys(rows):
        first, count = rows.index(row), rows.count(row)
        each = heads_a_program(count, config.heads)
        out += [(first + i, each, row) for i in range(0, count, each)]
    return out


def tiles(spec: Prepass, config: Config, kernel: str) -> int:
    """Tiles of a batch item."""
    tokens = spec.grid.tokens
    if kernel == "prepass_tiles":
        return -(-tokens // config.rows)
    return -(-(padded(tokens) if spec.layout.v is not None else tokens) // config.block)


def programs(spec: Prepass, config: Config, kernel: str, batch: int) -> int:
    """Programs of a launch."""
    if kernel == "prepass_settle":
        return batch * spec.group_heads * -(-spec.head_dim // SETTLED[1])
    if kernel == "prepass_tiles":
        several = spec.group_heads // int(numbers(spec, config, kernel, {})["k_each"])
        several += spec.norm == "rms_token"
    else:
        several = len(parts(spec, config, "q"))
        several += len(parts(spec, config, "k")) * (1 + carried(spec))
    return batch * tiles(spec, config, kernel) * several


def present(spec: Prepass, kernel: str) -> dict[str, str]:
    """Triton's types of the tensors that a kernel takes of a spec, by name."""
    layout, short = spec.layout, f"*{SHORT[spec.dtype]}"
    inputs = dict.fromkeys(spec.inputs, short)
    inputs |= {name: "*fp32" for name in spec.inputs if name not in ("q", "k", "v")}
    roots = {"q_root": "*fp32", "k_root": "*fp32"} if spec.norm == "rms_token" else {}
    smooth, coded = spec.smooth, layout.v is not None
    left = {"sums": "*fp32"} if smooth else {}
    left |= {"maxima": "*i32"} if coded else {}
    if kernel == "prepass_settle":
        made = {"mean": "*fp32"} if smooth else {}
        scales = dict.fromkeys(("scale", "inverses"), "*fp32") if coded else {}
        return {**left, **made, **scales}
    if kernel == "prepass_tiles":
        taken = ("q", "k", "v", "k_weight", "k_bias", "cos", "sin")
        return {**{n: inputs[n] for n in taken if n in inputs}, **roots, **left}
    out = {**inputs, **roots, **({"mean": "*fp32"} if smooth else {})}
    if spec.moves:
        out |= {"order": "*i32"}
        if len(set(spec.stored_order.parts)) > 1:
            out |= dict.fromkeys(("q_runs", "q_listed", "k_runs", "k_listed"), "*i32")
    # Four codes to a word.
    out |= {"q_codes": "*i32", "q_scale": "*fp32", "k_codes": "*i32", "k_scale": "*fp32"}
    if carried(spec):
        out |= {"v_codes": ("*u8" if layout.weights == "e4m3" else "*i8") if coded else short}
    out |= {"inverses": "*fp32"} if coded else {}
    out |= {"v_sum": "*i16"} if layout.weights == "uint8" else {}
    return out | ({"q_pool": "*fp32", "k_pool": "*fp32"} if spec.pool else {})


def parameters(kernel: str) -> tuple[str, ...]:
    """Names of a kernel's arguments, compile-time ones left out."""
    body = source().split(f"def {kernel}(")[1].split("):", 1)[0]
    return tuple(n for n in re.findall(r"(\w+)(?:: tl\.constexpr)?,", body) if not n.isupper())


def ahead_of_time(
    spec: Prepass, config: Config, kernel: str, batch: int, capability: tuple[int, int]
) -> AheadOfTime:
    """Types and constants, as a call with aligned, contiguous tensors gives them."""
    there, made = present(spec, kernel), constants(spec, config, kernel, capability >= NATIVE_FP8)
    named = parameters(kernel)
    signature = {n: there[n] for n in named if n in there}
    made |= {n: None for n in OPTIONAL if n in named and n not in there}
    divisible: list[Any] = list(signature)
    strides = contiguous(spec) if kernel != "prepass_settle" else {}
    for name, value in numbers(spec, config, kernel, strides).items():
        if name == "eps":
            signature[name] = "fp32"
        elif value == 1:
            made[name] = 1
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            divisible += [name] if value % 16 == 0 else []
    opts = options(spec, config, kernel)
    return AheadOfTime(source(), kernel, signature, made, tuple(divisible), opts)


def contiguous(spec: Prepass) -> dict[str, int]:
    """Strides of a call with contiguous tensors."""
    out: dict[str, int] = {}
    for name, heads in (("q", spec.heads), ("k", spec.group_heads), ("v", spec.group_heads)):
        row = spec.head_dim
        head = spec.grid.tokens * row
        steps = (heads * head, head, row, 1)
        out |= {f"{name}_{axis}": step for axis, step in zip("bhnd", steps, strict=True)}
    turns = spec.rope is not None
    out |= {"angle_n": spec.head_dim // 2 if turns else 0, "angle_d": int(turns)}
    return out
