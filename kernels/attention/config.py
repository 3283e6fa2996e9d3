"""Configurations of the attention template: what may be chosen, what is legal, what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdsl.errors import ConfigError
from kdsl.expr import Table
from kdsl.specs import Attention

SPACE: dict[str, tuple[Any, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64, 128),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "loads": ("pointer", "descriptor"),
}
"""Choices by name; `legal` says which go together for a spec and a GPU."""

ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
"""Compute capabilities the template is written and compiled for."""

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Config:
    """One way to run the kernel: tile of queries and keys, warps, pipeline depth, kind of loads."""

    block_m: int = 128
    block_n: int = 64
    num_warps: int = 8
    num_stages: int = 2
    loads: Literal["pointer", "descriptor"] = "pointer"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        unknown = sorted(set(value) - set(SPACE))
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}", hint=", ".join(SPACE))
        for name, choice in value.items():
            if choice not in SPACE[name]:
                raise ConfigError(f"{name}={choice!r}", hint=f"one of {SPACE[name]}")
        return Config(**value)


def table_dtype(table: Table) -> str:
    """What a table's entries are on the device.

    Those of tokens are int32, which is loaded ahead and spreads over a tile without a detour
    through shared memory.  Maps of blocks are large, and one entry a tile is read: they stay.
    """
    return table.dtype if len(table.shape) == 3 else "int32"


def head_parts(head_dim: int) -> tuple[int, int]:
    """A head dimension as two powers of two (the second may be 0): 80 = 64 + 16."""
    first = 1 << (head_dim.bit_length() - 1)
    return first, head_dim - first


def describable(spec: Attention) -> bool:
    """Whether blocks are contiguous rows, as tensor descriptors need: stored order = original."""
    return spec.query_order.is_identity and spec.kv_order.is_identity
