"""Quality on trained weights and real activations: ``python -m benchmarks quality --trained 600``.

The model of ``examples.quantize_model``, trained on frames of the example's clip so many steps: its
weights by kind of layer, inputs of its layers on frames it was trained on, and its loss on other
frames when it is quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import kdsl
from benchmarks.quality import Matrix, codes_of
from examples.quantize_model.__main__ import SCHEMES
from examples.quantize_model.model import SmallDiT
from examples.quantize_model.train import batches, judged, train
from kdsl.layouts import rotations
from kdsl.layouts.transforms import Recipe
from kdsl.nn.calibration import observe

KINDS = {
    "attention": ("to_q", "to_k", "to_v", "to_out"), "up": ("up",), "down": ("down",),
    "modulation": ("modulation",),
}  # fmt: skip
ROWS = 192
"""Of each kind, evenly over its layers."""
LOOKED = ("blocks.1.to_q", "blocks.1.to_out", "blocks.1.up", "blocks.1.down", "blocks.3.down",
          "blocks.1.modulation")  # fmt: skip
"""Layers whose inputs are rotated."""
SAMPLES = 512


def weights(model: SmallDiT) -> dict[str, Matrix]:
    """Rows of weights of each kind of layer."""
    held = {n: m.weight for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    found = {}
    for kind, names in KINDS.items():
        rows = torch.cat([w for n, w in held.items() if n.rpartition(".")[2] in names])
        few = np.linspace(0, len(rows) - 1, ROWS).astype(int)
        found[kind] = rows.detach().numpy()[few].astype(np.float32)
    return found


def measure(steps: int) -> Iterator[dict[str, Any]]:
    """Lines of results: SNR of codes, output errors of recipes, losses of quantized models."""
    model = train(steps)
    source = f"SmallDiT, {steps} steps"
    for name, x in weights(model).items():
        for bits in (3, 4):
            for code, value in codes_of(bits).items():
                yield {
                    "kind": "snr", "source": source, "data": name, "bits": bits, "code": code,
                    "db": round(value(x), 3),
                }  # fmt: skip
    layers = {n: model.get_submodule(n) for n in LOOKED}
    sampled = observe(model, layers, batches(4), SAMPLES)  # type: ignore[arg-type]
    for name, kept in sampled.items():
        x, w = kept.rows.numpy(), layers[name].weight.detach().numpy()  # type: ignore[union-attr]
        recipes = rotations.candidates(x) | {
            "none": Recipe(), "published ARS": rotations.published(x),
        }  # fmt: skip
        best, errors = rotations.choose(x, w, recipes, bits=4)
        for recipe, error in errors.items():
            yield {
                "kind": "rotation", "source": source, "data": name, "bits": 4, "recipe": recipe,
                "output_error": round(error, 5), "chosen": recipe == best,
                "fluctuation": round(rotations.fluctuation(x), 4),
            }  # fmt: skip
    plain = judged(model, 2)
    for name, scheme in SCHEMES.items():
        changed = copy.deepcopy(model)
        plan = kdsl.quantize(changed, scheme, batches(4), progress=False)
        errors = [layer.report["output_error"] for layer in plan.layers.values()]
        yield {
            "kind": "model", "source": source, "scheme": name, "loss": round(judged(changed, 2), 6),
            "float_loss": round(plain, 6), "layers": len(errors),
            "median_output_error": round(float(np.median(errors)), 5),
            "worst_output_error": round(max(errors), 5),
        }  # fmt: skip
