"""Run the pre-pass: strides, outputs, at most three launches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import UnsupportedError
from kdsl.kernels.launching.prepared import Prepared, kind_of, launch
from kdsl.kernels.prepass.arguments import (
    NATIVE_FP8,
    OPTIONAL,
    carried,
    constants,
    launches,
    listed,
    numbers,
    options,
    parameters,
    parts,
    programs,
    tiles,
)
from kdsl.kernels.prepass.config import Config
from kdsl.specs import Prepass

if TYPE_CHECKING:
    from torch import Tensor

COUNTED = 2**31 - 1
"""Programs of a launch."""


def placed(
    spec: Prepass, config: Config, tables: Mapping[str, npt.NDArray[Any]], device: Any
) -> dict[str, Tensor]:
    """The orders on a device: ``order`` int32 ``[distinct orders, tokens]``, and where there are
    several the heads of each program (`arguments.parts`, `arguments.listed`)."""
    import torch

    if not spec.moves:
        return {}
    distinct = dict.fromkeys(spec.stored_order.parts)
    found = {"order": np.stack([order.index(tables) for order in distinct])}
    if len(distinct) > 1:
        for name in "qk":
            found[f"{name}_runs"] = np.array(parts(spec, config, name))
            found[f"{name}_listed"] = np.array(listed(spec, name))
    return {n: torch.from_numpy(x.astype(np.int32)).to(device) for n, x in found.items()}


def outputs(spec: Prepass, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Memory for the result of a call, uninitialised; v itself where it stays as it is."""
    import torch

    q = tensors["q"]
    out = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device=q.device)
        for name, (shape, dtype) in spec.shapes(q.shape[0]).items()
        if name != "v" or carried(spec)
    }
    return out if carried(spec) else {**out, "v": tensors["v"]}


class Launcher:
    """A spec and a configuration, ready to be called: what does not depend on tensors, once.

    ``module`` is the file of `arguments.source`.
    """

    def __init__(self, module: Any, spec: Prepass, config: Config) -> None:
        self.module, self.spec, self.config = module, spec, config
        self.kernels = launches(spec)
        self.parameters = {name: parameters(name) for name in self.kernels}
        self.constants = {
            (name, native): constants(spec, config, name, native)
            for name in self.kernels
            for native in (False, True)
        }
        self.prepared: dict[Any, Prepared] = {}
        """Launches that were made before, by the tensors they depend on."""

    def __call__(
        self, tensors: Mapping[str, Tensor], order: Mapping[str, Tensor], out: Mapping[str, Tensor]
    ) -> None:
        """A call on torch's current stream.

        ``tensors`` those that ``spec.inputs`` names, in any strides; ``order`` as `placed` makes
        it, ``out`` contiguous, as `outputs`.
        """
        import torch

        spec, q = self.spec, tensors["q"]
        batch = q.shape[0]
        if not batch or not spec.grid.tokens:
            for name in spec.outputs:
                if name != "v" or carried(spec):
                    out[name].view(torch.uint8).zero_()
            return
        held = dict(tensors)
        if spec.rope is not None:
            held["cos"], held["sin"] = _angles(spec, held["cos"], held["sin"])
        strides = _strides(held)
        moving = {**held, **order, **self._between(batch, q.device)}
        moving |= {n: t for n, t in out.items() if n not in ("q", "k", "v", "k_mean", "v_scale")}
        moving |= {f"{n}_codes": out[n].view(torch.int32) for n in "qk"}
        if carried(spec):
            coded = spec.layout.weights == "e4m3"
            moving["v_codes"] = out["v"].view(torch.uint8) if coded else out["v"]
        if spec.smooth:
            moving["mean"] = out["k_mean"]
        if spec.layout.v is not None:
            moving["scale"] = out["v_scale"]
        native = q.is_cuda and torch.cuda.get_device_capability(q.device) >= NATIVE_FP8
        for name in self.kernels:
            self._launch(name, batch, moving, strides, native)

    def _launch(
        self,
        name: str,
        batch: int,
        tensors: Mapping[str, Tensor],
        strides: Mapping[str, int],
        native: bool,
    ) -> None:
        count = programs(self.spec, self.config, name, batch)
        if count > COUNTED:
            raise UnsupportedError(f"{count} programs in a launch", hint="a smaller batch")
        named = self.parameters[name]
        own = {n: t for n, t in tensors.items() if n in named}
        key = (name, batch, *own, kind_of(tuple(own.values())))

        def values() -> dict[str, Any]:
            counted = numbers(self.spec, self.config, name, strides)
            absent = {n: None for n in OPTIONAL if n in named}
            return {**absent, **counted, **own, **self.constants[name, native]}

        launch(
            getattr(self.module, name), count, key, self.prepared, own, values,
            {**options(self.spec, self.config, name), "enable_fp_fusion": True},
        )  # fmt: skip

    def _between(self, batch: int, device: Any) -> dict[str, Tensor]:
        """What one launch leaves to the next."""
        import torch

        spec, out = self.spec, {}
        shape = batch * spec.group_heads, tiles(spec, self.config, "prepass_tiles"), spec.head_dim
        if spec.smooth:
            out["sums"] = torch.empty(shape, dtype=torch.float32, device=device)
        if spec.layout.v is not None:
            out["maxima"] = torch.empty(shape, dtype=torch.int32, device=device)
            size = (shape[0], spec.head_dim)
            out["inverses"] = torch.empty(size, dtype=torch.float32, device=device)
        if spec.norm == "rms_token":
            for name in ("q_root", "k_root"):
                size = (batch, spec.grid.tokens)
                out[name] = torch.empty(size, dtype=torch.float32, device=device)
        return out


def _angles(spec: Prepass, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """A column for each pair of channels, of a wide table the first of the two that are alike; both
    tables with the same strides."""
    step = 2 if spec.rope == "interleaved" else 1
    half = spec.head_dim // 2
    cos, sin = (t if t.shape[-1] == half else t[:, : half * step : step] for t in (cos, sin))
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    return cos, sin


def _strides(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    out = {"angle_n": 0, "angle_d": 0}
    for name in "qkv":
        steps = tensors[name].stride()
        out |= {f"{name}_{axis}": step for axis, step in zip("bhnd", steps, strict=True)}
    if "cos" in tensors:
        out |= dict(zip(("angle_n", "angle_d"), tensors["cos"].stride(), strict=True))
    return out
