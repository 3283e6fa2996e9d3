"""Which arguments of the attention kernels change from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdsl.kernels.launching import prepared as launches

PLAIN = ("q", "k", "v", "o", "lse", "counter", "q_stored", "k_stored", "v_stored")
MOVING = {
    name: name.removesuffix("_tail")
    for name in (
        *PLAIN, "q_scale", "k_scale", "v_scale", "v_sum", "q_tail", "k_tail", "v_tail", "o_tail",
    )
}  # fmt: skip
"""Arguments that do, and the tensors they are or describe: a tail is the columns' second part."""
HELD = ("start", "full", "partial", "index", "tiles")
"""Those of the lists: other ones in each call where they are made in it, as the tables are."""


def keep(
    prepared: dict[Any, launches.Prepared],
    key: Any,
    kernel: Any,
    names: Sequence[str],
    values: Mapping[str, Any],
    programs: int,
) -> None:
    """Prepare a launch that was just made, see `kdsl.kernels.launching.prepared.keep`."""
    launches.keep(prepared, key, kernel, names, values, programs, MOVING, HELD)
