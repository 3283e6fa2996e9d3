"""Run a product to measure it: seeded inputs, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.matmul import arguments, launch, truth
from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import view
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.matmul.tunable import MatmulTunable

ROWS = 2048
"""Rows that are checked at a time."""
FEW = 3
"""Largest code of family ``small``; sums of few of them are exact in any register."""


class MatmulRunner:
    """A product of one spec on a device.

    Family ``random`` has Gaussian codes; ``small`` has small and mostly zero ones, whose sums no
    unit rounds, and rows whose scale is NaN.
    """

    families = ("random", "small")

    def __init__(self, tunable: MatmulTunable, device: Any, load: Callable[[str], Any]) -> None:
        import torch

        self.spec, self.load = tunable.spec, load
        self.view, self.device = view(self.spec), torch.device(device)
        self.generator = torch.Generator(device=device)
        self.operands: dict[str, Tensor] = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            for name, (shape, dtype) in self.spec.operands.items()
        }
        dtype = getattr(torch, self.spec.dtype)
        size = (self.spec.rows, self.spec.columns)
        self.out = torch.empty(size, dtype=dtype, device=device)
        self.launchers: dict[Config, launch.Launcher] = {}
        self.exact = False

    def prepare(self, family: str, seed: int) -> None:
        """Fill the inputs."""
        self.generator.manual_seed(seed)
        self.exact = family == "small"
        for name, t in self.operands.items():
            if self.view.group and name.startswith("weight") and not t.is_floating_point():
                t.random_(0, 256, generator=self.generator)
            elif name in (f"x_{self.view.x.codes}", f"weight_{self.view.weight.codes}"):
                self._codes(t)
            elif not t.is_floating_point():
                t.random_(-100, 101, generator=self.generator)
            elif name in ("bias", "residual"):
                t.normal_(generator=self.generator)
            else:
                # Results of the size of 1, rows and columns of different sizes.
                size = 1 if self.exact else 40 if self.view.integer else 1
                size = 40 if self.view.group and name.startswith("weight") else size
                t.uniform_(0.5, 2, generator=self.generator)
                t.mul_(self.spec.inner**-0.25 / size)
        if self.exact:
            scales = self.operands[f"x_{self.view.x.scales}"]
            scales[5::97] = math.nan
        if self.view.zeros:
            codes = self.operands[f"weight_{self.view.weight.codes}"]
            self.operands["weight_sums"] = launch.sums_of(codes)

    def _codes(self, t: Tensor) -> None:
        import torch

        drawn = torch.empty(t.shape, dtype=torch.float32, device=t.device)
        drawn.normal_(generator=self.generator)
        if self.exact:
            # One in eight or fewer stays: 4096 products of at most 9 each, a quarter of 2**13.
            share = min(0.125, 512 / self.spec.inner)
            keep = torch.empty_like(drawn).uniform_(generator=self.generator) < share
            drawn = drawn.round().clamp(-FEW, FEW) * keep
        if self.view.integer:
            t.copy_((drawn if self.exact else (drawn * 40).round().clamp(-127, 127)).to(torch.int8))
        else:
            t.copy_(drawn.to(torch.float8_e4m3fn).view(torch.uint8))

    def poison(self) -> None:
        """NaN, which no kernel writes but where a scale is NaN; there a number."""
        self.out.fill_(math.nan)
        if self.exact:
            self.out[5::97] = 1.0

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        if config not in self.launchers:
            module = self.load(arguments.source(self.spec, config))
            self.launchers[config] = launch.Launcher(module, self.spec, config)
        self.launchers[config](self.operands, self.out)

    def check(self) -> Check:
        """The worst number over what it may be off, all rows."""
        worst, reason = 0.0, ""
        capability = (0, 0)
        if self.device.type == "cuda":
            capability = launch.capability_of(self.device)
        for first in range(0, self.spec.rows, ROWS):
            rows = slice(first, first + ROWS)
            found, why = truth.share(
                self.spec, self.operands, self.out, rows, capability, self.exact
            )
            if not found <= worst:
                worst, reason = found, why
        return Check(worst, 1.0, "" if worst <= 1.0 else reason)
