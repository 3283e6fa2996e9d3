"""Peers: what our users could run instead.  Each gives a callable, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import BLOCK
from kdsl.errors import UnsupportedError

Tensors = tuple[Any, Any, Any]
Kept = npt.NDArray[np.bool_]


def flex(tensors: Tensors, kept: Kept) -> Callable[[], Any]:
    """PyTorch FlexAttention, compiled, with a BlockMask made of the same blocks."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, k, v = tensors
    plan = torch.from_numpy(kept).to(q.device)
    count = plan.sum(-1).to(torch.int32)[None].contiguous()
    index = torch.argsort(plan.to(torch.int8), dim=-1, descending=True, stable=True)
    index = index.to(torch.int32)[None].contiguous()
    none = torch.zeros_like(count), torch.zeros_like(index)
    lengths = (q.shape[2], k.shape[2])
    mask = BlockMask.from_kv_blocks(
        *none, count, index, BLOCK_SIZE=BLOCK, seq_lengths=lengths, compute_q_blocks=False
    )
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask)


def cudnn(tensors: Tensors, kept: Kept) -> Callable[[], Any]:
    """cuDNN through torch's scaled_dot_product_attention; dense only."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not kept.all():
        raise UnsupportedError("cuDNN here is dense")
    q, k, v = tensors

    def run() -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return run


def flash_attention_4(tensors: Tensors, kept: Kept) -> Callable[[], Any]:
    """FlashAttention-4 (flash_attn.cute) with block-sparse tensors of 128 x 128."""
    import torch
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    q, k, v = (t.transpose(1, 2).contiguous() for t in tensors)
    sparse = None
    if not kept.all():
        plan = torch.from_numpy(kept).to(q.device)
        count = plan.sum(-1).to(torch.int32)[None].contiguous()
        index = torch.argsort(plan.to(torch.int8), dim=-1, descending=True, stable=True)
        index = index.to(torch.int32)[None].contiguous()
        sparse = BlockSparseTensorsTorch(
            torch.zeros_like(count),
            torch.zeros_like(index),
            count,
            index,
            block_size=(BLOCK, BLOCK),
        )

    def run() -> Any:
        out = flash_attn_func(q, k, v, block_sparse_tensors=sparse)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return run


PEERS: dict[str, Callable[[Tensors, Kept], Callable[[], Any]]] = {
    "FlexAttention": flex,
    "cuDNN": cudnn,
    "FlashAttention-4": flash_attention_4,
}
"""By the name that rows carry."""
