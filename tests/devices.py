"""Where kernels run in tests: Triton's interpreter on the CPU, or the GPU that is here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hypothesis import settings

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
GPU = "h100" if DEVICE == "cpu" else None
"""What operators are built for: in the interpreter a GPU with everything the template can use."""


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote reads NaN: `torch.empty` comes filled with it, on any device."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """The host may not wait for the GPU: what torch knows of it is an error."""
    with warnings.catch_warnings():
        # torch says that it does not know of everything.
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def examples(few: int) -> int:
    """So many examples of a slow property, and at night as many times more as of any other."""
    return few * settings.default.max_examples // 50
