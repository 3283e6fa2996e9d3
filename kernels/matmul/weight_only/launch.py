"""Run products whose weights alone are quantized: one launch, on torch's current stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdsl.errors import UnsupportedError
from kdsl.kernels.launching.place import multiprocessors
from kdsl.kernels.launching.prepared import Prepared, kind_of, launch
from kdsl.kernels.matmul.weight_only import portable, stream
from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.facts import view
from kdsl.kernels.permute import nvrtc
from kdsl.kernels.permute.arrays import TorchArrays
from kdsl.specs import Matmul

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 16
MAX_DYNAMIC_SHARED = 8
"""The driver's number of that attribute of a function."""


def operands_of(spec: Matmul) -> dict[str, str]:
    """The spec's operands by the kernels' arguments; "" for what is not there."""
    held = view(spec)
    return {
        "x": "x",
        "codes": f"weight_{held.codes}",
        "signs": f"weight_{held.signs}" if held.signs else "",
        "scales": f"weight_{held.scales}",
        "zeros": f"weight_{held.zeros}" if held.zeros else "",
        "bias": "bias" if spec.bias else "",
        "residual": "residual" if spec.residual else "",
    }


def arguments(
    spec: Matmul, config: Config, operands: Mapping[str, tuple[int, int]], out: int
) -> list[int]:
    """The stream kernel's arguments; ``operands`` are addresses and bytes from row to row."""
    found = {n: operands[o] if o else (0, 0) for n, o in operands_of(spec).items()}
    rows = [step for name, (_, step) in found.items() if name != "bias"]
    tiles = -(-spec.columns // config.block_n)
    return [*(address for address, _ in found.values()), out, *rows, spec.columns, tiles]


class Launcher:
    """A spec and a configuration, ready to be called.

    ``module`` is the portable template's file; the stream template needs none, it is compiled when
    it first runs on a device.
    """

    def __init__(self, module: Any, spec: Matmul, config: Config) -> None:
        self.module, self.spec, self.config, self.view = module, spec, config, view(spec)
        self.names = operands_of(spec)
        self.prepared: dict[Any, Prepared] = {}
        self.kernels: dict[int, Any] = {}
        self.books: dict[Any, Tensor] = {}

    def output(self, x: Tensor) -> Tensor:
        """Memory for the result of a call, uninitialised."""
        import torch

        shape, dtype = (self.spec.rows, self.spec.columns), getattr(torch, self.spec.dtype)
        return torch.empty(shape, dtype=dtype, device=x.device)

    def __call__(self, operands: Mapping[str, Tensor | None], out: Tensor) -> None:
        """``operands`` by the names of `Matmul.operands`; ``out [rows, columns]`` contiguous."""
        tensors = {n: self._laid(operands[o]) if o else None for n, o in self.names.items()}
        if self.config.template == "stream":
            self._stream(tensors, out)
            return
        moving = {n: t for n, t in (*tensors.items(), ("out", out)) if t is not None}
        moving["book"] = self._book(out.device)
        key = (*moving, kind_of(tuple(moving.values())))
        launch(
            self.module.weight_only_tiles, portable.programs(self.spec, self.config), key,
            self.prepared, moving, lambda: self._values({**tensors, "out": out}, moving["book"]),
            portable.options(self.config),
        )  # fmt: skip

    def _laid(self, t: Tensor | None) -> Tensor | None:
        """A tensor in rows of one piece; for the stream template at multiples of 16 bytes."""
        import torch

        if t is None:
            return None
        fits = t.stride(-1) == 1 or t.shape[-1] == 1
        if self.config.template == "stream":
            step = t.stride(0) * t.element_size() if t.dim() > 1 else 0
            wide = t.dim() > 1 and t.shape[-1] * t.element_size() % ALIGNMENT == 0
            fits &= t.data_ptr() % ALIGNMENT == 0 and not (wide and step % ALIGNMENT)
        return t if fits else t.clone(memory_format=torch.contiguous_format)

    def _book(self, device: Any) -> Tensor:
        """What codes stand for, float32, on a device; made once."""
        import torch

        if device not in self.books:
            entries = self.view.entries
            self.books[device] = torch.tensor(entries, dtype=torch.float32, device=device)
        return self.books[device]

    def _values(self, tensors: Mapping[str, Tensor | None], book: Tensor) -> dict[str, Any]:
        """Every argument of the portable kernel by name."""
        steps = {
            f"{n}_r": 0 if t is None else t.stride(0) for n, t in tensors.items() if n != "bias"
        }
        counts = portable.integers(self.spec, self.config)
        return {
            **tensors,
            "book": book,
            **steps,
            **counts,
            **portable.constants(self.spec, self.config),
        }

    def _stream(self, tensors: Mapping[str, Tensor | None], out: Tensor) -> None:
        arrays = TorchArrays(out)
        blocks, _ = stream.grid(self.spec, self.config, multiprocessors(out.device))
        at = {
            self.names[n]: (t.data_ptr(), t.stride(0) * t.element_size())
            for n, t in tensors.items()
            if t is not None
        }
        passed = arguments(self.spec, self.config, at, out.data_ptr())
        kernel = self._kernel(arrays)
        with arrays.stream():
            kernel(
                (blocks,), (32 * self.config.num_warps,), tuple(passed),
                shared_mem=stream.shared_bytes(self.spec, self.config),
            )  # fmt: skip

    def _kernel(self, arrays: TorchArrays) -> Any:
        if arrays.device not in self.kernels:
            arrays.refuse_capture("the kernel is not compiled yet")
            try:
                from cupy.cuda import driver
                from cupy.cuda.function import Module
            except ImportError as error:
                raise UnsupportedError(
                    "the stream template is CUDA C and needs CuPy",
                    hint='pip install "kdsl-kernels[cuda]", or backend="triton"',
                ) from error
            text = stream.source(self.spec, self.config)
            module = Module()
            with arrays.stream():
                module.load(nvrtc.cubin(text, stream.ENTRY, arrays.capability()))
                kernel = module.get_function(stream.ENTRY)
                asked = stream.shared_bytes(self.spec, self.config)
                driver.funcSetAttribute(kernel.ptr, MAX_DYNAMIC_SHARED, asked)
            self.kernels[arrays.device] = kernel
        return self.kernels[arrays.device]
