"""Random specs: the kernel in the interpreter equals the reference.

`tests/kernels/attention/test_gpu.py` asks the same of a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, note
from hypothesis import strategies as st

from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import build
from kdsl.specs import Attention
from kdsl.targets import Target, get
from tests.devices import DEVICE, GPU
from tests.interpreter.strategies import Case, cases
from tests.tolerance import expected

H100 = get("h100")


def configs(spec: Attention, target: Target = H100) -> list[Config]:
    """Every tile and kind of loads that is legal; warps and stages mean nothing here."""
    tunable = AttentionTunable(spec)
    space = tunable.space(target)
    return [
        next(c for c in made if tunable.legal(c.to_json(), target) is None)
        for made in (
            [
                Config(m, n, warps, stages, loads)
                for warps in space["num_warps"]
                for stages in space["num_stages"]
            ]
            for m in space["block_m"]
            for n in space["block_n"]
            for loads in space["loads"]
        )
        if any(tunable.legal(c.to_json(), target) is None for c in made)
    ]


def tensors(case: Case, strides: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v in the spec's dtype: contiguous, tokens before heads, or one key head spread."""
    spec, generator = case.spec, torch.Generator().manual_seed(case.seed)

    def made(heads: int, tokens: int) -> torch.Tensor:
        shape = (case.batch, heads, tokens, spec.head_dim)
        if strides == "tokens first":
            shape = (case.batch, tokens, heads, spec.head_dim)
        x = torch.randn(shape, generator=generator).to(DEVICE, getattr(torch, spec.dtype))
        return x.transpose(1, 2) if strides == "tokens first" else x

    q = made(spec.heads, spec.query_grid.tokens)
    if strides == "expanded":
        k, v = (
            made(1, spec.key_grid.tokens).expand(-1, spec.group_heads, -1, -1) for _ in range(2)
        )
    else:
        k, v = (made(spec.group_heads, spec.key_grid.tokens) for _ in range(2))
    return q, k, v


def check(case: Case, config: Config, strides: str) -> None:
    """Output and log-sum-exp are within the derived bound, and every element was written."""
    spec = case.spec
    note(f"{spec!r}\n{config}\n{strides}")
    op = build(spec, gpu=GPU, backend="triton", config=config.to_json())
    q, k, v = tensors(case, strides)
    found = op(q, k, v, tables=case.tables)
    out, lse = found if spec.return_lse else (found, None)
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    expected(spec, q, k, v, case.tables, block_n=config.block_n).check(out, lse)
    if lse is not None:
        assert lse.dtype == torch.float32
        assert bool((out[lse.isneginf()] == 0).all())


STRIDES = ("contiguous", "contiguous", "tokens first", "expanded")


@given(case=cases(), data=st.data())
def test_kernel_equals_reference(case: Case, data: Any) -> None:
    """Any mask, order, ragged size, grouping, head dimension and tile, in float16 and float32."""
    config = data.draw(st.sampled_from(configs(case.spec)))
    check(case, config, data.draw(st.sampled_from(STRIDES)))


def test_bound_notices_a_missing_key() -> None:
    """The bound is tight enough to see one key too few among 130, in either dtype."""
    for dtype in ("float16", "float32"):
        spec = Attention(tokens=130, heads=1, head_dim=64, dtype=dtype)
        case = Case(spec, {}, 1, 3)
        q, k, v = tensors(case, "contiguous")
        right = expected(spec, q, k, v)
        right.check(right.out, right.lse)
        fewer = Attention(queries=130, keys=129, heads=1, head_dim=64, dtype=dtype)
        wrong = expected(fewer, q, k[:, :, :129], v[:, :, :129])
        beyond = np.abs(wrong.out - right.out) > right.out_error
        assert beyond.any(-1).all()
        assert (np.abs(wrong.lse - right.lse) > right.lse_error).all()
