"""Run permute to measure it: seeded inputs, calls, an exact check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.kernels.layouts.in_torch import quantize
from kdsl.kernels.permute.config import Config
from kdsl.kernels.permute.launch import Runner, result_shapes
from kdsl.specs import Permute
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.permute.tunable import PermuteTunable

POISON = {"int8": -128}
"""A code that no layout writes; floats are poisoned with NaN."""


class PermuteRunner:
    """Permute of one spec and one set of table values on a device.

    Family ``random`` has rows of very different sizes.  ``special`` has NaN, infinities, and rows
    of zeros and of subnormal numbers among them.
    """

    families = ("random", "special")

    def __init__(self, tunable: PermuteTunable, device: Any) -> None:
        import torch

        spec = tunable.spec
        self.spec = spec
        shape = (tunable.batch, spec.heads, spec.grid.tokens, spec.head_dim)
        self.x = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=device)
        self.outs = tuple(
            torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            for shape, dtype in result_shapes(spec, tunable.batch)
        )
        self.tables = {
            t.name: torch.from_numpy(np.array((tunable.tables or {})[t.name], t.dtype)).to(device)
            for t in spec.tables
            if t.values is None
        }
        self.index = torch.from_numpy(spec.order.index(tunable.tables)).to(device)
        self.generator = torch.Generator(device=device)
        self.runners: dict[Config, Runner] = {}

    def prepare(self, family: str, seed: int) -> None:
        """Fill the input."""
        self.generator.manual_seed(seed)
        self.x.normal_(generator=self.generator)
        sizes = self.x[..., :1].float().normal_(generator=self.generator).exp_()
        self.x.mul_(sizes.to(self.x.dtype))
        if family == "special":
            rows = self.x.flatten(0, 2)
            rows[3::5] = 0
            rows[4::7] *= 1e-30 if self.spec.dtype != "float16" else 1e-6
            rows[5::997, 0] = math.nan
            rows[6::1009, -1] = -math.inf

    def poison(self) -> None:
        """NaN, or a code that no layout writes, into every result."""
        for out in self.outs:
            out.fill_(POISON.get(str(out.dtype).removeprefix("torch."), math.nan))

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        if config not in self.runners:
            self.runners[config] = Runner(self.spec, config)
        out = self.outs if self.spec.layout else self.outs[0]
        self.runners[config](self.x, self.tables, out=out)

    def check(self) -> Check:
        """The share of the results' numbers that are not exactly those of plain torch."""
        off, count = 0, 0
        for b, h in np.ndindex(*self.x.shape[:2]):
            index = self.index[h] if self.index.ndim > 1 else self.index
            truth = plain(self.spec, self.x[b, h], index)
            for found, want in zip(self.outs, truth, strict=True):
                both_nan = found[b, h].isnan() & want.isnan()
                off += int(((found[b, h] != want) & ~both_nan).sum())
                count += want.numel()
        return Check(off / max(count, 1), 0.0, f"{off} of {count} numbers differ" if off else "")


def plain(spec: Permute, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """Results for one head ``[tokens, head_dim]`` in torch, exactly those of the reference."""
    moved = x.index_select(0, index)
    return (moved,) if spec.layout is None else quantize(spec.layout, moved)
