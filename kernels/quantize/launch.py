"""Run the quantize template: strides, outputs, one launch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsl.errors import InputError, UnsupportedError
from kdsl.kernels.quantize.arguments import (
    NATIVE_FP8,
    OPTIONAL,
    Folded,
    constants,
    integers,
)
from kdsl.kernels.quantize.config import Config
from kdsl.kernels.quantize.facts import coding, view
from kdsl.specs import Quantize

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATE = Path(__file__).parent / "template.py"
COUNTED = 2**31 - 1
"""Tiles and blocks that 32 bits count."""


def source() -> str:
    """The complete kernel file: the template itself, for constants say all about a spec."""
    return TEMPLATE.read_text()


def outputs(spec: Quantize, x: Tensor) -> dict[str, Tensor]:
    """Buffers for the result of a call, uninitialised."""
    import torch

    lead = tuple(x.shape[:-2])
    return {
        name: torch.empty((*lead, *shape), dtype=getattr(torch, word), device=x.device)
        for name, (shape, word) in spec.buffers().items()
    }


def launch(
    module: Any,
    spec: Quantize,
    config: Config,
    x: Tensor,
    folded: Folded,
    out: Mapping[str, Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    sms: int = 1,
) -> None:
    """One launch on torch's current stream; ``module`` is the file of `source`.

    ``x [rows, columns]`` or ``[batch, rows, columns]`` of any strides whose last axis is
    contiguous, ``scale`` and ``shift`` ``[columns]`` or ``[batch, columns]``; ``out`` contiguous
    buffers by name.  ``sms`` multiprocessors share the tiles among their workers.
    """
    import torch

    batch = x.shape[0] if x.ndim == 3 else 1
    code = coding(spec.format, spec.columns)
    for name, tensor in (("x", x), ("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise InputError(
                f"the last axis of {name} has a stride of {tensor.stride(-1)}",
                hint=f"{name}.contiguous()",
            )
    strides = (
        x.stride(0) if x.ndim == 3 and batch > 1 else 0,
        x.stride(-2),
        *(
            t.stride(0) if t is not None and t.ndim == 2 and batch > 1 else 0
            for t in (scale, shift)
        ),
    )
    counts = integers(spec, config, batch, strides)
    if (counts["tiles"] + 1) * config.block_m > COUNTED:
        raise UnsupportedError(f"{batch * spec.rows} rows in a call", hint="a smaller batch")
    if not counts["total"]:
        return
    values: dict[str, Any] = {**dict.fromkeys(OPTIONAL), **folded.values}
    values |= {"x": x, "scale": scale, "shift": shift}
    values |= {"codes": out[code.codes].view(torch.uint8), "scales": out[code.scales]}
    values |= {"zeros": out[code.zeros] if code.zeros else None}
    programs = min(counts["tiles"], config.workers * sms or counts["tiles"])
    if "order_2" in folded.values:
        each = config.block_m // view(spec).slots * spec.columns
        values["scratch"] = torch.empty(programs * each, dtype=torch.float32, device=x.device)
    native = x.is_cuda and torch.cuda.get_device_capability(x.device) >= NATIVE_FP8
    module.quantize_tiles[(programs,)](
        **values,
        **counts,
        eps=spec.eps,
        **constants(spec, config, native),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
