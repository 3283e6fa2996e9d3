"""Plans of quantized models: for each layer its formats, its recipe, its codes and its errors.

A `Plan` of kind ``"quantization"`` whose header has a field ``layers``; the arrays of layer ``i``
are called ``l<i>.weight.<buffer>``, ``l<i>.recipe.<name>`` and ``l<i>.bias``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import layouts
from kdsl.errors import InputError, SpecError, StoreError, reading
from kdsl.layouts import Format, Outline, tables
from kdsl.layouts.groups import Shape
from kdsl.layouts.transforms import Recipe
from kdsl.plans.container import Payload, Plan, load
from kdsl.specs.common import DTYPES, optional, whole

FIELDS = ("name", "shape", "weight", "x", "recipe", "activation", "dtype", "bias", "report")


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """A quantized linear layer: ``shape`` is (outputs, inputs), ``buffers`` the weight's.

    ``x`` is the format of activations, None where they stay in ``dtype``; ``report`` any JSON about
    errors.  Everything is checked when it is made.
    """

    shape: Shape
    weight: Format
    x: Format | None
    recipe: Recipe
    buffers: Mapping[str, npt.NDArray[Any]]
    bias: npt.NDArray[np.float32] | None = None
    activation: str | None = None
    dtype: str = "bfloat16"
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weight.check(self.shape)
        if self.x is not None:
            self.x.check((1, self.shape[1]))
        outline = Outline.of(self.recipe)
        outline.check(self.shape[1])
        outline.recipe(tables(self.recipe), self.shape[1])  # values of their shapes
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype={self.dtype!r}", hint=", ".join(DTYPES))
        for buffer in self.weight.buffers:
            wanted = self.weight.buffer_shape(buffer, self.shape)
            got = self.buffers.get(buffer.name)
            if got is None or got.shape != wanted or got.dtype != np.dtype(buffer.word):
                found = "missing" if got is None else f"{got.dtype} of shape {got.shape}"
                raise InputError(
                    f"buffer {buffer.name!r} is {found}",
                    where=self.weight.name, hint=f"{buffer.word} of shape {wanted}",
                )  # fmt: skip
            if got.dtype.kind == "f" and not np.isfinite(got).all():
                raise InputError(f"buffer {buffer.name!r} holds numbers that are not finite")
        bias = self.bias
        if bias is not None and (bias.shape != self.shape[:1] or not np.isfinite(bias).all()):
            raise InputError(f"a bias of shape {bias.shape}", hint=f"finite, ({self.shape[0]},)")

    @property
    def nbytes(self) -> int:
        """Of the weight as stored."""
        return self.weight.nbytes(self.shape)


@dataclass(frozen=True, eq=False)
class QuantizationPlan:
    """Layers of one model by name, as `kdsl.quantize` finds them and `kdsl.nn.apply` takes them."""

    model: str
    layers: Mapping[str, LayerPlan]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all weights as stored."""
        return sum(layer.nbytes for layer in self.layers.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; see `Plan.save`."""
        self.to_plan().save(path)

    @staticmethod
    def load(path: str | os.PathLike[str], *, model: str | None = None) -> QuantizationPlan:
        """The plan in a file, which must be for this model if one is named.

        StoreError where it is damaged, of another kind or for another model.
        """
        try:
            made = QuantizationPlan.of_plan(load(path, "quantization"))
        except (SpecError, InputError) as error:
            raise StoreError(
                f"a bad plan: {error.what}",
                where=f"{path}: {error.where}" if error.where else str(path), hint=error.hint,
            ) from error  # fmt: skip
        if model is not None and model != made.model:
            raise StoreError(
                f"a plan for model {made.model!r}, not for {model!r}", where=str(path),
                hint="the plan that was made of this model",
            )  # fmt: skip
        return made

    def to_plan(self) -> Plan:
        """The container."""
        payload: dict[str, Payload] = {}
        said: list[dict[str, Any]] = []
        for i, (name, layer) in enumerate(self.layers.items()):
            header, arrays = layer.recipe.to_json()
            held = {f"recipe.{n}": v for n, v in arrays.items()}
            held |= {f"weight.{n}": v for n, v in layer.buffers.items()}
            held |= {} if layer.bias is None else {"bias": np.asarray(layer.bias, np.float32)}
            for key, value in held.items():
                array = _kept(np.asarray(value))
                axes = tuple(f"l{i}.{key}.{axis}" for axis in range(array.ndim))
                payload[f"l{i}.{key}"] = Payload(axes, array)
            x = layer.x
            said.append({
                "name": name, "shape": list(layer.shape), "dtype": layer.dtype,
                "weight": layouts.to_json(layer.weight),
                "x": None if x is None else layouts.to_json(x), "recipe": header,
                "activation": layer.activation, "bias": layer.bias is not None,
                "report": dict(layer.report),
            })  # fmt: skip
        return Plan(
            kind="quantization", model=self.model, payload=payload, provenance=self.provenance,
            layers=tuple(said),
        )  # fmt: skip

    @staticmethod
    @reading("plan of a quantized model")
    def of_plan(plan: Plan) -> QuantizationPlan:
        """The layers of a container; SpecError or InputError where they are not whole."""
        layers = {}
        for i, said in enumerate(plan.layers):
            whole(said, FIELDS, f"layer {i}")
            start = f"l{i}."
            held = {n.removeprefix(start): p.values for n, p in plan.payload.items()
                    if n.startswith(start)}  # fmt: skip
            recipe = {n.removeprefix("recipe."): v for n, v in held.items()}
            try:
                layers[said["name"]] = LayerPlan(
                    shape=(int(said["shape"][0]), int(said["shape"][1])),
                    weight=layouts.from_json(said["weight"]),
                    x=optional(layouts.from_json)(said["x"]),
                    recipe=Recipe.from_json(said["recipe"], recipe),
                    buffers={b: held[n] for n in held if (b := _buffer(n))},
                    bias=held["bias"] if said["bias"] else None,
                    activation=said["activation"], dtype=said["dtype"], report=said["report"],
                )  # fmt: skip
            except (SpecError, InputError) as error:
                where = f"layer {said['name']!r}" + (f": {error.where}" if error.where else "")
                raise type(error)(error.what, where=where, hint=error.hint) from error
        return QuantizationPlan(plan.model, layers, plan.provenance)


def _buffer(name: str) -> str:
    return name.removeprefix("weight.") if name.startswith("weight.") else ""


def _kept(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """In a dtype of the container."""
    return value.astype(np.float32) if value.dtype == np.float64 else value
