"""The gathering kernel compiles for every architecture, without spills, with wide loads."""

from __future__ import annotations

import pytest

from kdsl import targets

pytest.importorskip("triton")


@pytest.mark.parametrize("chip", ["a100", "a10", "l40s", "h100", "b200", "rtx5090"])
def test_everything_compiles(chip: str) -> None:
    """Lines of one to many words, numbers of 32 and 64 bits."""
    from kdsl.kernels.lines.launch import WARPS, constants
    from kdsl.kernels.lines.template import gather_lines
    from kdsl.runtime.compiled import compile_triton

    types = dict.fromkeys(("first", "second", "third", "out"), "*i64")
    types |= dict.fromkeys(("second_at", "third_at", "count"), "i32")
    for words in (1, 16, 20, 32, 64, 512):
        for kind in ("*i32", "*i64"):
            made = compile_triton(
                gather_lines,
                targets.get(chip),
                {n: (types | {"index": kind})[n] for n in gather_lines.arg_names if n in types
                 or n == "index"},
                constants(words),
                divisible=("first", "second", "third", "index", "out"),
                options={"num_warps": WARPS},
            )  # fmt: skip
            assert made.spill_bytes == 0, f"{chip} {words}: {made}"
            assert made.registers <= 128, f"{chip} {words}: {made}"
