"""The merging kernel compiles for every architecture, without spills."""

from __future__ import annotations

import pytest

from kdsl import targets
from kdsl.specs import HEAD_DIMS

pytest.importorskip("triton")


@pytest.mark.parametrize("chip", ["a100", "a10", "l40s", "h100", "b200", "rtx5090"])
def test_everything_compiles(chip: str) -> None:
    """Every head dimension, parts of different dtypes."""
    from kdsl.kernels.merge.launch import WARPS, constants
    from kdsl.kernels.merge.template import merge_rows
    from kdsl.runtime.compiled import compile_triton

    types = {"total": "*bf16", "out": "*bf16", "merged": "*fp32", "count": "i32"}
    types |= dict.fromkeys(("log_total", "lse", "joint"), "*fp32")
    for head_dim in HEAD_DIMS:
        fixed = constants(head_dim)
        made = compile_triton(
            merge_rows,
            targets.get(chip),
            {name: types[name] for name in merge_rows.arg_names if name not in fixed},
            fixed,
            divisible=("total", "out", "merged", "log_total", "lse", "joint"),
            options={"num_warps": WARPS},
        )
        assert made.spill_bytes == 0, f"{chip} {head_dim}: {made}"
        assert made.registers <= 128, f"{chip} {head_dim}: {made}"
