"""Ranks as a grid: which ranks share heads, and which pass keys to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdsl.errors import InputError, reading
from kdsl.specs.common import positive, whole

Nearest = Literal["ulysses", "ring"]


@dataclass(frozen=True)
class Mesh:
    """``ulysses`` x ``ring`` ranks.

    A *Ulysses group* holds one chunk of the sequence together and divides the heads between its
    members; a *ring* has the same heads and divides the sequence.  ``nearest`` says which of the
    two consecutive ranks belong to: with ``"ulysses"`` rank ``r * ulysses + u`` is member ``u`` of
    its Ulysses group and member ``r`` of its ring, with ``"ring"`` it is rank ``u * ring + r``.
    Plans are indexed through `u_of` and `r_of` alone, never by ``rank % ring``.
    """

    ulysses: int
    ring: int = 1
    nearest: Nearest = "ulysses"

    def __post_init__(self) -> None:
        for name in ("ulysses", "ring"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        if self.nearest not in ("ulysses", "ring"):
            raise InputError(f"nearest={self.nearest!r}", hint="'ulysses' or 'ring'")

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.ulysses * self.ring

    def u_of(self, rank: int) -> int:
        """The rank's place in its Ulysses group: which share of the heads it has."""
        self._known(rank)
        return rank % self.ulysses if self.nearest == "ulysses" else rank // self.ring

    def r_of(self, rank: int) -> int:
        """The rank's place in its ring: which chunk of the sequence it has."""
        self._known(rank)
        return rank // self.ulysses if self.nearest == "ulysses" else rank % self.ring

    def rank_of(self, u: int, r: int) -> int:
        """The rank at a place."""
        if not (0 <= u < self.ulysses and 0 <= r < self.ring):
            raise InputError(f"no rank at u={u}, r={r}", where=repr(self))
        return r * self.ulysses + u if self.nearest == "ulysses" else u * self.ring + r

    def ulysses_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that divide the heads of one chunk, this one among them, by `u_of`."""
        r = self.r_of(rank)
        return tuple(self.rank_of(u, r) for u in range(self.ulysses))

    def ring_group(self, rank: int) -> tuple[int, ...]:
        """Ranks of one ring, by `r_of`: each sends to the next, hears from the one before."""
        u = self.u_of(rank)
        return tuple(self.rank_of(u, r) for r in range(self.ring))

    def source(self, rank: int, step: int) -> int:
        """The rank whose chunk of keys is at ``rank`` in a step of the ring.

        Chunks travel upwards, so after ``step`` passes it is ``step`` places *below*.
        """
        return self.rank_of(self.u_of(rank), (self.r_of(rank) - step) % self.ring)

    def _known(self, rank: int) -> None:
        if not 0 <= rank < self.world:
            raise InputError(f"rank {rank} of {self.world}", where=repr(self))

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {"ulysses": self.ulysses, "ring": self.ring, "nearest": self.nearest}

    @staticmethod
    @reading("mesh")
    def from_json(value: Mapping[str, Any]) -> Mesh:
        """The mesh written by `to_json`."""
        whole(value, {"ulysses", "ring", "nearest"}, "mesh")
        return Mesh(value["ulysses"], value["ring"], value["nearest"])


def meshes(world: int) -> tuple[Mesh, ...]:
    """Every U x R of a number of ranks, from all Ulysses to all ring."""
    return tuple(Mesh(u, world // u) for u in range(world, 0, -1) if world % u == 0)
