"""What all specs share: canonical JSON, hashes, small checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError

T = TypeVar("T")

DTYPES = ("bfloat16", "float16", "float32")


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no blanks; floats must be hex strings already."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Hash of a canonical JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def positive(value: Any, name: str) -> None:
    """SpecError unless a value is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{name}={value!r}", hint=f"{name} of at least 1")


def optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """A reader of JSON values that lets None through."""
    return lambda value: None if value is None else read(value)


def as_array(x: Any, dtype: Any = None) -> npt.NDArray[Any]:
    """A NumPy view or copy of an array or torch tensor (bfloat16 as float32)."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x, dtype=dtype)
