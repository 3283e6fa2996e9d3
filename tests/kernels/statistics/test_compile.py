"""The statistics kernel compiles for every architecture, within its registers and memory."""

from __future__ import annotations

import itertools

import pytest

from kdsl import targets
from kdsl.specs import HEAD_DIMS

pytest.importorskip("triton")

CHIPS = ("a100", "a10", "l40s", "h100", "b200", "rtx5090")
TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
BLOCKS = ((64, 64), (128, 128), (16, 256))


def compiles(chip: str, dtype: str, head_dim: int, block: tuple[int, int]) -> None:
    """One kernel for one GPU."""
    from kdsl.kernels.statistics.launch import constants, tiles
    from kdsl.kernels.statistics.template import block_statistics
    from kdsl.runtime.compiled import compile_triton

    target, tile = targets.get(chip), tiles(block, head_dim, dtype)
    fixed = constants(block, head_dim, dtype, 1)
    types = {name: "i32" for name in block_statistics.arg_names if name not in fixed}
    types |= dict.fromkeys(("q", "k"), f"*{TYPES[dtype]}") | dict.fromkeys(
        ("mass", "peak"), "*fp32"
    )
    types |= dict.fromkeys(("index", "looked", "below"), "*i32")
    types |= dict.fromkeys(("scale_log2", "eps"), "fp32")
    fixed |= {"q_d": 1, "k_d": 1}
    divisible = ("q", "k", "index", "q_n", "k_n", "q_h", "k_h", "q_b", "k_b")
    made = compile_triton(
        block_statistics,
        target,
        {n: t for n, t in types.items() if n not in fixed},
        fixed,
        divisible=divisible,
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )
    about = f"{chip} {dtype} {head_dim} {block}: {made}"
    assert made.shared_bytes <= target.smem_optin, about
    assert made.registers * made.warps * 32 <= 65536, about
    if dtype != "float32":
        assert made.spill_bytes <= 64, about  # next to nothing, outside the products


@pytest.mark.parametrize("chip", CHIPS)
def test_what_models_use_compiles(chip: str) -> None:
    """bfloat16 at head dimensions 64 and 128, in PARO's blocks and in ours."""
    compiles(chip, "bfloat16", 64, (64, 64))
    compiles(chip, "bfloat16", 128, (128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_everything_compiles(chip: str, head_dim: int) -> None:
    """Every head dimension in every kind of block; by turns in each dtype."""
    for (dtype, block), number in zip(itertools.product(TYPES, BLOCKS), itertools.count()):
        if (number + HEAD_DIMS.index(head_dim) + CHIPS.index(chip)) % 3 == 0:
            compiles(chip, dtype, head_dim, block)
