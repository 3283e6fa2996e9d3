"""Peers: what our users could run instead.  Each prepares a call, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.cases import BLOCK
from kdsl.errors import UnsupportedError

Tensors = tuple[Any, Any, Any]
Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prepared:
    """A call that is ready: ``run`` gives the output, ``tensors`` are q, k, v as it takes them.

    Both are ``[batch, heads, tokens, head_dim]``, or with tokens before heads.
    """

    run: Callable[[], Any]
    tensors: Tensors
    heads_first: bool = True

    def turned(self, x: Any) -> Any:
        """A tensor from its layout to heads first, and back."""
        return x if self.heads_first else x.transpose(1, 2)


class Peer(Protocol):
    """Prepares a call; with ``backward`` its tensors want gradients."""

    def __call__(self, tensors: Tensors, kept: Kept, backward: bool) -> Prepared:
        """ImportError where it is not installed, KdslError where it cannot compute the case."""


def own(tensors: Tensors, backward: bool, *, heads_first: bool = True) -> Tensors:
    """The tensors in a peer's layout, contiguous, as leaves where gradients are wanted."""
    if not heads_first:
        q, k, v = (t.transpose(1, 2).contiguous() for t in tensors)
        tensors = (q, k, v)
    q, k, v = (t.detach().clone().requires_grad_() if backward else t for t in tensors)
    return q, k, v


def lists(kept: Kept, device: Any) -> tuple[Any, Any]:
    """Count and columns of kept blocks by row, ``[1, heads, rows]`` and with columns behind."""
    import torch

    plan = torch.from_numpy(kept).to(device)
    count = plan.sum(-1).to(torch.int32)[None].contiguous()
    index = torch.argsort(plan.to(torch.int8), dim=-1, descending=True, stable=True)
    return count, index.to(torch.int32)[None].contiguous()


def flex(tensors: Tensors, kept: Kept, backward: bool) -> Prepared:
    """PyTorch FlexAttention, compiled, with a BlockMask made of the same blocks."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, k, v = own(tensors, backward)
    count, index = lists(kept, q.device)
    none = torch.zeros_like(count), torch.zeros_like(index)
    lengths = (q.shape[2], k.shape[2])
    mask = BlockMask.from_kv_blocks(
        *none, count, index, BLOCK_SIZE=BLOCK, seq_lengths=lengths, compute_q_blocks=backward
    )
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return Prepared(lambda: compiled(q, k, v, block_mask=mask), (q, k, v))


def cudnn(tensors: Tensors, kept: Kept, backward: bool) -> Prepared:
    """cuDNN through torch's scaled_dot_product_attention; dense only."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not kept.all():
        raise UnsupportedError("cuDNN here is dense")
    q, k, v = own(tensors, backward)

    def run() -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return Prepared(run, (q, k, v))


def flash_attention_4(tensors: Tensors, kept: Kept, backward: bool) -> Prepared:
    """FlashAttention-4 (flash_attn.cute) with block-sparse tensors of 128 x 128."""
    import torch
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    q, k, v = own(tensors, backward, heads_first=False)

    def sparse(plan: Kept) -> Any:
        count, index = lists(plan, q.device)
        none = torch.zeros_like(count), torch.zeros_like(index)
        return BlockSparseTensorsTorch(*none, count, index, block_size=(BLOCK, BLOCK))

    blocks = {}
    if not kept.all():
        blocks["block_sparse_tensors"] = sparse(kept)
        if backward:
            turned = np.ascontiguousarray(kept.transpose(0, 2, 1))
            blocks["block_sparse_tensors_bwd"] = sparse(turned)

    def run() -> Any:
        out = flash_attn_func(q, k, v, **blocks)
        return out[0] if isinstance(out, tuple) else out

    return Prepared(run, (q, k, v), heads_first=False)


PEERS: dict[str, Peer] = {
    "FlexAttention": flex,
    "cuDNN": cudnn,
    "FlashAttention-4": flash_attention_4,
}
"""By the name that rows carry."""
