"""Shared memory of the pre-pass's last kernel, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsl.kernels.prepass.facts import ITEM_BYTES, halves
from kdsl.specs import Prepass
from kdsl.targets import Target

if TYPE_CHECKING:
    from kdsl.kernels.prepass.config import Config


SMALL = 2048
"""Of rows' largest entries, places of heads that are loaded ahead."""


def shared_bytes(spec: Prepass, config: Config, target: Target) -> int:
    """Bytes that a block asks for at most: tiles loaded ahead, and what changes hands between
    threads (sums and codes on their way out), which may be half of what is allowed for here."""
    del target
    entries = config.block * 2 * halves(spec)
    item = ITEM_BYTES[spec.dtype]
    return entries * item * (config.num_stages - 1) + entries * max(item, 2) + SMALL
