"""Inputs of layers from a stream of batches: a uniform sample of rows each, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdsl.errors import InputError


class Reservoir:
    """A uniform sample of at most ``size`` rows of a stream, in float32 on the CPU.

    Each row draws a number, and the rows of the largest numbers stay.
    """

    def __init__(self, columns: int, size: int, seed: int) -> None:
        self.rows = torch.empty(0, columns)
        self.keys = torch.empty(0, dtype=torch.float64)
        self.size, self.seen, self.lost = size, 0, 0
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, x: Tensor) -> None:
        """Rows ``[..., columns]`` of the stream; those that are not finite are counted apart."""
        rows = x.detach().reshape(-1, x.shape[-1])
        keys = torch.rand(len(rows), generator=self.generator, dtype=torch.float64)
        self.seen += len(rows)
        if len(self.keys) == self.size:
            above = (keys > self.keys[-1]).nonzero()[:, 0]
            rows, keys = rows[above.to(rows.device)], keys[above]
        elif len(keys) > self.size:
            keys, first = keys.topk(self.size)
            rows = rows[first.to(rows.device)]
        held = rows.float().cpu()
        whole = torch.isfinite(held).all(dim=1)
        self.lost += int((~whole).sum())
        both = torch.cat([self.keys, keys[whole]])
        order = both.argsort(descending=True)[: self.size]
        self.rows, self.keys = torch.cat([self.rows, held[whole]])[order], both[order]


def observe(
    model: torch.nn.Module,
    layers: Mapping[str, torch.nn.Linear],
    batches: Iterable[Any],
    size: int,
    seed: int = 0,
    heard: Any = None,
) -> dict[str, Reservoir]:
    """Run the batches and sample the input rows of each layer; ``heard()`` follows each batch.

    A batch is what the model is called with: a tensor, a tuple of arguments or a mapping of them
    by name.  InputError where a layer is not reached, its input is not finite or there is no batch.
    """
    held = {
        name: Reservoir(layer.in_features, size, seed + i)
        for i, (name, layer) in enumerate(layers.items())
    }
    hooks = [
        layers[name].register_forward_pre_hook(lambda _, given, kept=kept: kept.add(given[0]))
        for name, kept in held.items()
    ]
    trained, count = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                _called(model, batch)
                count += 1
                if heard is not None:
                    heard()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(trained)
    if not count:
        raise InputError("no calibration batches", hint="an iterable of the model's inputs")
    for name, kept in held.items():
        if kept.lost:
            raise InputError(
                f"the input of layer {name!r} holds NaN or infinity",
                where=f"{kept.lost} of the rows looked at", hint="batches that the model can take",
            )  # fmt: skip
        if len(kept.rows) < 8:
            raise InputError(
                f"layer {name!r} saw {kept.seen} rows of calibration",
                hint="batches that reach it, at least 8 rows; or Scheme(skip=(...))",
            )
    return held


def _called(model: torch.nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        raise InputError(
            f"a calibration batch is a {type(batch).__name__}",
            hint="a tensor, a tuple of arguments, or a mapping of arguments by name",
        )
