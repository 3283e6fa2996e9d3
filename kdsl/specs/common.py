"""What all specs share: canonical JSON, hashes, small checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.grid import count

T = TypeVar("T")

DTYPES = ("bfloat16", "float16", "float32")


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no blanks; floats must be hex strings already."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Hash of a canonical JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


MOST_TOKENS = 2**30
"""Kernels count tokens in 32 bits, with room for a tile beyond the end."""


def positive(value: object, name: str) -> int:
    """A count as a Python int; SpecError unless it is an integer of at least 1."""
    counted = count(value)
    if counted is None:
        kind = "" if isinstance(value, int) else "a Python int: "
        raise SpecError(f"{name}={value!r}", hint=f"{kind}{name} of at least 1")
    return counted


def check_length(tokens: int, what: str) -> None:
    """SpecError for a sequence that no kernel can count."""
    if tokens > MOST_TOKENS:
        raise SpecError(f"{what}: {tokens} tokens", hint=f"at most {MOST_TOKENS} (2**30)")


def whole(value: Mapping[str, Any], names: Collection[str], what: str) -> None:
    """SpecError where a JSON object has other fields than these."""
    extra, missing = sorted(set(value) - set(names)), sorted(set(names) - set(value))
    if extra or missing:
        fault = f"unknown field {extra[0]!r}" if extra else f"no field {missing[0]!r}"
        raise SpecError(f"malformed {what}: {fault}", hint=", ".join(sorted(names)))


def optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """A reader of JSON values that lets None through."""
    return lambda value: None if value is None else read(value)


def as_array(x: Any, dtype: Any = None) -> npt.NDArray[Any]:
    """A NumPy view or copy of an array or torch tensor (bfloat16 as float32)."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x, dtype=dtype)
