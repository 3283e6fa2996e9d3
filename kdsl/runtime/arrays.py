"""Results as the kind of array the caller gave."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt


def like(x: npt.NDArray[Any], model: Any, dtype: Any = None) -> Any:
    """An array as the kind that ``model`` is, on its device, in its dtype unless one is given."""
    if isinstance(model, np.ndarray):
        return x.astype(model.dtype if dtype is None else dtype)
    import torch

    kind = model.dtype if dtype is None else torch.float32
    return torch.from_numpy(np.ascontiguousarray(x)).to(device=model.device, dtype=kind)


def without_modes() -> Any:
    """Within it torch makes tensors with memory, also while calls are traced with fake ones.

    For what is made once and kept: a fake tensor would outlive its trace.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


_said = False


def say_once(frames: int = 4) -> None:
    """Warn, once a process, that there is no GPU; the caller's call is so many frames up."""
    global _said
    if not _said:
        _said = True
        warnings.warn(
            "no CUDA GPU here: kdsl runs the NumPy reference, which is exact and slow",
            stacklevel=frames,
        )
