"""From a calibration to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from kdsl.calibrate.search import MassRecord, OrderSearch
from kdsl.plans import AttentionPlan, Payload, attention_plan

SCORES = ("density", "mass", "sparse", "incoherence")
"""Arrays of `Scores` that a plan keeps for its pictures."""


def make_plan(
    model: str,
    record: MassRecord,
    kept: Iterable[Any],
    *,
    search: OrderSearch | None = None,
    thresholds: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> AttentionPlan:
    """The plan of a record's orders and of ``kept`` maps, made by a rule from its masses.

    ``kept`` yields ``[heads, rows, columns]`` for each range of steps and in it each layer, in the
    order of the record.  ``search`` adds the scores and pictures of the candidates.
    """
    extra: dict[str, Payload] = {}
    said = dict(provenance or {})
    if search is not None:
        axes = ("layers", "heads", "candidates")
        scores = [search.scores(layer) for layer in range(search.layers)]
        for name in SCORES:
            # Of mass the first share, which pictures show.
            found = [getattr(s, name) for s in scores]
            values = np.stack([(x[0] if x.ndim == 3 else x).T for x in found]).astype(np.float32)
            extra[f"score.{name}"] = Payload(axes, values)
        extra["preview"] = Payload((*axes, "cell_rows", "cell_columns"), search.previews())
        settings = asdict(search.settings)
        said.setdefault(
            "settings",
            {**settings, "block": list(settings["block"]), "shares": list(settings["shares"])},
        )
    return attention_plan(
        model,
        record.grid,
        record.block,
        record.orders,
        iter(kept),
        steps=record.steps,
        thresholds=thresholds,
        provenance=said,
        extra=extra,
        candidates=search.candidates if search else (),
    )
