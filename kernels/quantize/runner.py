"""Run quantize to measure it: seeded inputs, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.kernels.quantize import launch, truth
from kdsl.kernels.quantize.arguments import Folded
from kdsl.kernels.quantize.config import Config
from kdsl.kernels.quantize.facts import coding, view
from kdsl.specs import Quantize
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.quantize.tunable import QuantizeTunable

ROWS = 512
"""Rows that are checked at a time."""


class QuantizeRunner:
    """Quantize of one spec on a device, with the recipe's values or, without, any that are legal.

    Family ``random`` has rows of very different sizes and columns that stand out.  ``special`` has
    NaN, infinities, and rows of zeros and of next to nothing among them.
    """

    families = ("random", "special")

    def __init__(self, tunable: QuantizeTunable, device: Any, load: Callable[[str], Any]) -> None:
        import torch

        spec, batch = tunable.spec, tunable.batch
        self.spec, self.batch, self.device = spec, batch, torch.device(device)
        self.module = load(launch.source())
        self.recipe = spec.recipe.recipe(tunable.tables or made_up(spec), spec.columns)
        self.folded = Folded.of(spec, self.recipe, device)
        dtype = getattr(torch, spec.dtype)
        self.x = torch.empty((batch, spec.rows, spec.columns), dtype=dtype, device=device)
        self.by: tuple[Tensor | None, Tensor | None] = (None, None)
        if spec.modulate:
            self.by = (self.x[:, 0].clone(), self.x[:, 0].clone())
        self.launchers: dict[Config, launch.Launcher] = {}
        self.generator = torch.Generator(device=device)
        self.sms = 1
        if self.device.type == "cuda":
            self.sms = torch.cuda.get_device_properties(self.device).multi_processor_count
        config = Config(block_m=view(spec).slots)
        self.out = launch.Launcher(self.module, spec, config).outputs(self.x)

    def prepare(self, family: str, seed: int) -> None:
        """Fill the inputs."""
        self.generator.manual_seed(seed)
        self.x.normal_(generator=self.generator)
        sizes = self.x[..., :1].float().normal_(generator=self.generator).exp_()
        self.x.mul_(sizes.to(self.x.dtype))
        self.x[..., :: max(self.spec.columns // 7, 1)] *= 16
        for operand in self.by:
            if operand is not None:
                operand.normal_(generator=self.generator)
        if family == "special":
            rows = self.x.flatten(0, 1)
            rows[3::5] = 0
            rows[4::7] *= 1e-30 if self.spec.dtype != "float16" else 1e-6
            rows[5::97, 0] = math.nan
            rows[6::101, -1] = -math.inf

    def poison(self) -> None:
        """What no kernel writes, into every buffer: NaN, or codes that few formats have."""
        for tensor in self.out.values():
            tensor.fill_(
                math.nan if tensor.is_floating_point() else -1 if tensor.is_signed() else 255
            )

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        if config not in self.launchers:
            self.launchers[config] = launch.Launcher(self.module, self.spec, config, self.sms)
        self.launchers[config](self.x, self.folded, self.out, *self.by)

    def check(self) -> Check:
        """The worst number over what it may be off, all rows."""
        worst, reason = 0.0, ""
        for item in range(self.batch):
            for first in range(0, self.spec.rows, ROWS):
                found, where = self._share(item, slice(first, first + ROWS))
                if not found <= worst:
                    worst, reason = found, where
        return Check(worst, 1.0, "" if worst <= 1.0 else reason)

    def _share(self, item: int, rows: slice) -> tuple[float, str]:
        code = coding(self.spec.format, self.spec.columns)
        scale, shift = (None if t is None else t[item] for t in self.by)
        numbers = truth.transformed(self.spec, self.x[item, rows], scale, shift, self.recipe)
        codes, scales = self.out[code.codes][item, rows], self.out[code.scales][item, rows]
        zeros = self.out[code.zeros][item, rows] if code.zeros else None
        return truth.share(self.spec, numbers, codes, scales, zeros)


def made_up(spec: Quantize, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Values that a recipe may have: its time does not depend on them."""
    rng = np.random.default_rng(seed)
    out: dict[str, npt.NDArray[Any]] = {}
    for name, shape in spec.shapes.items():
        kind = name.rpartition("_")[0]
        if kind == "rotate":
            out[name] = np.linalg.qr(rng.standard_normal(shape))[0]
        elif kind == "channels":
            out[name] = rng.permutation(shape[0])
        elif kind == "signs":
            out[name] = rng.choice(np.array([-1.0, 1.0], np.float32), shape)
        else:
            # Means around zero, factors around one.
            out[name] = rng.standard_normal(shape).astype(np.float32) * 0.3
            out[name] = np.exp(out[name]) if kind == "smooth" else out[name]
    return out
