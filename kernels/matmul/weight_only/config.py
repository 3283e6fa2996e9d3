"""Configurations of products whose weights alone are quantized: what may be chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdsl.settings import checked

SPACE: dict[str, tuple[Any, ...]] = {
    "template": ("stream", "portable"),
    "block_m": (8, 16, 24, 32, 64, 128),
    "block_n": (16, 32, 64, 128),
    "block_k": (32, 64, 128),
    "num_warps": (4, 5, 6, 7, 8, 10, 12, 14, 16),
    "num_stages": (1, 2, 3, 4, 5),
    "group": (1, 8),
    "split": (1, 2, 4, 8),
    "hold": (0, 1),
    "blocks": (1, 2, 3, 4),
    "table": (0, 1),
}
"""Choices by name; `rule.problem` says which go together for a spec and a GPU."""


@dataclass(frozen=True)
class Config:
    """One way to run a kernel.

    ``portable``: tiles of ``block_m`` rows by ``block_n`` columns in steps of ``block_k``,
    ``num_stages`` of them loaded ahead, ``group`` rows of tiles neighbours in time.

    ``stream``: tiles of all rows, rounded up to ``block_m``, by ``block_n`` columns; ``num_warps``
    share K, each in pieces of ``block_k``, and so do the ``split`` blocks of a cluster; each loads
    ``num_stages`` tiles ahead.  With ``hold`` x stays in registers; ``blocks`` share a
    multiprocessor; with ``table`` pairs of codes are looked up in shared memory.
    """

    template: str = "stream"
    block_m: int = 8
    block_n: int = 16
    block_k: int = 128
    num_warps: int = 8
    num_stages: int = 2
    group: int = 1
    split: int = 1
    hold: int = 0
    blocks: int = 1
    table: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        return Config(**checked(value, SPACE))
