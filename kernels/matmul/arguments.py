"""What the templates are launched with."""

from __future__ import annotations

from typing import Any

from kdsl.kernels.matmul import portable
from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import View, view
from kdsl.kernels.matmul.hopper import config as hopper
from kdsl.specs import Matmul
from kdsl.work import AheadOfTime

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
BITS = {"bfloat16": 16, "float16": 16, "float32": 32}


def source(config: Config) -> str:
    """The complete kernel file of a configuration's template."""
    return hopper.source() if config.template == "hopper" else portable.source()


def tiles(spec: Matmul, config: Config) -> tuple[int, int]:
    """Tiles down and across."""
    return -(-spec.rows // config.block_m), -(-spec.columns // config.block_n)


def vectors(spec: Matmul, held: View) -> dict[str, str | None]:
    """Triton's types of what has an entry a row or a column; None for what is not there."""
    integer = "*i32" if held.zeros else None
    return {
        "x_scale": "*fp32",
        "weight_scale": "*fp16" if held.group else "*fp32",
        "zeros": integer,
        "sums": integer,
        "bias": f"*{SHORT[spec.dtype]}" if spec.bias else None,
    }


def integers(spec: Matmul, config: Config, strides: tuple[int, ...] = ()) -> dict[str, int]:
    """Integer arguments; ``strides`` of rows of x, weight, signs, scales, out and
    residual, contiguous unless given."""
    down, across = tiles(spec, config)
    out = {"rows": spec.rows, "columns": spec.columns}
    if config.template == "hopper":
        out["steps"] = -(-spec.inner // config.block_k)
    else:
        held = view(spec)
        each = {8: spec.inner, 4: spec.inner // 2, 3: spec.inner // 4}[held.bits]
        scales = spec.inner // held.group if held.group else 1
        own = (spec.inner, each, spec.inner // 8, scales, spec.columns, spec.columns)
        names = ("x_r", "weight_r", "signs_r", "scale_r", "out_r", "residual_r")
        out |= {"inner": spec.inner, **dict(zip(names, strides or own, strict=True))}
    return out | {"down": down, "across": across}


def ahead_of_time(spec: Matmul, config: Config, capability: tuple[int, int]) -> AheadOfTime:
    """Types and constants, as a call with aligned, contiguous tensors gives them."""
    held, own = view(spec), config.template == "hopper"
    signature: dict[str, Any] = {}
    short, code = SHORT[spec.dtype], "i8" if held.integer else "fp8e4nv"
    if own:
        made = hopper.constants(spec, config)
        for name, (rows, columns) in hopper.boxes(spec, config).items():
            kind, bits = (code, 8) if name in ("x", "weight") else (short, BITS[spec.dtype])
            layout = hopper.layout_of(columns, bits)
            signature[name] = f"tensordesc<{kind}[{rows}, {columns}],{layout!r}>"
    else:
        made = portable.constants(spec, config, capability)
        narrow = code if made["FP8"] < 2 else "u8"
        stored = "u8" if held.group else narrow
        signature |= {"x": f"*{narrow}", "weight": f"*{stored}", "out": f"*{short}"}
        signature |= {"signs": "*u8"} if held.bits == 3 else {}
        signature |= {"residual": f"*{short}"} if spec.residual else {}
    signature |= {n: kind for n, kind in vectors(spec, held).items() if kind is not None}
    divisible = [n for n, kind in signature.items() if kind.startswith("*")]
    absent = ("residual", *vectors(spec, held), *(() if own else ("signs",)))
    made |= dict.fromkeys(n for n in absent if n not in signature)
    for name, value in integers(spec, config).items():
        if value == 1:
            made[name] = 1
            continue
        signature[name] = "i32"
        divisible += [name] if value % 16 == 0 else []
    options = hopper.options(config) if own else portable.options(config)
    return AheadOfTime(source(config), "matmul_tiles", signature, made, tuple(divisible), options)
