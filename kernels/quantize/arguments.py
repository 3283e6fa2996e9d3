"""What the template is launched with: its constants, and its operands made of a recipe's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.kernels.quantize.config import Config
from kdsl.kernels.quantize.facts import Stage, View, coding, stages_of, view
from kdsl.layouts.hadamard import hadamard
from kdsl.layouts.transforms import Channels, Hadamard, Mean, Recipe, Rotate, Signs, Smooth, Step
from kdsl.specs import Quantize
from kdsl.work import AheadOfTime

if TYPE_CHECKING:
    from torch import Tensor

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
NORMS = {None: 0, "rms": 1, "layer": 2}
ACTIVATIONS = {None: 0, "gelu_tanh": 1, "silu": 2}
STAGE = ("multiply", "subtract", "order", "matrix", "low")
"""Operands of a stage; those of the second end in ``_2``."""
NATIVE_FP8 = (8, 9)
"""The first compute capability that converts to e4m3 itself."""
TINY = 2.0**-126
"""A float32 scale below the least normal number counts as zero; float16 ones keep theirs."""


def constants(spec: Quantize, config: Config, native_fp8: bool) -> dict[str, Any]:
    """The template's compile-time arguments."""
    code, held = coding(spec.format, spec.columns), view(spec)
    first, second = stages_of(spec)
    return {
        "COLUMNS": spec.columns,
        "BLOCK": held.block,
        "N": held.n,
        "BLOCK_M": config.block_m,
        "SLOTS": held.slots,
        "HOLD": bool(config.hold),
        "GROUP": held.group,
        "GROUPS": held.groups,
        "NORM": NORMS[spec.norm],
        "ACTIVATION": ACTIVATIONS[spec.activation],
        "SECOND": not second.idle,
        "SPLIT": _splits(first, spec.dtype),
        "SPLIT_2": _splits(second, spec.dtype),
        "FACTOR": 1.0 if second.idle else first.factor,
        "FACTOR_2": first.factor if second.idle else second.factor,
        "LOW": code.low,
        "HIGH": code.high,
        "LIMIT": code.limit,
        "SHIFT": float(code.shift),
        "CLIP": code.clips,
        "PACKED": code.bits == 4,
        "FP8": (1 if native_fp8 else 2) if code.fp8 else 0,
        "TINY": TINY if code.scale_dtype == "float32" else 0.0,
        # Three products of TF32 come to float32's own precision, near enough.
        "PRECISION": "tf32x3" if spec.dtype == "float32" else "ieee",
        "STAGES": config.num_stages,
    }


def _splits(stage: Stage, dtype: str) -> bool:
    return bool(stage.block) and not stage.exact and dtype != "float32"


def present(spec: Quantize) -> dict[str, str]:
    """Triton's types of the operands that a spec has, by name."""
    code, short = coding(spec.format, spec.columns), SHORT[spec.dtype]
    out = {"scale": f"*{short}", "shift": f"*{short}"} if spec.modulate else {}
    for stage, end in zip(stages_of(spec), ("", "_2"), strict=True):
        has = (
            (stage.multiplied, "*i8" if stage.signed else "*fp32"),
            (stage.centred, "*fp32"),
            (stage.permuted, "*i32"),
            (bool(stage.block), f"*{short}"),
            (bool(stage.block) and not stage.hadamard and spec.dtype != "float32", f"*{short}"),
        )
        out |= {f"{n}{end}": kind for n, (there, kind) in zip(STAGE, has, strict=True) if there}
    out |= {"zeros": "*i32"} if code.asymmetric else {}
    return out | ({"scratch": "*fp32"} if stages_of(spec)[1].permuted else {})


def folded_names(spec: Quantize) -> tuple[str, ...]:
    """Names of what `Folded.of` makes of a spec's recipe, in its order."""
    there = present(spec)
    return tuple(f"{n}{end}" for end in ("", "_2") for n in STAGE if f"{n}{end}" in there)


OPTIONAL = ("scale", "shift", *STAGE, *(f"{n}_2" for n in STAGE), "zeros", "scratch")


def options(config: Config) -> dict[str, int]:
    """What the compiler is told of a configuration.

    A thread gets as many registers as leave room for the programs that share a multiprocessor. Left
    alone, ptxas takes what keeps some of them waiting; and where 255 do not suffice it sometimes
    settles for 32 and spills everything.
    """
    return {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "maxnreg": config.most_registers,
    }


