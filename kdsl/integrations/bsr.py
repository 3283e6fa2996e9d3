"""Block sparse rows of SciPy and torch: ``scipy.sparse.bsr_array``, ``torch.sparse_bsr_tensor``.

A matrix holds one head.  Its values are truths, one for each pair of a stored block, so that
partial blocks and ragged ends are kept exactly; its size is whole blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdsl.blocks import Blocks, stack_heads
from kdsl.errors import InputError
from kdsl.integrations.compressed import compress, elements, expand
from kdsl.integrations.required import required, tensor
from kdsl.specs import Attention


def to_scipy(
    rows: Blocks,
    spec: Attention | None = None,
    *,
    head: int = 0,
    batch: int = 0,
    tables: Mapping[str, Any] | None = None,
) -> Any:
    """A ``scipy.sparse.bsr_array`` of truths; ``spec`` gives the mask within partial blocks."""
    sparse = required("scipy.sparse", "scipy")
    indptr, indices, _ = compress(rows, head, batch)
    values = elements(rows, spec, head, batch, tables)
    shape = rows.rows * rows.block[0], rows.columns * rows.block[1]
    return sparse.bsr_array((values, indices, indptr), shape=shape, blocksize=rows.block)


def to_torch(
    rows: Blocks,
    spec: Attention | None = None,
    *,
    head: int = 0,
    batch: int = 0,
    tables: Mapping[str, Any] | None = None,
    device: Any = None,
) -> Any:
    """A ``torch.sparse_bsr`` tensor of truths; ``spec`` gives the mask within partial blocks.

    One head a tensor: torch's batched form wants as many blocks in every item.
    """
    torch = required("torch")
    indptr, indices, _ = compress(rows, head, batch)
    values = elements(rows, spec, head, batch, tables)
    size = (rows.rows * rows.block[0], rows.columns * rows.block[1])
    parts = (tensor(x, device) for x in (indptr, indices, values))
    return torch.sparse_bsr_tensor(*parts, size=size, check_invariants=True)


def from_bsr(
    matrices: Any,
    queries: int | None = None,
    keys: int | None = None,
    *,
    values: bool = True,
) -> Blocks:
    """Rows from a matrix of SciPy or torch, or from a sequence of them, one for each head.

    ``queries`` and ``keys`` say how many tokens are none of padding.  A stored block whose values
    inside the sequences are all other than zero is full, with some it is partial; one without any
    is left out.  With ``values=False`` they mean nothing, and every stored block is full.
    """
    if isinstance(matrices, Sequence):
        if not matrices:
            raise InputError("no matrices", hint="one for each head")
        return stack_heads([from_bsr(m, queries, keys, values=values) for m in matrices])
    if str(getattr(matrices, "layout", "")) == "torch.sparse_bsr":
        indptr, indices, held = (
            x().detach().cpu().numpy()
            for x in (matrices.crow_indices, matrices.col_indices, matrices.values)
        )
    elif getattr(matrices, "format", "") == "bsr":
        indptr, indices, held = matrices.indptr, matrices.indices, matrices.data
    else:
        raise InputError(
            f"{type(matrices).__name__} has no block sparse rows",
            hint="a torch.sparse_bsr tensor, or a SciPy matrix: x.tobsr(blocksize=(128, 128))",
        )
    if held.ndim != 3:
        raise InputError(
            f"values of shape {held.shape}", hint="[blocks, block_q, block_k]: one head a matrix"
        )
    size = tuple(int(n) for n in matrices.shape)
    limits = (size[0] if queries is None else queries, size[1] if keys is None else keys)
    block = (int(held.shape[1]), int(held.shape[2]))
    for tokens, held_tokens, n in zip(limits, size, block, strict=True):
        if not held_tokens - n < tokens <= held_tokens:
            raise InputError(
                f"{tokens} tokens in a matrix of {held_tokens}",
                hint=f"{held_tokens - n + 1} to {held_tokens}: the last block may be short",
            )
    truths = np.asarray(held) != 0 if values else None
    return expand(indptr, indices, block, *limits, truths)
