"""What the templates are launched with."""

from __future__ import annotations

from typing import Any

from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import view
from kdsl.kernels.matmul.hopper.config import layout_of
from kdsl.kernels.matmul.templates import template_of, transposed
from kdsl.specs import Matmul
from kdsl.work import AheadOfTime

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
BITS = {"bfloat16": 16, "float16": 16, "float32": 32}


def source(spec: Matmul, config: Config) -> str:
    """The complete kernel file of a configuration's template."""
    text: str = template_of(spec, config.template).source()
    return text


def tiles(spec: Matmul, config: Config) -> tuple[int, int]:
    """Tiles down and across."""
    return -(-spec.rows // config.block_m), -(-spec.columns // config.block_n)


def vectors(spec: Matmul, config: Config) -> dict[str, str | None]:
    """Triton's types of what has an entry a row or a column; None for what is not there."""
    held = view(spec)
    integer = "*i32" if held.zeros else None
    found = {
        "x_scale": "*fp32",
        "weight_scale": "*fp16" if held.group else "*fp32",
        "zeros": integer,
        "sums": integer,
        "bias": f"*{SHORT[spec.dtype]}" if spec.bias else None,
    }
    if transposed(spec, config):
        del found["zeros"], found["sums"]
    return found


def integers(spec: Matmul, config: Config, strides: tuple[int, ...] = ()) -> dict[str, int]:
    """Integer arguments; ``strides`` of rows of x, weight, signs, scales, out and
    residual, contiguous unless given."""
    down, across = tiles(spec, config)
    out = {"rows": spec.rows, "columns": spec.columns}
    held = view(spec)
    scale_r: dict[str, int] = {}
    if config.template == "hopper":
        out["steps"] = -(-spec.inner // config.block_k)
        if held.group:
            scale_r["scale_r"] = strides[3] if strides else spec.inner // held.group
    else:
        each = {8: spec.inner, 4: spec.inner // 2, 3: spec.inner // 4}[held.bits]
        scales = spec.inner // held.group if held.group else 1
        own = (spec.inner, each, spec.inner // 8, scales, spec.columns, spec.columns)
        names = ("x_r", "weight_r", "signs_r", "scale_r", "out_r", "residual_r")
        out |= {"inner": spec.inner, **dict(zip(names, strides or own, strict=True))}
    return out | {"down": down, "across": across} | scale_r


def ahead_of_time(spec: Matmul, config: Config, capability: tuple[int, int]) -> AheadOfTime:
    """Types and constants, as a call with aligned, contiguous tensors gives them."""
    held, own = view(spec), config.template == "hopper"
    signature: dict[str, Any] = {}
    short, code = SHORT[spec.dtype], "i8" if held.integer else "fp8e4nv"
    part = template_of(spec, config.template)
    made: dict[str, Any] = part.constants(spec, config, capability)
    if own:
        stored = ("i16", 16) if held.group else (code, 8)
        kinds = {"x": (code, 8), "weight": stored}
        for name, (rows, columns) in part.boxes(spec, config).items():
            kind, bits = kinds.get(name, (short, BITS[spec.dtype]))
            layout = layout_of(columns, bits)
            signature[name] = f"tensordesc<{kind}[{rows}, {columns}],{layout!r}>"
    else:
        narrow = code if made["FP8"] < 2 else "u8"
        bytes_of = "u8" if held.group else narrow
        signature |= {"x": f"*{narrow}", "weight": f"*{bytes_of}", "out": f"*{short}"}
        signature |= {"signs": "*u8"} if held.bits == 3 else {}
        signature |= {"residual": f"*{short}"} if spec.residual else {}
    signature |= {n: kind for n, kind in vectors(spec, config).items() if kind is not None}
    divisible = [n for n, kind in signature.items() if kind.startswith("*")]
    absent = ("residual", *vectors(spec, config), *(() if own else ("signs",)))
    made |= dict.fromkeys(n for n in absent if n not in signature)
    for name, value in integers(spec, config).items():
        if value == 1:
            made[name] = 1
            continue
        signature[name] = "i32"
        divisible += [name] if value % 16 == 0 else []
    options = part.options(config)
    return AheadOfTime(
        source(spec, config), "matmul_tiles", signature, made, tuple(divisible), options
    )
