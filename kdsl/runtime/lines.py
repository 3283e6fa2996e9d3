"""Lines of several tensors brought together: by the kernel where they are on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def gather(sources: Sequence[Any], index: Any, out: Any = None) -> Any:
    """Lines ``[len(index), ...]`` of tensors ``[lines, ...]`` that stand one behind the other.

    ``index`` is int32 or int64 on their device, below the number of all lines; values are not
    looked at.  All have one dtype and one shape but for their lines.  ``out`` is filled if given;
    without it gradients go back, added up over equal numbers.
    """
    import torch

    one = sources[0]
    if out is None and torch.is_grad_enabled() and any(x.requires_grad for x in sources):
        return torch.cat(list(sources)).index_select(0, index)
    made = one.new_empty((len(index), *one.shape[1:])) if out is None else out
    if _by_kernel(sources, index, made):
        from kdsl.kernels.lines.launch import gather_lines
        from kdsl.runtime.torch_ops import on

        with on(one.device):
            gather_lines([_words(x) for x in sources], index, _words(made))
        return made
    whole = one if len(sources) == 1 else torch.cat(list(sources))
    return torch.index_select(whole, 0, index, out=made)


def _words(x: Any) -> Any:
    """A tensor's lines as int64."""
    import torch

    return x.reshape(len(x), -1).view(torch.int64)


def _by_kernel(sources: Sequence[Any], index: Any, out: Any) -> bool:
    """Whether the kernel takes these: on a GPU (or interpreted), contiguous, of whole words."""
    from kdsl.kernels.lines.launch import SOURCES, WIDEST, WORD
    from kdsl.runtime.arrays import interpreting

    held = (*sources, out)
    there = all(x.is_cuda for x in (*held, index)) or interpreting()
    size = out[:1].numel() * out.element_size()
    return (
        there
        and len(sources) <= SOURCES
        and 0 < size <= WIDEST * WORD
        and size % WORD == 0
        and all(x.is_contiguous() and x.data_ptr() % WORD == 0 for x in held)
        and all(len(x) for x in sources)
    )
