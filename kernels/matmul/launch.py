"""Run the matmul templates: strides or descriptors, outputs, one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.launching.place import multiprocessors
from kdsl.kernels.launching.prepared import Prepared, kind_of, launch
from kdsl.kernels.matmul import arguments, portable
from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import Packed, view
from kdsl.kernels.matmul.hopper.config import layout_of
from kdsl.kernels.matmul.templates import template_of
from kdsl.specs import Matmul

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 16
MATRICES = ("x", "weight", "signs", "weight_scale", "out", "residual")


class Launcher:
    """A spec and a configuration, ready to be called: what does not depend on tensors, once.

    ``module`` is the file of `arguments.source`.
    """

    def __init__(self, module: Any, spec: Matmul, config: Config) -> None:
        self.module, self.spec, self.config, self.view = module, spec, config, view(spec)
        self.own = config.template == "hopper"
        down, across = arguments.tiles(spec, config)
        self.tiles = down * across
        self.part = template_of(spec, config.template)
        self.options = self.part.options(config)
        self.prepared: dict[Any, Prepared] = {}
        """Launches that were made before, by the tensors they depend on."""

    def output(self, x: Tensor) -> Tensor:
        """Memory for the result of a call, uninitialised."""
        import torch

        shape, dtype = (self.spec.rows, self.spec.columns), getattr(torch, self.spec.dtype)
        return torch.empty(shape, dtype=dtype, device=x.device)

    def __call__(self, operands: Mapping[str, Tensor | None], out: Tensor) -> None:
        """One launch on torch's current stream.

        ``operands`` by the names of `Matmul.operands`, and ``weight_sums`` (int32, a column's sum
        of codes) where x has zero points; ``out [rows, columns]`` contiguous.
        """
        tensors = self.tensors(operands, out)
        moving = {name: t for name, t in tensors.items() if t is not None}
        key = (*moving, kind_of(tuple(moving.values())))
        launch(
            self.module.matmul_tiles, self.programs(out.device), key, self.prepared, moving,
            lambda: self.values(tensors), self.options,
        )  # fmt: skip

    def programs(self, device: Any) -> int:
        """Programs of a launch: a tile each, or as many as run at once."""
        if self.own and device.type == "cuda":
            return min(self.tiles, multiprocessors(device))
        return self.tiles

    def tensors(
        self, operands: Mapping[str, Tensor | None], out: Tensor
    ) -> dict[str, Tensor | None]:
        """Operands by the kernel's arguments, in strides that it takes."""
        import torch

        plain = torch.contiguous_format
        x, weight = self.view.x, self.view.weight
        signs = weight.signs if isinstance(weight, Packed) else ""
        found: dict[str, Tensor | None] = {
            "x": operands[f"x_{x.codes}"],
            "weight": operands[f"weight_{weight.codes}"],
            "signs": operands[f"weight_{signs}"] if signs else None,
            "out": out,
            "residual": operands["residual"] if self.spec.residual else None,
            "x_scale": operands[f"x_{x.scales}"],
            "weight_scale": operands[f"weight_{weight.scales}"],
            "zeros": operands[f"x_{x.zeros}"] if x.zeros else None,
            "sums": operands["weight_sums"] if x.zeros else None,
            "bias": operands["bias"] if self.spec.bias else None,
        }
        return {
            name: t if t is None or self._fits(name, t) else t.clone(memory_format=plain)
            for name, t in found.items()
        }

    def _fits(self, name: str, t: Tensor) -> bool:
        """Whether a tensor can be read as it lies: rows in one piece, for TMA at 16 bytes."""
        if name not in MATRICES or (name == "weight_scale" and not self.view.group):
            return t.is_contiguous()
        if t.stride(-1) != 1 and t.shape[-1] > 1:
            return False
        if not self.own or name == "weight_scale":
            return True
        step = t.stride(0) * t.element_size()
        return step % ALIGNMENT == 0 and step > 0 and t.data_ptr() % ALIGNMENT == 0

    def values(self, tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """Every argument of the kernel by name."""
        import torch

        held: dict[str, Any] = dict(tensors)
        capability = capability_of(held["out"].device)
        for name in ("x", "weight"):
            if name == "x" or not self.view.group:
                held[name] = self._codes(held[name], capability)
        strides = tuple(0 if held[n] is None else held[n].stride(0) for n in MATRICES)
        if self.own:
            del held["signs"]
            if self.view.group:
                held["weight"] = held["weight"].view(torch.int16)
                del held["zeros"], held["sums"]
            boxes = self.part.boxes(self.spec, self.config)
            held |= {name: _described(held[name], box) for name, box in boxes.items()}
        counts = arguments.integers(self.spec, self.config, strides)
        return {**held, **counts, **self.part.constants(self.spec, self.config, capability)}

    def _codes(self, t: Tensor, capability: tuple[int, int]) -> Tensor:
        """Codes in the type that the template takes."""
        import torch

        kinds = (torch.int8, torch.float8_e4m3fn, torch.uint8)
        return t.view(kinds[portable.fp8(self.spec, capability)])


def sums_of(codes: Tensor) -> Tensor:
    """Sums of a weight's codes over K, int32 ``[columns]``: what zero points of x meet."""
    import torch

    return codes.view(torch.int8).sum(-1, dtype=torch.int32)


def _described(x: Tensor, box: tuple[int, int]) -> Any:
    """A descriptor of a matrix that TMA fetches in boxes."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = layout_of(box[1], 8 * x.element_size())
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(box), layout)


def capability_of(device: Any) -> tuple[int, int]:
    """Compute capability of a device; the interpreter has e4m3 of its own."""
    import torch

    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
