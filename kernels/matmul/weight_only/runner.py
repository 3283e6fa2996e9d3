"""Run such a product to measure it: seeded inputs, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.matmul.weight_only import launch, portable, truth
from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.facts import view
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.matmul.weight_only.tunable import WeightOnlyTunable

ROWS = 1024
"""Rows that are checked at a time."""


class WeightOnlyRunner:
    """A product of one spec on a device.

    Family ``random`` has rows of very different sizes; ``special`` has rows of zeros, of tiny
    numbers, and with NaN and infinities.
    """

    families = ("random", "special")

    def __init__(self, tunable: WeightOnlyTunable, device: Any, load: Callable[[str], Any]) -> None:
        import torch

        self.spec, self.load = tunable.spec, load
        self.view = view(self.spec)
        self.generator = torch.Generator(device=device)
        self.operands: dict[str, Tensor] = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            for name, (shape, dtype) in self.spec.operands.items()
        }
        size = (self.spec.rows, self.spec.columns)
        self.out = torch.empty(size, dtype=getattr(torch, self.spec.dtype), device=device)
        self.launchers: dict[Config, launch.Launcher] = {}

    def prepare(self, family: str, seed: int) -> None:
        """Fill the inputs; results are of the size of a row of x."""
        self.generator.manual_seed(seed)
        largest = max(map(abs, self.view.entries))
        for name, t in self.operands.items():
            if not t.is_floating_point():
                top = 256 if name != f"weight_{self.view.zeros}" else 1 << self.view.bits
                t.random_(0, top, generator=self.generator)
            elif name == f"weight_{self.view.scales}":
                t.uniform_(0.5, 2, generator=self.generator)
                t.mul_(self.spec.inner**-0.5 / largest)
            else:
                t.normal_(generator=self.generator)
        x = self.operands["x"]
        x.mul_(x[:, :1].float().normal_(generator=self.generator).exp_().to(x.dtype))
        if family == "special":
            x[1::5] = 0
            x[2::5] *= 1e-30 if self.spec.dtype == "bfloat16" else 1e-5
            x[3::5, 7] = math.nan
            x[4::5, -1] = math.inf

    def poison(self) -> None:
        """A number that no product here is."""
        self.out.fill_(-31337.0)

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        if config not in self.launchers:
            module = self.load(portable.source()) if config.template == "portable" else None
            self.launchers[config] = launch.Launcher(module, self.spec, config)
        self.launchers[config](self.operands, self.out)

    def check(self) -> Check:
        """The worst number over what it may be off, all rows."""
        worst, reason = 0.0, ""
        for first in range(0, self.spec.rows, ROWS):
            found, why = truth.share(self.spec, self.operands, self.out, slice(first, first + ROWS))
            if not found <= worst:
                worst, reason = found, why
        return Check(worst, 1.0, "" if worst <= 1.0 else reason)
