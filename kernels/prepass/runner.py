"""Run the pre-pass to measure it: seeded inputs, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.kernels.prepass import arguments, launch, truth
from kdsl.kernels.prepass.config import Config
from kdsl.work import Check

if TYPE_CHECKING:
    from kdsl.kernels.prepass.tunable import PrepassTunable


class PrepassRunner:
    """A pre-pass of one spec and one set of table values on a device.

    Family ``random`` has tokens of very different sizes and channels that stand out, in k with
    means of their own.  ``special`` has NaN, an infinity, tokens of zeros and a constant k.
    """

    families = ("random", "special")

    def __init__(self, tunable: PrepassTunable, device: Any, load: Callable[[str], Any]) -> None:
        import torch

        self.spec, self.batch, self.tables = tunable.spec, tunable.batch, tunable.tables or {}
        self.device = torch.device(device)
        self.module = load(arguments.source())
        self.generator = torch.Generator(device=device)
        spec = self.spec
        self.tensors: dict[str, Any] = {}
        for name, shape in spec.inputs.items():
            if name in "qkv":
                # A view of a projection, as models have it.
                heads, tokens, d = shape
                dtype = getattr(torch, spec.dtype)
                made = torch.empty((self.batch, tokens, heads * d), dtype=dtype, device=device)
                self.tensors[name] = made.view(self.batch, tokens, heads, d).transpose(1, 2)
            else:
                self.tensors[name] = torch.empty(shape, dtype=torch.float32, device=device)
        self.index = None
        if spec.moves:
            index = np.atleast_2d(spec.stored_order.index(self.tables))
            index = np.broadcast_to(index, (spec.heads, spec.grid.tokens))
            self.index = torch.from_numpy(index.copy()).to(device)
        self.launchers: dict[Config, tuple[launch.Launcher, dict[str, Any]]] = {}
        self.out = launch.outputs(spec, self.tensors)

    def prepare(self, family: str, seed: int) -> None:
        """Fill the inputs."""
        self.generator.manual_seed(seed)
        for x in self.tensors.values():
            x.normal_(generator=self.generator)
        for name in "qkv":
            x = self.tensors[name]
            sizes = x[..., :1].float().normal_(generator=self.generator).mul_(0.5).exp_()
            x.mul_(sizes.to(x.dtype))
            x[..., ::29] *= 8
        self.tensors["k"][..., ::17] += 4
        if self.spec.rope is not None:
            angle = self.tensors["cos"].clone()
            self.tensors["cos"].copy_(angle.cos())
            self.tensors["sin"].copy_(angle.sin())
        if family == "special":
            q, k, v = (self.tensors[n] for n in "qkv")
            q[:, ::3, 5::7] = 0
            q[:, 0, 3::97, 1] = math.nan
            q[:, -1, 11::97, -1] = math.inf
            k[:, 0] = 0.5
            k[:, -1, ::5] = 0
            v[:, 0, :, 3] = 0
            v[:, -1, 1::50, 2] = -math.inf
            v[:, -1, 2::50, 7] = math.nan

    def poison(self) -> None:
        """What no kernel writes, into every output: NaN, or codes that none is."""
        import torch

        for name, x in self.out.items():
            if x.data_ptr() == self.tensors["v"].data_ptr():
                continue
            if x.dtype in (torch.int8, torch.float8_e4m3fn):
                x.view(torch.uint8).fill_(0x80 if name != "v" else 0x7F)
            else:
                x.fill_(math.nan if x.is_floating_point() else -1)

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        if config not in self.launchers:
            made = launch.Launcher(self.module, self.spec, config)
            placed = launch.placed(self.spec, config, self.tables, self.device)
            self.launchers[config] = made, placed
        launcher, placed = self.launchers[config]
        launcher(self.tensors, placed, self.out)

    def check(self) -> Check:
        """The worst number over what it may be off, all heads."""
        worst, reason = truth.check(self.spec, self.tensors, self.index, self.out)
        return Check(worst, 1.0, "" if worst <= 1.0 else reason)
