"""Shared memory of the pre-pass's last kernel, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsl.kernels.prepass.facts import ITEM_BYTES, halves
from kdsl.specs import Prepass
from kdsl.targets import Target

if TYPE_CHECKING:
    from kdsl.kernels.prepass.config import Config


def shared_bytes(spec: Prepass, config: Config, target: Target) -> int:
    """Bytes that a block asks for."""
    del target
    entries = config.block * 2 * halves(spec)
    return entries * 4 + entries * ITEM_BYTES[spec.dtype] * (config.num_stages - 1) + 1024
