"""The truth about `Permute`: NumPy, exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.orders import PerHead
from kdsl.specs import Permute, as_array

Array = npt.NDArray[Any]


def permute(
    spec: Permute, x: Any, tables: Mapping[str, Array] | None = None
) -> Array | tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """``x [batch, heads, tokens, head_dim]`` in stored order, or its (codes, scales).

    Position ``s`` of a head's result is token ``order.index()[s]`` of the input.  bfloat16 travels
    as float32 values.  Codes are int8 in the shape of ``x``; scales float32 ``[batch, heads, groups
    of tokens, groups of channels]``.  InputError where shape or tables do not fit the spec.
    """
    values = as_array(x)
    wanted = (spec.heads, spec.grid.tokens, spec.head_dim)
    if values.ndim != 4 or values.shape[1:] != wanted:
        raise InputError(
            f"x has shape {values.shape}",
            where="[batch, heads, tokens, head_dim]",
            hint=f"[batch, {', '.join(map(str, wanted))}]",
        )
    index = spec.order.index(tables)
    if isinstance(spec.order, PerHead):
        out = np.take_along_axis(values, index[None, :, :, None], axis=2)
    else:
        out = np.take(values, index, axis=2)
    return out if spec.layout is None else spec.layout.quantize(out)
