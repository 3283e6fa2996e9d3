"""A linear layer whose weight is stored in a format, and whose input is quantized on its way in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kdsl import layouts
from kdsl.errors import InputError, SpecError, UnsupportedError
from kdsl.layouts import Format
from kdsl.layouts.transforms import Recipe
from kdsl.nn.fitting import fit
from kdsl.nn.rotation import Transform, moved
from kdsl.plans.quantization import LayerPlan
from kdsl.runtime.arrays import interpreting
from kdsl.runtime.row_program import RowProgram
from kdsl.runtime.torch_ops import on, wanted
from kdsl.runtime.torch_rows import remember
from kdsl.specs import DTYPES, Matmul, Quantize, canonical

NOTHING = Recipe()
KIND, VERSION = "kdsl.nn.QuantLinear", 1


class QuantLinear(torch.nn.Module):
    """``activation(x @ weight.T + bias) + residual`` for x ``[..., in_features]``.

    ``weight`` is the format that the weight is stored in, ``x`` the one that activations are
    quantized to after the steps of ``recipe``; None leaves them in ``dtype`` (weights alone are
    quantized).  The number of rows may change from call to call.  The weight's buffers, the
    recipe's values and the bias are buffers of the module: they move with it and are in its state
    dict, beside a header (``_extra_state``) that says what they are; `.to(torch.float16)` changes
    the dtype of activations and bias alone.  There are no gradients.

    A module on the CPU is computed by the reference, one on a GPU by kernels (``backend``, as for
    `kdsl.build`); UnsupportedError when it is moved where no kernel computes it.  Where activations
    stay as they are and no kernel reads them so, the decoded weight is held, and torch multiplies.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight: Format,
        x: Format | None,
        recipe: Recipe = NOTHING,
        bias: bool = True,
        activation: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        backend: str | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight_format, self.x_format = weight, x
        self.activation, self.backend = activation, backend
        self.rotation = Transform(recipe, in_features).to(device)
        weight.check(self.shape)
        for buffer in weight.buffers:
            size, kind = weight.buffer_shape(buffer, self.shape), getattr(torch, buffer.word)
            codes = torch.zeros(size, dtype=kind, device=device)
            self.register_buffer(f"weight_{buffer.name}", codes)
        held = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        self.register_buffer("bias", held)
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
        self._settle()

    @staticmethod
    def from_linear(
        linear: torch.nn.Linear,
        *,
        weight: Format,
        x: Format | None,
        recipe: Recipe = NOTHING,
        activation: str | None = None,
        clips: Sequence[float] = (1.0,),
        importance: npt.ArrayLike | None = None,
        backend: str | None = None,
    ) -> QuantLinear:
        """The layer with its weight rotated to match ``recipe`` and quantized.

        ``clips`` are factors of each scale to try; the one of least squared error stays, columns
        weighted by ``importance`` (the mean square of the rotated input, say).
        """
        w = linear.weight.detach()
        check_weight(w, weight)
        shape = (linear.out_features, linear.in_features)
        exact = w.double().cpu().numpy()
        turned = torch.from_numpy(recipe.matched(exact).astype(np.float32)).to(w.device)
        fields = fit(weight, turned, clips=clips, importance=importance)
        shift = recipe.bias(exact)
        bias = shift if linear.bias is None else shift + linear.bias.detach().double().cpu().numpy()
        biased = linear.bias is not None or bool(shift.any())
        made = QuantLinear(
            shape[1], shape[0], weight=weight, x=x, recipe=recipe, bias=biased,
            activation=activation, dtype=w.dtype, backend=backend,
        )  # fmt: skip
        made._fill(weight.pack(fields, shape), bias if biased else None)
        made.train(linear.training)
        return made.to(w.device)

    @staticmethod
    def from_plan(layer: LayerPlan, *, backend: str | None = None) -> QuantLinear:
        """The layer of a plan."""
        made = QuantLinear(
            layer.shape[1], layer.shape[0], weight=layer.weight, x=layer.x, recipe=layer.recipe,
            bias=layer.bias is not None, activation=layer.activation,
            dtype=getattr(torch, layer.dtype), backend=backend,
        )  # fmt: skip
        made._fill(layer.buffers, layer.bias)
        return made

    def to_plan(self, report: Mapping[str, Any] | None = None) -> LayerPlan:
        """The layer for a plan; ``report`` is what is known of its errors."""
        bias = self.bias
        return LayerPlan(
            shape=self.shape, weight=self.weight_format, x=self.x_format, recipe=self.recipe,
            activation=self.activation, dtype=str(self.dtype).removeprefix("torch."),
            buffers={n: t.cpu().numpy().copy() for n, t in self._weight.items()},
            bias=None if bias is None else bias.float().cpu().numpy().copy(), report=report or {},
        )  # fmt: skip

    def _fill(self, buffers: Mapping[str, Any], bias: Any) -> None:
        for name, value in buffers.items():
            held = cast("Tensor", getattr(self, f"weight_{name}"))
            held.copy_(torch.from_numpy(np.array(value)).view(held.dtype))
        if bias is not None:
            assert self.bias is not None
            self.bias.copy_(torch.from_numpy(np.array(bias)))
        self._settle()

    bias: Tensor | None
    _like: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.out_features, self.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, bias and results."""
        return self._like.dtype

    @property
    def recipe(self) -> Recipe:
        """The steps before quantization, with their values."""
        held = {n: t.cpu().numpy() for n, t in self.rotation.named_buffers() if n in self._shapes}
        return self.rotation.outline.recipe(held, self.in_features)

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.rotation.outline.shapes(self.in_features)

    @property
    def _weight(self) -> dict[str, Tensor]:
        return {b.name: getattr(self, f"weight_{b.name}") for b in self.weight_format.buffers}

    def dequantized(self) -> Tensor:
        """The weight that the product is made with, float32 ``[out_features, in_features]``: in the
        recipe's coordinates."""
        held = {n: t.cpu().numpy() for n, t in self._weight.items()}
        found = self.weight_format.dequantize(held, self.shape)
        return torch.from_numpy(found).to(self._like.device)

    def _settle(self) -> None:
        """Make what calls need of buffers that came, moved or changed their dtype."""
        self._programs: tuple[RowProgram, ...] = ()
        self._names: tuple[str, ...] = ()
        self._values: list[Tensor] = []
        self._sums: Tensor | None = None
        self._dense: Tensor | None = None
        device = self._like.device
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise SpecError(f"a layer of {dtype}", hint=", ".join(DTYPES))
        if device.type == "meta":
            return
        backend = self.backend
        if device.type == "cpu":
            backend = (backend or "triton") if interpreting() else "reference"
        plain: dict[str, Any] = {
            "rows": 1, "inner": self.in_features, "columns": self.out_features, "dtype": dtype,
            "weight": self.weight_format, "activation": self.activation,
            "bias": self.bias is not None, "x": self.x_format,
        }  # fmt: skip
        products = [RowProgram(Matmul(residual=r, **plain), backend) for r in (False, True)]
        programs = [remember(p) for p in products]
        try:
            self._sums = programs[0].sums({f"weight_{n}": t for n, t in self._weight.items()})
        except UnsupportedError:
            if self.x_format is not None:
                raise
            self._dense = self.dequantized().to(self.dtype)
            return
        if self.x_format is not None:
            spec = Quantize(
                rows=1, columns=self.in_features, format=self.x_format,
                recipe=self.rotation.outline, dtype=dtype,
            )  # fmt: skip
            coded = remember(RowProgram(spec, backend))
            tables = {n: t for n, t in self.rotation.named_buffers() if n in self._shapes}
            self._values = coded.values(tables, device)
            programs.append(coded)
        self._programs, self._names = tuple(programs), tuple(p.name for p in programs)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[..., out_features]`` in the dtype of x, which is the layer's."""
        if x.shape[-1] != self.in_features or x.dtype != self.dtype:
            raise InputError(
                f"x is {x.dtype} of shape {tuple(x.shape)}",
                where="QuantLinear",
                hint=f"{self.dtype}, [..., {self.in_features}]; layer.to(dtype) for another one",
            )
        shape = (*x.shape[:-1], self.out_features)
        if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
            raise InputError(
                f"residual is {residual.dtype} of shape {tuple(residual.shape)}",
                where="QuantLinear", hint=f"{x.dtype}, {shape}",
            )  # fmt: skip
        rows = x.reshape(-1, self.in_features)
        rest = [] if residual is None else [residual.reshape(-1, self.out_features)]
        if self._dense is not None:
            return self._by_torch(rows, rest).view(shape)
        if self.x_format is None:
            given = [self.rotation(rows)]
        else:
            given = self._coded(rows)
        bias = [] if self.bias is None else [self.bias]
        operands = [*given, *self._weight.values(), *bias, *rest]
        return self._product(operands, rows.shape[0], len(rest)).view(shape)

    def _coded(self, rows: Tensor) -> list[Tensor]:
        if wanted((rows,)):
            found: list[Tensor] = torch.ops.kdsl.quantize(
                rows, None, None, self._values, self._names[2]
            )
            return found
        with on(rows.device):
            return self._programs[2].quantize(rows, None, None, self._values)

    def _product(self, operands: list[Tensor], rows: int, residual: int) -> Tensor:
        if wanted(operands):
            name = self._names[residual]
            found: Tensor = torch.ops.kdsl.matmul(operands, self._sums, rows, name)
            return found
        with on(operands[0].device):
            return self._programs[residual].matmul(operands, self._sums, rows)

    def _by_torch(self, rows: Tensor, rest: list[Tensor]) -> Tensor:
        """A product with the decoded weight, where no kernel reads x in 16 bits."""
        assert self._dense is not None
        y = functional.linear(self.rotation(rows), self._dense, self.bias)
        if self.activation == "silu":
            y = functional.silu(y)
        elif self.activation is not None:
            way = "tanh" if self.activation == "gelu_tanh" else "none"
            y = functional.gelu(y, approximate=way)
        return y + rest[0] if rest else y

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moved and cast; what belongs to a format keeps its dtype."""
        free = {id(self._like), id(self.bias)}

        def kept(t: Tensor) -> Tensor:
            return cast("Tensor", fn(t)) if id(t) in free else moved(fn, t)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        self._settle()
        return self

    def __getstate__(self) -> dict[str, Any]:
        made = {"_programs", "_names", "_values", "_sums", "_dense"}
        return {n: v for n, v in self.__dict__.items() if n not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._settle()

    @property
    def header(self) -> dict[str, Any]:
        """What the buffers are, as JSON."""
        x = self.x_format
        return {
            "kind": KIND,
            "version": VERSION,
            "shape": list(self.shape),
            "weight": layouts.to_json(self.weight_format),
            "x": None if x is None else layouts.to_json(x),
            "recipe": self.rotation.outline.to_json(),
            "activation": self.activation,
        }

    def get_extra_state(self) -> Tensor:
        """The header, canonical JSON as bytes: a tensor, which every file of tensors takes."""
        return torch.frombuffer(bytearray(canonical(self.header).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """InputError where a state dict is of another format, recipe or shape."""
        try:
            held = json.loads(bytes(state.cpu().numpy().tobytes()))
        except (ValueError, AttributeError) as error:
            raise InputError(f"the header of a quantized layer is damaged: {error}") from error
        mine = json.loads(canonical(self.header))
        if not isinstance(held, dict) or set(held) != set(mine):
            raise InputError("the header is not of a quantized layer", hint=", ".join(mine))
        for name, value in mine.items():
            if held[name] != value:
                raise InputError(
                    f"the state dict has another {name} than the layer",
                    where=f"{canonical(held[name])[:120]} in the file",
                    hint=f"a layer made with it; this one has {canonical(value)[:120]}",
                )

    def extra_repr(self) -> str:
        """Sizes, formats, steps, epilogue."""
        x = "16 bits" if self.x_format is None else self.x_format.name
        steps = [k if not n else f"{k} {n}" for k, n in self.rotation.outline.steps]
        parts = [
            f"in_features={self.in_features}, out_features={self.out_features}",
            f"weight={self.weight_format.name}, x={x}, bias={self.bias is not None}",
            f"recipe=({', '.join(steps)})" if steps else "",
            f"activation={self.activation}" if self.activation else "",
            str(self.dtype).removeprefix("torch."),
            "weight decoded" if self._dense is not None else "",
        ]
        return ", ".join(p for p in parts if p)


def _loaded(module: QuantLinear, _: Any) -> None:
    module._settle()


def check_weight(w: Tensor, fmt: Format, name: str = "weight") -> None:
    """InputError or SpecError for a weight that cannot be quantized so, before anything is done."""
    if w.ndim != 2 or not w.is_floating_point():
        raise InputError(f"{name} is {w.dtype} of shape {tuple(w.shape)}", hint="[out, in]")
    if w.device.type == "meta":
        raise InputError(f"{name} is on the meta device and has no values", hint="a loaded model")
    bad = ~torch.isfinite(w)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"{name} holds {int(bad.sum())} values that are not finite",
            where=f"first at row {row}, column {column}",
            hint="weights that were loaded and trained without NaN",
        )
    empty = (w == 0).all(dim=1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise InputError(
            f"{name} has {int(empty.sum())} rows of zeros",
            where=f"first at row {row}",
            hint="trained weights; or leave the layer as it is, Scheme(skip=(...))",
        )
    try:
        fmt.check((w.shape[0], w.shape[1]))
    except SpecError as error:
        raise SpecError(
            f"{name}, {w.shape[0]} x {w.shape[1]}: {error.what}", where=fmt.name,
            hint=f"groups of {error.hint}; or leave the layer as it is, Scheme(skip=(...))",
        ) from error  # fmt: skip