def ahead_of_time(
    spec: Quantize, config: Config, source: str, batch: int, capability: tuple[int, int]
) -> AheadOfTime:
    """Types and constants, as a call with aligned, contiguous tensors gives them."""
    code, there = coding(spec.format, spec.columns), present(spec)
    made = constants(spec, config, capability >= NATIVE_FP8)
    made |= dict.fromkeys(n for n in OPTIONAL if n not in there)
    scale = "*fp32" if code.scale_dtype == "float32" else "*fp16"
    signature = {"x": f"*{SHORT[spec.dtype]}", **there, "codes": "*u8", "scales": scale}
    divisible = list(signature)
    for name, value in integers(spec, config, batch).items():
        if value == 1:
            made[name] = 1
            continue
        signature[name] = "i32" if value < 2**31 else "i64"
        divisible += [name] if value % 16 == 0 else []
    signature["eps"] = "fp32"
    return AheadOfTime(source, "quantize_tiles", signature, made, tuple(divisible), options(config))


def integers(spec: Quantize, config: Config, batch: int) -> dict[str, int]:
    """Integer arguments of a call with contiguous tensors."""
    several = batch > 1
    strides = (
        spec.rows * spec.columns if several else 0,
        spec.columns,
        *(spec.columns if several else 0 for _ in range(2)),
    )
    return Counts.of(spec, config)(batch, strides)


@dataclass(frozen=True)
class Counts:
    """What integer arguments depend on beside the tensors."""

    rows: int
    slots: int
    block_m: int
    row_bytes: int
    """Of codes."""

    @staticmethod
    def of(spec: Quantize, config: Config) -> Counts:
        """The counts of a spec and a configuration."""
        bits = coding(spec.format, spec.columns).bits
        return Counts(spec.rows, view(spec).slots, config.block_m, spec.columns * bits // 8)

    def tiles(self, batch: int) -> int:
        """Tiles of a call."""
        return -(-batch * self.rows * self.slots // self.block_m)

    def __call__(self, batch: int, strides: Sequence[int]) -> dict[str, int]:
        """The arguments, with strides of x (batch, row), scale and shift (batch)."""
        names = ("x_b", "x_r", "scale_b", "shift_b")
        return {
            "rows": self.rows,
            "total": batch * self.rows,
            **dict(zip(names, strides, strict=True)),
            "codes_r": self.row_bytes,
            "tiles": self.tiles(batch),
        }


@dataclass(frozen=True)
class Folded:
    """A recipe's values as the template takes them, on a device, by argument."""

    values: Mapping[str, Tensor]

    @staticmethod
    def of(spec: Quantize, recipe: Recipe, device: Any) -> Folded:
        """Steps between rotations become one factor, one difference and one order."""
        import torch

        found: dict[str, Tensor] = {}
        wanted, held, dtype = present(spec), view(spec), getattr(torch, spec.dtype)
        for steps, end in zip(_parted(recipe), ("", "_2"), strict=True):
            multiply, subtract, order = _affine(steps, spec.columns)
            if wanted.get(f"multiply{end}") == "*i8":
                multiply = multiply.astype(np.int8)
            plain = {"multiply": multiply, "subtract": subtract, "order": order}
            for name, value in plain.items():
                if f"{name}{end}" in wanted:
                    found[name + end] = torch.from_numpy(value).to(device)
            if f"matrix{end}" in wanted:
                matrix = torch.from_numpy(_matrix(steps[-1], held))
                high = matrix.to(dtype)
                found[f"matrix{end}"] = high.to(device)
                if f"low{end}" in wanted:
                    found[f"low{end}"] = (matrix - high.double()).to(dtype).to(device)
        return Folded(found)


def _parted(recipe: Recipe) -> tuple[list[Step], list[Step]]:
    """The steps of each stage: up to the first rotation, and after it."""
    steps = list(recipe.steps)
    cut = next(
        (i + 1 for i, s in enumerate(steps) if isinstance(s, (Hadamard, Rotate))), len(steps)
    )
    return steps[:cut], steps[cut:]


def _affine(
    steps: list[Step], columns: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """(factor, difference) after the order, and the order: ``x[order] * m - b``."""
    m, b, order = np.ones(columns), np.zeros(columns), np.arange(columns)
    for step in steps:
        if isinstance(step, Smooth):
            m[order] /= np.asarray(step.factors, np.float64)
            b[order] /= np.asarray(step.factors, np.float64)
        elif isinstance(step, Signs):
            m[order] *= np.asarray(step.signs, np.float64)
            b[order] *= np.asarray(step.signs, np.float64)
        elif isinstance(step, Mean):
            b[order] += np.asarray(step.values, np.float64)
        elif isinstance(step, Channels):
            order = order[np.asarray(step.index)]
    return m[order].astype(np.float32), b[order].astype(np.float32), order.astype(np.int32)


def _matrix(step: Step, held: View) -> npt.NDArray[np.float64]:
    """The block matrix of a rotation, repeated to the view's block, filled up with zeros."""
    assert isinstance(step, (Hadamard, Rotate))
    single = hadamard(step.order) if isinstance(step, Hadamard) else step.matrix
    block = np.asarray(single, np.float64)
    repeated = np.kron(np.eye(held.block // len(block)), block)
    return np.pad(repeated, (0, held.n - held.block)).astype(np.float64)
