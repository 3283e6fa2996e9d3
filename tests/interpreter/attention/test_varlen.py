"""Packed sequences on the kernels: forward and gradients, by sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdsl import masks
from kdsl.integrations.flash_attention import varlen
from kdsl.runtime import build
from kdsl.specs import Attention
from tests.devices import DEVICE, GPU

TILES = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 1, "loads": "pointer"}
NS, MS = [7, 0, 21, 3, 6], [7, 4, 33, 0, 2]


def cumulative(lengths: list[int]) -> torch.Tensor:
    """``cu_seqlens`` of some lengths."""
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("causal", [False, True])
def test_varlen(causal: bool) -> None:
    """Outputs, log-sum-exps and gradients are those of torch on each sequence alone, with grouped
    queries, empty sequences, and more capacity than tokens."""
    spec = Attention(
        queries=48, keys=56, heads=4, kv_heads=2, head_dim=64, dtype="float32",
        mask=masks.varlen(48, 56), block=(16, 16), return_lse=True,
    )  # fmt: skip
    parts = {"keys": TILES, "queries": TILES}
    op = build(spec, gpu=GPU, backend="triton", config=TILES, backward=parts)
    g = torch.Generator().manual_seed(0)
    shapes = ((sum(NS), 4, 64), (sum(MS), 2, 64), (sum(MS), 2, 64))
    q, k, v = (torch.randn(s, generator=g).to(DEVICE).requires_grad_() for s in shapes)
    weight = torch.randn(shapes[0], generator=g).to(DEVICE)
    cu_q, cu_k = cumulative(NS), cumulative(MS)
    out, lse = varlen(op, q, k, v, cu_q, cu_k, causal=causal)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v))

    wanted = torch.zeros(shapes[0], dtype=torch.float64, device=DEVICE)
    level = torch.full((4, sum(NS)), -float("inf"), dtype=torch.float64, device=DEVICE)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    pieces, at_q, at_k = [], 0, 0
    for n, m in zip(NS, MS, strict=True):
        here, there = slice(at_q, at_q + n), slice(at_k, at_k + m)
        at_q, at_k = at_q + n, at_k + m
        if not n or not m:
            continue
        its_k, its_v = (x[there].repeat_interleave(2, 1) for x in wide[1:])
        s = torch.einsum("nhd,mhd->hnm", wide[0][here], its_k) * 64**-0.5
        if causal:
            away = torch.arange(m)[None, :] - torch.arange(n)[:, None] - (m - n)
            s = s.masked_fill((away > 0).to(DEVICE), -float("inf"))
        # A query before the first key sees nothing.
        some = (s > -float("inf")).any(-1)
        p = torch.where(some[..., None], s, 0.0).softmax(-1) * some[..., None]
        o = torch.einsum("hnm,mhd->nhd", p, its_v)
        wanted[here] = o.detach()
        level[:, here] = torch.where(some, s.logsumexp(-1), -float("inf")).detach()
        pieces.append((o * weight[here]).sum())
    grads = torch.autograd.grad(sum(pieces), wide)
    # Float32 sums of at most 64 products a score and 33 keys a query, on values below 5.
    np.testing.assert_allclose(out.detach().cpu(), wanted.cpu(), atol=1e-5)
    np.testing.assert_allclose(lse.detach().cpu(), level.cpu(), atol=1e-5)
    for x, y in zip(found, grads, strict=True):
        np.testing.assert_allclose(x.cpu(), y.cpu(), atol=5e-5)
