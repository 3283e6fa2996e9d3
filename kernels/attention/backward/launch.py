"""Run the backward template: inverted lists, and one launch for each of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsl.blocks import Blocks
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.launch import LOG2E, Lists, describe, lists
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATE = Path(__file__).parent / "template.py"
ROWS = 64
"""Queries of one program of `attention_backward_rows`."""


@dataclass(frozen=True)
class Given:
    """What the kernels read, on one device.

    ``q``, ``k``, ``v`` and ``do`` in any strides; ``level`` and ``delta`` as `rows` makes them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    level: Tensor
    delta: Tensor
    tables: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The four in the order of the kernels' arguments."""
        return self.q, self.k, self.v, self.do


def summed(spec: Attention) -> int:
    """Query heads whose dK and dV one program sums: those of a group, if they agree on a tile.

    The sum stays in float32 registers and is rounded once, and no memory holds parts of it.  Heads
    of a group with different stored orders of the keys cut other tiles, and are summed afterwards.
    """
    orders = spec.kv_order.parts
    if len(orders) == 1:
        return spec.group
    groups = (orders[h : h + spec.group] for h in range(0, spec.heads, spec.group))
    return spec.group if all(len(set(g)) == 1 for g in groups) else 1


def inverted(blocks: Blocks, spec: Attention, device: Any) -> Lists:
    """For each key block the query blocks that visit it; a ragged last query block is partial."""
    return lists(blocks.transpose(), spec.heads, device, summed(spec))


def rows(
    module: Any, spec: Attention, out: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``level`` and ``delta`` of each query, float32 ``[batch, heads, queries]``.

    ``lse`` and ``dlse`` are contiguous, of that shape.
    """
    import torch

    batch, heads, queries, _ = out.shape
    d0, d1 = head_parts(spec.head_dim)
    level, delta = torch.empty_like(lse), torch.empty_like(lse)
    programs = batch * heads * -(-queries // ROWS)
    module.attention_backward_rows[(programs,)](
        out, do, lse, dlse, level, delta, *out.stride(), *do.stride(), heads, queries,
        D0=d0, D1=d1, BLOCK=ROWS, DLSE=dlse is not None, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return level, delta


def summed_up(spec: Attention, given: Given, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """dK and dV in the shapes of k and v, of what `keys_into` filled."""
    if dk.shape == given.k.shape:
        return dk, dv
    batch, _, tokens, d = given.k.shape
    apart = (batch, spec.group_heads, spec.group, tokens, d)
    dk, dv = (x.view(apart).sum(2).to(given.k.dtype) for x in (dk, dv))
    return dk, dv


def keys_into(
    module: Any,
    spec: Attention,
    config: Config,
    turned: Lists,
    given: Given,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fill what `key_outputs` made."""
    count = summed(spec)
    (q, do), tails, d0, d1 = _operands(config, (given.q, given.do), (config.block_m,) * 2)
    batch, heads, queries, _ = given.q.shape
    programs = batch * (heads // count) * turned.rows * (spec.block[1] // config.block_n)
    module.attention_backward_keys[(programs,)](
        q, given.k, given.v, do, given.level, given.delta, dk, dv, *tails,
        turned.start, turned.full, turned.partial, turned.index, turned.tiles, given.tables,
        *_strides(given), *dk.stride(), *dv.stride(), *turned.strides,
        heads, turned.rows, queries, given.k.shape[2],
        spec.softmax_scale, spec.softmax_scale * LOG2E,
        GROUP=spec.group, SUMMED=count, D0=d0, D1=d1, MASK_M=spec.block[0], MASK_N=spec.block[1],
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, DESCRIBED=config.loads == "descriptor",
        PRECISION="ieee",
        num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
    )  # fmt: skip


def key_outputs(spec: Attention, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for dK and dV: like k and v, or a part for each query head in float32."""
    import torch

    if summed(spec) == spec.group:
        return torch.empty_like(k), torch.empty_like(v)
    shape = (k.shape[0], spec.heads, *k.shape[2:])
    dk, dv = (torch.empty(shape, dtype=torch.float32, device=k.device) for _ in range(2))
    return dk, dv


def queries_into(
    module: Any, spec: Attention, config: Config, held: Lists, given: Given, dq: Tensor
) -> None:
    """Fill dQ; ``held`` are the forward's lists."""
    m, n = config.block_m, config.block_n
    tensors, tails, d0, d1 = _operands(config, given.tensors, (m, n, n, m))
    batch, heads, tokens, _ = given.q.shape
    programs = batch * heads * held.rows * (spec.block[0] // config.block_m)
    module.attention_backward_queries[(programs,)](
        *tensors, given.level, given.delta, dq, *tails,
        held.start, held.full, held.partial, held.index, held.tiles, given.tables,
        *_strides(given), *dq.stride(), *held.strides,
        heads, held.rows, tokens, given.k.shape[2],
        spec.softmax_scale, spec.softmax_scale * LOG2E,
        GROUP=spec.group, D0=d0, D1=d1, MASK_M=spec.block[0], MASK_N=spec.block[1],
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, DESCRIBED=config.loads == "descriptor",
        PRECISION="ieee",
        num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
    )  # fmt: skip


def _operands(
    config: Config, tensors: tuple[Tensor, ...], rows: tuple[int, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...], int, int]:
    """Pointers or descriptors of tensors, and their tails; the parts of the head dimension."""
    d0, d1 = head_parts(tensors[0].shape[3])
    if config.loads == "pointer":
        return tensors, (None,) * len(tensors), d0, d1
    return *describe(tensors, rows, d0, d1), d0, d1


def _strides(given: Given) -> tuple[int, ...]:
    return tuple(n for x in given.tensors for n in x.stride())
