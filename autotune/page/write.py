"""The page itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from kdsl.autotune.page import charts
from kdsl.autotune.page.facts import Section
from kdsl.specs import Attention

STATISTICS = {
    "density": "kept blocks of all",
    "partial_share": "partial blocks of the kept ones",
    "row_spread": "95th percentile of the row lengths over their mean",
    "row_max": "longest row over the mean",
    "run_length": "blocks in a row without a gap, mean",
}


def page(sections: Sequence[Section], title: str = "Measured") -> str:
    """HTML with its pictures inside: it refers to no other file and to no network."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        files("kdsl.autotune.page").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        sections=sections,
        number=charts.number,
        statistics=STATISTICS,
        history=lambda s: charts.history(s.steps, s.default.median_us if s.default else None),
        scatter=lambda s: charts.scatter(s.guesses, s.typical_error),
        intervals=charts.intervals,
        bars=lambda s: charts.bars(s.importances),
        picture=picture,
    )


def picture(section: Section) -> str:
    """The mask of the first head, or nothing where there is none."""
    job = section.recording.job
    spec: Any = job.tunable.spec
    if not isinstance(spec, Attention):
        return ""
    return spec.element_mask.svg(
        spec.query_grid,
        spec.key_grid,
        order=spec.query_order,
        block=spec.block,
        tables=job.tables,
        title=f"Mask of the first head of {section.recording.name}",
    )
