"""Calibration of sparse attention: orders by `OrderSearch`, masks by a rule, and the plan of both.

    search = OrderSearch(grid, layers)
    ...                                          # run the model; search.observe(layer, q, k)
    record = MassRecord(grid, search.choose(), shared_steps(30))
    ...                                          # again; record.observe(layer, step, q, k)
    kept = under_budget(record, record.weights, density=0.25, forced=record.text)
    make_plan("Wan2.1-14B", record, kept, search=search).save("wan.safetensors")

Masks: `keep_rows` and `keep_heads` hold a share of the mass, `within_error` bounds the error of
every head's output, `under_budget` shares one density between heads and layers, `block_sum` is
PAROAttention's rule.
"""

from kdsl.calibrate.candidates import axis_orders, candidates, cube_orders
from kdsl.calibrate.planning import make_plan
from kdsl.calibrate.quality import within_error
from kdsl.calibrate.rules import (
    block_sum,
    dense_text,
    held,
    keep_heads,
    keep_rows,
    row_weights,
    under_budget,
)
from kdsl.calibrate.scores import Scores
from kdsl.calibrate.search import MassRecord, OrderSearch, Settings
from kdsl.plans.attention import shared_steps
from kdsl.runtime.statistics import block_statistics, output_error

__all__ = [
    "MassRecord",
    "OrderSearch",
    "Scores",
    "Settings",
    "axis_orders",
    "block_statistics",
    "block_sum",
    "candidates",
    "cube_orders",
    "dense_text",
    "held",
    "keep_heads",
    "keep_rows",
    "make_plan",
    "output_error",
    "row_weights",
    "shared_steps",
    "under_budget",
    "within_error",
]
