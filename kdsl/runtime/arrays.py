"""Arrays in and out: results as the kind of array the caller gave, NumPy's onto the GPU."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.specs import as_array


def like(x: Any, model: Any, dtype: Any = None) -> Any:
    """An array as the kind that ``model`` is, on its device, in its dtype unless one is given."""
    if isinstance(model, np.ndarray):
        return as_array(x).astype(model.dtype if dtype is None else dtype, copy=False)
    import torch

    kind = model.dtype if dtype is None else torch.from_numpy(np.zeros(0, dtype)).dtype
    return torch.from_numpy(np.ascontiguousarray(x)).to(device=model.device, dtype=kind)


def without_modes() -> Any:
    """Within it torch makes tensors with memory, also while calls are traced with fake ones.

    For what is made once and kept: a fake tensor would outlive its trace.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def uploaded(x: npt.NDArray[Any], dtype: str, device: Any) -> Any:
    """A NumPy array as a torch tensor of a dtype on a device; the array stays as it is.

    bfloat16 values travel as float32 and are rounded to nearest here.
    """
    import torch

    # Torch neither takes negative strides nor likes arrays that must not be written.
    held = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    return held.to(device=device, dtype=getattr(torch, dtype))


def interpreting() -> bool:
    """Whether Triton runs in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
