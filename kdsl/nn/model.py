"""Whole models: which layers, which rotation, what it costs; and plans put into models.

Loads torch inside functions, so that the names can be had without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl import layouts
from kdsl.errors import InputError, SpecError
from kdsl.layouts import rotations
from kdsl.layouts.transforms import Recipe
from kdsl.nn.scheme import Scheme
from kdsl.plans.quantization import QuantizationPlan

if TYPE_CHECKING:
    import torch

    from kdsl.nn.linear import QuantLinear

Array = npt.NDArray[Any]
TRIED = 256
"""Outputs of a layer that recipes are compared on."""


def quantize(
    model: torch.nn.Module,
    scheme: Scheme,
    calibration: Iterable[Any],
    *,
    name: str = "",
    progress: bool = True,
    backend: str | None = None,
) -> QuantizationPlan:
    """Put a `QuantLinear` in the place of each ``torch.nn.Linear`` that the scheme takes.

    ``calibration`` yields what the model is called with (a tensor, a tuple of arguments or a
    mapping of them); each batch runs once, in the original model.  Of a layer's input rows a sample
    is kept: half of it chooses the recipe and weighs the clip search, the other half judges.  The
    model is changed in place, after everything was found to be in order; the plan that is returned
    has the same layers, with their errors in ``report``, and can be saved.

    InputError or SpecError names the first layer whose weight holds NaN or rows of zeros, whose
    groups do not divide, or that calibration does not reach; the model is as it was then.
    """
    from kdsl.nn.calibration import observe
    from kdsl.nn.linear import check_weight

    if not isinstance(scheme, Scheme):
        raise SpecError(f"scheme={scheme!r}", hint="kdsl.nn.Scheme(weight=..., x=...)")
    layers = _linears(model, scheme)
    for at, layer in layers.items():
        where = f"the weight of layer {at!r}"
        check_weight(layer.weight, scheme.weight, where)
        if scheme.x is not None:
            scheme.x.check((1, layer.in_features))
    with _bar(progress) as bar:
        run = bar("calibration batches", None)
        sampled = observe(model, layers, calibration, scheme.samples, scheme.seed, run)
        found: dict[str, tuple[QuantLinear, dict[str, Any]]] = {}
        step = bar("layers", len(layers))
        for at, layer in layers.items():
            rows = sampled.pop(at).rows.numpy()
            found[at] = _quantized(layer, scheme, rows[0::2], rows[1::2], backend)
            step()
    held = {}
    for at, (made, report) in found.items():
        _replace(model, at, made)
        held[at] = made.to_plan(report)
    provenance = {"scheme": scheme.to_json()}
    return QuantizationPlan(name or type(model).__name__, held, provenance)


def apply(
    plan: QuantizationPlan, model: torch.nn.Module, *, backend: str | None = None
) -> torch.nn.Module:
    """Put the layers of a plan into a model, in place, on the devices of the layers they replace.

    InputError where the model has no such layer, of that shape, to be replaced.
    """
    import torch

    from kdsl.nn.linear import QuantLinear

    for name, layer in plan.layers.items():
        try:
            old = model.get_submodule(name)
        except AttributeError as error:
            raise InputError(
                f"the model has no layer {name!r}", where=f"a plan for {plan.model!r}",
                hint="the model that the plan was made of",
            ) from error  # fmt: skip
        if not isinstance(old, (torch.nn.Linear, QuantLinear)):
            raise InputError(f"{name!r} is a {type(old).__name__}", hint="torch.nn.Linear")
        shape = (old.out_features, old.in_features)
        if shape != layer.shape:
            raise InputError(
                f"layer {name!r} is {shape[0]} x {shape[1]}, the plan's {layer.shape}",
                hint="the model that the plan was made of",
            )
    for name, layer in plan.layers.items():
        old = model.get_submodule(name)
        weight = getattr(old, "weight", None)
        device: Any = old._like.device if weight is None else weight.device
        made = QuantLinear.from_plan(layer, backend=backend)
        # A model on the meta device is being filled: its layers come where the plan is, the CPU.
        _replace(model, name, made if device.type == "meta" else made.to(device))
    return model


def plan_of(model: torch.nn.Module, name: str = "") -> QuantizationPlan:
    """The quantized layers of a model as a plan, for saving."""
    from kdsl.nn.linear import QuantLinear

    held = {n: m.to_plan() for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    if not held:
        raise InputError("the model has no quantized layers", hint="kdsl.quantize(model, ...)")
    return QuantizationPlan(name or type(model).__name__, held)


def _linears(model: torch.nn.Module, scheme: Scheme) -> dict[str, torch.nn.Linear]:
    import torch

    # A subclass may do more than its name says.
    found = {n: m for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    taken = {n: m for n, m in found.items() if scheme.takes(n)}
    if not taken:
        few = ", ".join(list(found)[:6]) + (", ..." if len(found) > 6 else "")
        raise InputError(
            f"the scheme takes none of the model's {len(found)} linear layers",
            where=f"only={tuple(scheme.only)}, skip={tuple(scheme.skip)}", hint=few or "a model",
        )  # fmt: skip
    return taken


def _quantized(
    layer: torch.nn.Linear, scheme: Scheme, chosen: Array, judged: Array, backend: str | None
) -> tuple[QuantLinear, dict[str, Any]]:
    """The layer, and what is known of its errors."""
    from kdsl.nn.linear import QuantLinear

    w = layer.weight.detach().double().cpu().numpy()
    best, recipe, errors = _recipe(w, scheme, chosen)
    turned = recipe.forward(chosen.astype(np.float64))
    made = QuantLinear.from_linear(
        layer, weight=scheme.weight, x=scheme.x, recipe=recipe, clips=scheme.clips,
        importance=np.mean(turned**2, axis=0), backend=backend,
    )  # fmt: skip
    matched = recipe.matched(w)
    stored = made.dequantized().double().cpu().numpy()
    exact = judged.astype(np.float64) @ w.T
    rows = held(scheme, recipe.forward(judged.astype(np.float64)))
    error = relative(rows @ stored.T + recipe.bias(w), exact)
    report = {
        "recipe": best,
        "output_error": error,
        "output_db": decibels(error),
        "weight_db": decibels(relative(stored, matched)),
        "bits": 8 * scheme.weight.nbytes(made.shape) / w.size,
        "tried": {n: float(e) for n, e in errors.items()},
        "rows": len(chosen) + len(judged),
    }
    return made, report


def _recipe(w: Array, scheme: Scheme, x: Array) -> tuple[str, Recipe, Mapping[str, float]]:
    """Name and steps of the recipe a layer gets, and the errors of those that were tried."""
    block = scheme.block_for(w.shape[1])
    known = {"none": Recipe()}
    if scheme.rotation != "none" and block > 1:
        known |= rotations.candidates(x, block, scheme.seed)
    if scheme.rotation != "choose":
        if scheme.rotation not in known:
            raise SpecError(
                f"no rotation of blocks divides {w.shape[1]} columns", where=scheme.rotation,
                hint='rotation="choose" or "none"',
            )  # fmt: skip
        return scheme.rotation, known[scheme.rotation], {}
    few = w[:: -(-len(w) // TRIED)]
    best, errors = rotations.choose(
        x.astype(np.float64), few, known,
        coded=lambda m: coded(scheme, m), held=lambda m: held(scheme, m),
    )  # fmt: skip
    return best, known[best], errors


def coded(scheme: Scheme, w: Array) -> Array:
    """Weights as the scheme's format holds them, without a clip search."""
    import torch

    from kdsl.nn.fitting import fit

    fields = fit(scheme.weight, torch.from_numpy(w.astype(np.float32)))
    return scheme.weight.decode(fields, (w.shape[0], w.shape[1])).astype(np.float64)


def held(scheme: Scheme, x: Array) -> Array:
    """Activations as the scheme's format holds them."""
    if scheme.x is None:
        return x
    values = x.astype(np.float32)
    return scheme.x.decode(layouts.quantize(scheme.x, values), (x.shape[0], x.shape[1])).astype(
        np.float64
    )


def relative(found: Array, exact: Array) -> float:
    """Frobenius norm of the difference over that of the exact numbers."""
    return float(np.linalg.norm(found - exact)) / (float(np.linalg.norm(exact)) or 1.0)


def decibels(error: float) -> float | None:
    """Signal to noise of a relative error; None where nothing is lost."""
    return -20 * math.log10(error) if error else None


def _replace(model: torch.nn.Module, name: str, made: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, made)


def _bar(shown: bool) -> Any:
    """Something that makes counters: ``bar(words, total)`` gives a function to call a step."""
    if not shown:
        return nullcontext(lambda words, total: lambda: None)
    from kdsl.nn.report import Bars

    return Bars()
