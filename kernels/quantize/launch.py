"""Run the quantize template: strides, outputs, one launch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsl.errors import InputError, UnsupportedError
from kdsl.kernels.launching.prepared import Prepared, kind_of, launch
from kdsl.kernels.quantize.arguments import (
    NATIVE_FP8,
    OPTIONAL,
    Counts,
    Folded,
    constants,
    options,
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


class Launcher:
    """A spec and a configuration, ready to be called: what does not depend on tensors, once.

    ``module`` is the file of `source`; ``sms`` multiprocessors share the tiles among their workers.
    """

    def __init__(self, module: Any, spec: Quantize, config: Config, sms: int = 1) -> None:
        self.module, self.spec, self.config, self.sms = module, spec, config, sms
        self.code, self.buffers = coding(spec.format, spec.columns), spec.buffers()
        self.constants = {native: constants(spec, config, native) for native in (False, True)}
        self.options = options(config)
        self.counts = Counts.of(spec, config)
        self.exchanged = config.block_m // view(spec).slots * spec.columns
        self.prepared: dict[Any, Prepared] = {}
        """Launches that were made before, by the tensors they depend on."""

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Buffers for the result of a call, uninitialised."""
        import torch

        lead = tuple(x.shape[:-2])
        return {
            name: torch.empty((*lead, *shape), dtype=getattr(torch, word), device=x.device)
            for name, (shape, word) in self.buffers.items()
        }

    def __call__(
        self,
        x: Tensor,
        folded: Folded,
        out: Mapping[str, Tensor],
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """One launch on torch's current stream.

        ``x [rows, columns]`` or ``[batch, rows, columns]`` of any strides whose last axis is
        contiguous, ``scale`` and ``shift`` ``[columns]`` or ``[batch, columns]``; ``out``
        contiguous buffers by name.
        """
        import torch

        spec, config = self.spec, self.config
        batch = x.shape[0] if x.ndim == 3 else 1
        for name, tensor in (("x", x), ("scale", scale), ("shift", shift)):
            if tensor is not None and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
                raise InputError(
                    f"the last axis of {name} has a stride of {tensor.stride(-1)}",
                    hint=f"{name}.contiguous()",
                )
        several = batch > 1
        strides = (
            x.stride(0) if x.ndim == 3 and several else 0,
            x.stride(-2),
            *(
                t.stride(0) if t is not None and t.ndim == 2 and several else 0
                for t in (scale, shift)
            ),
        )
        counts = self.counts(batch, strides)
        if (counts["tiles"] + 1) * config.block_m > COUNTED:
            raise UnsupportedError(f"{batch * spec.rows} rows in a call", hint="a smaller batch")
        if not counts["total"]:
            return
        programs = min(counts["tiles"], config.workers * self.sms or counts["tiles"])
        values: dict[str, Any] = {**dict.fromkeys(OPTIONAL), **folded.values}
        values |= {"x": x, "scale": scale, "shift": shift}
        values |= {"codes": out[self.code.codes].view(torch.uint8), "scales": out[self.code.scales]}
        values |= {"zeros": out[self.code.zeros] if self.code.zeros else None}
        if "order_2" in folded.values:
            room = programs * self.exchanged
            values["scratch"] = torch.empty(room, dtype=torch.float32, device=x.device)
        moving = {name: value for name, value in values.items() if value is not None}
        key = (batch, *moving, kind_of(tuple(moving.values())))
        native = x.is_cuda and torch.cuda.get_device_capability(x.device) >= NATIVE_FP8
        values |= {**counts, "eps": spec.eps, **self.constants[native]}
        launch(
            self.module.quantize_tiles, programs, key, self.prepared, moving, lambda: values,
            {**self.options, "enable_fp_fusion": True},
        )  # fmt: skip
