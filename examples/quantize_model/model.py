"""A diffusion transformer of the usual shape, small enough for a CPU.

Modulated norms, attention, a GELU feed-forward, as in DiT (arXiv 2212.09748) and the models of
diffusers; it learns the velocity between patches of a picture and noise (flow matching,
arXiv 2210.02747).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH, SIDE = 4, 8
"""Pixels along a patch, patches along a picture."""
WIDTH, DEPTH, HEADS = 256, 4, 4


class Block(nn.Module):
    """Attention and a feed-forward on ``[batch, tokens, width]``, modulated by a condition."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 6 * width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The tokens after both parts."""
        held = self.modulation(functional.silu(condition))[:, None].chunk(6, dim=-1)
        y = self.norm(x) * (1 + held[0]) + held[1]
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f in (self.to_q, self.to_k, self.to_v))  # fmt: skip
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + held[2] * self.to_out(y)
        y = self.norm(x) * (1 + held[3]) + held[4]
        return x + held[5] * self.down(functional.gelu(self.up(y), approximate="tanh"))


class SmallDiT(nn.Module):
    """The velocity of patches ``[batch, 64, 48]`` at times ``[batch]`` from 0, a picture, to 1."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        inside = 3 * PATCH * PATCH
        self.patch_in = nn.Linear(inside, width)
        self.place = nn.Parameter(0.02 * torch.randn(SIDE * SIDE, width))
        self.time_in, self.time_out = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.patch_out = nn.Linear(width, inside)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity, in the shape of x."""
        half = self.place.shape[1] // 2
        steps = torch.exp(-math.log(1e4) * torch.arange(half, device=x.device) / half)
        angle = 1000 * t[:, None].float() * steps
        waves = torch.cat([angle.cos(), angle.sin()], -1).to(x.dtype)
        condition = self.time_out(functional.silu(self.time_in(waves)))
        y = self.patch_in(x) + self.place
        for block in self.blocks:
            y = block(y, condition)
        return self.patch_out(self.norm(y))
