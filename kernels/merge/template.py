"""Partial results of one softmax put together in one pass: Triton, sm_80 and later.

A program takes `ROWS` queries of any head.  Weights of both parts are those of FlashAttention's
split keys (arXiv 2205.14135, section 3.1): exp of each log-sum-exp less the joint one.
"""

import triton
import triton.language as tl


@triton.jit
def merge_rows(
    total, log_total, out, lse, merged, joint, count,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``total``, ``out`` and ``merged`` are ``[count, D]``, log-sum-exps float32 ``[count]``, all
    contiguous; ``merged`` may be ``total`` and ``joint`` may be ``log_total``."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    mine = tl.load(log_total + rows, mask=inside, other=-float("inf"))
    theirs = tl.load(lse + rows, mask=inside, other=-float("inf"))
    top = tl.maximum(mine, theirs)
    # exp(-inf - -inf) would be NaN: where neither sees anything both weights are exp(-inf).
    level = tl.where(top == -float("inf"), 0.0, top)
    x, y = tl.exp(mine - level), tl.exp(theirs - level)
    both = x + y
    nothing = both == 0.0
    some = tl.where(nothing, 1.0, both)
    tl.store(joint + rows, tl.where(nothing, -float("inf"), level + tl.log(some)), mask=inside)
    share = 1.0 / some

    columns = tl.arange(0, WIDTH)
    at = rows[:, None] * D + columns[None, :]
    there = inside[:, None] & (columns < D)[None, :]
    a = tl.load(total + at, mask=there, other=0.0).to(tl.float32)
    b = tl.load(out + at, mask=there, other=0.0).to(tl.float32)
    made = a * (x * share)[:, None] + b * (y * share)[:, None]
    tl.store(merged + at, made.to(merged.dtype.element_ty), mask=there)
