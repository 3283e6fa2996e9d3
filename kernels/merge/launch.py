"""Run the merging kernel: one launch, nothing read on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WARPS = 4
ELEMENTS = 4096
"""Of a program: 32 a thread, two 16-byte loads of each part in flight."""


def constants(head_dim: int) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    width = 1 << (head_dim - 1).bit_length()
    return {"D": head_dim, "WIDTH": width, "ROWS": max(ELEMENTS // width, 1)}


def merge_rows(total: Tensor, log_total: Tensor, out: Tensor, lse: Tensor, merged: Tensor) -> None:
    """Fill ``merged`` and ``log_total``; see the kernel."""
    from kdsl.kernels.merge import template

    fixed, count = constants(out.shape[-1]), lse.numel()
    if count:
        template.merge_rows[(-(-count // fixed["ROWS"]),)](
            total, log_total, out, lse, merged, log_total, count, **fixed, num_warps=WARPS
        )
