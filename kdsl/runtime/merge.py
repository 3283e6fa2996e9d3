"""Partial results of one softmax, put together: by the kernel where tensors are on a GPU."""

from __future__ import annotations

from typing import Any


def merge(total: Any, log_total: Any, out: Any, lse: Any, dtype: Any = None) -> tuple[Any, Any]:
    """Attention over two disjoint sets of keys from attention over each.

    ``total`` and ``out`` are ``[..., head_dim]``, ``log_total`` and ``lse`` their natural
    log-sum-exps ``[...]``, minus infinity where a query sees nothing: its ``out`` is 0 then, and
    stays without weight.  Sums are float32 (float64 where the log-sum-exps are), and so is the
    result, or rounded once to ``dtype``.  ``total`` and ``log_total`` may be overwritten.  No value
    is looked at on the host.
    """
    import torch

    kind = dtype or log_total.dtype
    if _by_kernel(total, log_total, out, lse):
        from kdsl.kernels.merge.launch import merge_rows
        from kdsl.runtime.torch_ops import on

        merged = total if total.dtype == kind else torch.empty_like(total, dtype=kind)
        with on(out.device):
            merge_rows(total, log_total, out, lse, merged)
        return merged, log_total
    joint = torch.logaddexp(log_total, lse)
    # exp(-inf - -inf) would be NaN: where neither sees anything both weights are exp(-inf).
    top = torch.where(joint == float("-inf"), 0.0, joint)
    mine, theirs = (torch.exp(x - top).unsqueeze(-1) for x in (log_total, lse))
    return (total * mine + out * theirs).to(kind), joint


def _by_kernel(*tensors: Any) -> bool:
    """Whether the kernel takes these: contiguous, on a GPU (or interpreted), no float64."""
    import torch

    from kdsl.runtime.arrays import interpreting

    there = all(x.is_cuda for x in tensors) or interpreting()
    plain = all(x.is_contiguous() and x.dtype != torch.float64 for x in tensors)
    return there and plain and not any(x.requires_grad for x in tensors)
