"""Configurations and tensors for calls of attention."""

from __future__ import annotations

import torch

from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.targets import Target, get
from tests.devices import DEVICE
from tests.interpreter.strategies import Case

H100 = get("h100")
STRIDES = ("contiguous", "contiguous", "tokens first", "expanded")


def configs(tunable: AttentionTunable, target: Target = H100) -> list[Config]:
    """Every tile and kind of loads that is legal; warps and stages mean nothing here."""
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
