"""Partial results of one softmax, put together."""

from __future__ import annotations

from typing import Any


def merge(total: Any, log_total: Any, out: Any, lse: Any) -> tuple[Any, Any]:
    """Attention over two disjoint sets of keys from attention over each.

    ``total`` and ``out`` are ``[..., head_dim]``, ``log_total`` and ``lse`` their natural
    log-sum-exps ``[...]``, minus infinity where a query sees nothing: its ``out`` is 0 then, and
    stays without weight.  ``total`` and ``log_total`` are float32 (float64 where the parts are) and
    so are the results; ``out`` may be of fewer bits.  No value is looked at on the host.
    """
    import torch

    joint = torch.logaddexp(log_total, lse)
    # exp(-inf - -inf) would be NaN: where neither sees anything both weights are exp(-inf).
    top = torch.where(joint == float("-inf"), 0.0, joint)
    mine, theirs = (torch.exp(x - top).unsqueeze(-1) for x in (log_total, lse))
    return total * mine + out * theirs, joint
