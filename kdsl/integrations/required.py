"""Packages that a user may not have, and the arrays they hold."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, UnsupportedError


def required(module: str, package: str = "") -> Any:
    """A peer's module; UnsupportedError names the ``package`` that has to be installed for it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise UnsupportedError(
            f"{name} is not installed here, or does not import: {error}",
            where=module,
            hint=f"pip install {name}",
        ) from error


def integers(name: str, x: Any, axes: int) -> npt.NDArray[np.int64]:
    """Values of a tensor or array of integers or truth values; waits for its device."""
    found = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if found.dtype.kind not in "iub" or found.ndim != axes:
        raise InputError(
            f"{name} is {found.dtype} of shape {found.shape}", hint=f"integers with {axes} axes"
        )
    return found.astype(np.int64)


def tensor(x: npt.ArrayLike, device: Any = None) -> Any:
    """A torch tensor with memory of its own."""
    return required("torch").tensor(np.asarray(x), device=device)
