"""Statistics of attention maps: by the kernel where tensors are on a GPU, else in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, UnsupportedError
from kdsl.orders import Order
from kdsl.reference import statistics as reference
from kdsl.runtime.arrays import interpreting
from kdsl.statistics import BlockStatistics

BLOCKS = (16, 32, 64, 128, 256)
"""Sizes of blocks that maps are cut in."""


def block_statistics(
    q: Any,
    k: Any,
    order: Order,
    *,
    block: tuple[int, int] = (64, 64),
    rows: npt.NDArray[np.int64] | None = None,
    eps: float | None = None,
    scale: float | None = None,
) -> BlockStatistics:
    """Mass, maximum and small entries of the blocks of ``softmax(scale q k^T)`` in stored order.

    ``q [batch, heads, tokens, head_dim]``, ``k [batch, kv_heads, tokens, head_dim]``, in the
    model's order with RoPE applied, torch tensors or arrays.  ``order`` is one for all heads or
    one for each; ``rows`` picks block rows (all without it); ``eps`` defaults to uniform attention,
    1 / tokens, ``scale`` to ``head_dim ** -0.5``.  The map is never in memory.  CUDA tensors go
    through the kernel, which the call waits for; the rest is computed in float32 on the CPU.
    InputError where shapes do not fit.
    """
    checked(q, k, order, block)
    tokens = q.shape[2]
    picked = _rows(rows, -(-tokens // block[0]))
    eps = 1 / tokens if eps is None else eps
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not _by_kernel(q):
        return reference.block_statistics(
            q, k, order.index(), block=block, rows=picked, eps=eps, scale=scale, dtype=np.float32
        )
    import torch

    from kdsl.kernels.statistics.launch import statistics
    from kdsl.runtime.torch_ops import on

    index = torch.from_numpy(np.atleast_2d(order.index()).astype(np.int32)).to(q.device)
    looked = torch.from_numpy(picked.astype(np.int32)).to(q.device)
    with on(q.device):
        found = statistics(q, k, index, looked, block, eps, scale)
    mass, peak, below = (x.cpu().numpy() for x in found)
    total = mass.sum(-1, keepdims=True, dtype=np.float64)
    return BlockStatistics(picked, block, tokens, eps, mass / total, peak, below)


def output_error(
    q: Any,
    k: Any,
    v: Any,
    order: Order,
    kept: npt.NDArray[np.bool_],
    *,
    block: tuple[int, int] = (64, 64),
    rows: npt.NDArray[np.int64] | None = None,
    scale: float | None = None,
) -> npt.NDArray[np.float64]:
    """Relative Frobenius error of block-sparse against dense attention, ``[batch, heads]``.

    ``kept [heads, rows, columns]`` are the blocks in stored order that stay; ``rows`` picks the
    block rows that are compared.  On a GPU both are computed by attention's own operators, over
    all rows.
    """
    checked(q, k, order, block)
    if tuple(v.shape[:3]) != tuple(k.shape[:3]):
        raise InputError(f"v has shape {tuple(v.shape)}", hint=f"as k: {tuple(k.shape)}")
    count, columns = (-(-q.shape[2] // b) for b in block)
    if kept.shape != (q.shape[1], count, columns):
        raise InputError(f"kept has shape {kept.shape}", hint=f"{(q.shape[1], count, columns)}")
    if _by_kernel(q):
        changed, size = _by_operators(q, k, v, order, kept, block, scale)
    else:
        scale = q.shape[3] ** -0.5 if scale is None else scale
        picked = _rows(rows, count)
        parts = reference.output_error(
            q, k, v, order.index(), kept, block=block, rows=picked, scale=scale, dtype=np.float32
        )
        changed, size = (x.sum(-1) for x in parts)
    return np.sqrt(np.divide(changed, size, out=np.zeros_like(changed), where=size > 0))


def _by_operators(
    q: Any,
    k: Any,
    v: Any,
    order: Order,
    kept: npt.NDArray[np.bool_],
    block: tuple[int, int],
    scale: float | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    from kdsl.masks import blocks
    from kdsl.runtime.builder import build
    from kdsl.specs import Attention

    common: dict[str, Any] = {
        "tokens": order.grid,
        "heads": q.shape[1],
        "kv_heads": k.shape[1],
        "head_dim": q.shape[3],
        "dtype": str(q.dtype).removeprefix("torch."),
        "scale": scale,
        "block": block,
    }
    dense = build(Attention(**common))(q, k, v).double()
    spec = Attention(**common, order=order, mask=blocks("kept", order=order, block=block))
    sparse = build(spec)(q, k, v, tables={"kept": kept.astype(np.uint8)}).double()
    parts = ((sparse - dense).square().sum((2, 3)), dense.square().sum((2, 3)))
    changed, size = (x.cpu().numpy() for x in parts)
    return changed, size


def checked(q: Any, k: Any, order: Order, block: tuple[int, int]) -> None:
    """InputError where q, k, order and blocks do not fit each other."""
    for name, x in (("q", q), ("k", k)):
        if len(getattr(x, "shape", ())) != 4:
            raise InputError(f"{name} is no tensor", hint="[batch, heads, tokens, head_dim]")
    batch, heads, tokens, head_dim = q.shape
    shared = int(k.shape[1])
    if (k.shape[0], *k.shape[2:]) != (batch, tokens, head_dim) or not shared or heads % shared:
        raise InputError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)}",
            hint="[batch, heads, tokens, head_dim], with kv_heads that divide heads in k",
        )
    if order.tokens != tokens:
        raise InputError(f"an order over {order.tokens} tokens for {tokens}", where=repr(order))
    if len(order.parts) not in (1, heads):
        raise InputError(f"orders for {len(order.parts)} heads of {heads}")
    if len(block) != 2 or any(b not in BLOCKS for b in block):
        raise InputError(f"blocks of {block}", hint=f"(queries, keys), each one of {BLOCKS}")


def _rows(rows: npt.NDArray[np.int64] | None, count: int) -> npt.NDArray[np.int64]:
    if rows is None:
        return np.arange(count)
    picked = np.asarray(rows, np.int64)
    if picked.size and (picked.min() < 0 or picked.max() >= count or (np.diff(picked) < 1).any()):
        raise InputError("block rows are not ascending numbers of rows", hint=f"0 to {count - 1}")
    return picked


def _by_kernel(q: Any) -> bool:
    if isinstance(q, np.ndarray):
        return False
    if str(q.dtype).removeprefix("torch.") not in ("float16", "bfloat16", "float32"):
        raise UnsupportedError(f"statistics of {q.dtype}", hint="float16, bfloat16 or float32")
    return bool(q.device.type == "cuda" or interpreting())
