"""Where tokens live outside attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdsl.errors import InputError
from kdsl.parallel.work import Longs


@dataclass(frozen=True)
class Home:
    """Each rank's own tokens: in every layer but attention it computes these and no others.

    ``shards`` holds ``[first, end)`` of each rank, in tokens of the model's order, ascending and
    disjoint; one may be empty.  Tokens ``replicated`` = ``[first, end)`` live on every rank
    besides; they touch no shard.  Every token lives somewhere.  A rank's local tensor holds its
    tokens in ascending order (`tokens_of`), so replicated text before the video comes first.
    """

    tokens: int
    shards: tuple[tuple[int, int], ...]
    replicated: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not self.shards:
            raise InputError("no ranks to live on")
        low, high = self.replicated
        stretches = sorted([s for s in (*self.shards, self.replicated) if s[0] != s[1]])
        ascending = [s for s in self.shards if s[0] != s[1]]
        ends = [0, *(end for _, end in stretches)]
        starts = [*(first for first, _ in stretches), self.tokens]
        if ends != starts or ascending != sorted(ascending) or low > high:
            raise InputError(
                f"shards {self.shards} and {self.replicated} on every rank do not hold each of "
                f"{self.tokens} tokens exactly once, in order",
                hint="Home.even(tokens, world)",
            )

    @staticmethod
    def even(tokens: int, world: int, replicated: tuple[int, int] = (0, 0)) -> Home:
        """Equal shards of what is not replicated; the first ones are one longer where it is uneven.

        ``replicated`` lies at the start or the end of the sequence, as text does.
        """
        low, high = replicated
        if low == high:
            low = high = 0
        if not 0 <= low <= high <= tokens or (low > 0 and high < tokens):
            raise InputError(
                f"replicated tokens [{low}, {high}) of {tokens}",
                hint="at the start or the end of the sequence",
            )
        own = tokens - (high - low)
        base, extra = divmod(own, world)
        first, shards = high if low == 0 else 0, []
        for rank in range(world):
            size = base + (rank < extra)
            shards.append((first, first + size))
            first += size
        return Home(tokens, tuple(shards), (low, high))

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.shards)

    def tokens_of(self, rank: int) -> Longs:
        """Tokens in a rank's local tensor, in its order."""
        kept = [np.arange(*self.shards[rank]), np.arange(*self.replicated)]
        return np.sort(np.concatenate(kept).astype(np.int64))

    @cached_property
    def owner(self) -> Longs:
        """The rank that each token lives on; -1 where it lives on every rank."""
        out = np.full(self.tokens, -1, np.int64)
        for rank, (first, end) in enumerate(self.shards):
            out[first:end] = rank
        return out
