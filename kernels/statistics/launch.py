"""Run the statistics kernel: one launch, partial results joined on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsl.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

LOG2E = 1.4426950408889634
MAX_PROGRAMS = 2**31 - 1


@dataclass(frozen=True)
class Tiles:
    """Tile of queries and keys, warps and stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def tiles(block: tuple[int, int], head_dim: int, dtype: str) -> Tiles:
    """A tile that fits every GPU from sm_80 on: the mask block, or a half or quarter of it."""
    row = head_dim * (4 if dtype == "float32" else 2)
    if row > 512:
        return Tiles(min(block[0], 32), min(block[1], 32), 4, 1)
    m, n = min(block[0], 128 if row <= 256 else 64), min(block[1], 64 if row <= 256 else 32)
    return Tiles(m, n, 8 if m > 64 else 4, 2 if m > 64 or row > 256 else 3)


def constants(block: tuple[int, int], head_dim: int, dtype: str, group: int) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    tile = tiles(block, head_dim, dtype)
    return {
        "GROUP": group,
        "D": head_dim,
        "WIDTH": max(1 << (head_dim - 1).bit_length(), 16),
        "MASK_M": block[0],
        "MASK_N": block[1],
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PRECISION": "ieee",
    }


def statistics(
    q: Tensor,
    k: Tensor,
    index: Tensor,
    rows: Tensor,
    block: tuple[int, int],
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of probabilities, largest ones, entries below eps: ``[batch, heads, looked, columns]``.

    ``q [batch, heads, tokens, head_dim]`` and ``k [batch, kv_heads, tokens, head_dim]`` of any
    strides; ``index`` int32 ``[heads or 1, tokens]``, ``rows`` int32 ``[looked]``.
    """
    import torch

    from kdsl.kernels.statistics.template import block_statistics

    batch, heads, tokens, head_dim = q.shape
    dtype = str(q.dtype).removeprefix("torch.")
    tile = tiles(block, head_dim, dtype)
    parts, columns = block[0] // tile.block_m, -(-tokens // block[1])
    programs = batch * heads * len(rows) * parts
    if programs > MAX_PROGRAMS:
        raise UnsupportedError(f"{programs} programs", hint="fewer batch items or block rows")
    shape = (batch, heads, len(rows), parts, columns)
    mass, peak = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    below = torch.empty(shape, dtype=torch.int32, device=q.device)
    if mass.numel():
        block_statistics[(programs,)](
            q, k, index, rows, mass, peak, below,
            *q.stride(), *k.stride(), index.stride(0) if len(index) > 1 else 0,
            heads, len(rows), tokens, columns, scale * LOG2E, eps,
            **constants(block, head_dim, dtype, heads // k.shape[1]),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return mass.sum(3), peak.amax(3), below.sum(3, dtype=torch.int32)
