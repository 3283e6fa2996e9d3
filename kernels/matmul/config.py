"""Configurations of the matmul templates: what may be chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdsl.settings import checked

SPACE: dict[str, tuple[Any, ...]] = {
    "template": ("portable", "hopper"),
    "block_m": (16, 32, 64, 128, 256),
    "block_n": (32, 64, 128, 256),
    "block_k": (64, 128, 256),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5, 6, 8),
    "group": (1, 4, 8, 12, 16),
    "chunks": (1, 2, 4),
}
"""Choices by name; `rule.problem` says which go together for a spec and a GPU."""


@dataclass(frozen=True)
class Config:
    """One way to run a kernel.

    A tile is ``block_m`` rows by ``block_n`` columns, computed in steps of ``block_k``, of which
    ``num_stages`` are loaded ahead; ``group`` rows of tiles are neighbours in time.  Of Hopper's
    template ``num_warps`` are those that multiply, and a tile leaves in ``chunks`` of its columns.
    """

    block_m: int = 128
    block_n: int = 128
    block_k: int = 128
    num_warps: int = 8
    num_stages: int = 3
    group: int = 8
    chunks: int = 1
    template: str = "portable"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        return Config(**checked(value, SPACE))
