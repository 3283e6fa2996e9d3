"""Shared memory of the attention template, from its configuration alone."""

from __future__ import annotations

from kdsl.kernels.attention.config import ITEM_BYTES, Config
from kdsl.specs import Attention
from kdsl.targets import Target


def shared_bytes(spec: Attention, config: Config, target: Target) -> int:
    """Bytes a block asks for: queries, and keys and values for each stage in flight."""
    item = ITEM_BYTES[spec.dtype]
    queries = config.block_m * spec.head_dim * item
    keys = config.block_n * spec.head_dim * item
    if target.capability < (9, 0):
        return queries + 2 * max(config.num_stages - 1, 1) * keys
    return queries + 2 * config.num_stages * keys + 1024
