"""Calibration over samples: first the order of each head, then the mass of its blocks.

Both take q and k as they come by, layer after layer and step after step, and keep sums alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.calibrate.candidates import candidates as default_candidates
from kdsl.calibrate.rules import dense_text, row_weights
from kdsl.calibrate.scores import Scores, joined, mean, score
from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.orders import Order, name_of, per_head
from kdsl.runtime.statistics import block_statistics
from kdsl.statistics import BlockStatistics, sampled_rows

CELLS = 32
"""Rows and columns of a preview, at most."""


@dataclass(frozen=True)
class Settings:
    """What a search looks at.

    ``block`` is (queries, keys) in tokens; one block row in ``every`` is looked at, drawn with
    ``seed``; ``keep`` is the share of mass that densities are for, ``share`` the density that
    masses are for.  An entry is small below ``eps`` times uniform attention, 1 / tokens (the
    paper's 1e-3 at 17,500 tokens is 17 times uniform), and a block sparse when ``sigma`` of its
    entries are.  ``scale`` of the softmax defaults to ``head_dim ** -0.5``.
    """

    block: tuple[int, int] = (64, 64)
    every: int = 8
    keep: float = 0.95
    share: float = 0.3
    eps: float = 1.0
    sigma: float = 0.9
    scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.block) < 1 or self.every < 1:
            raise InputError("blocks and strides are at least 1", where=repr(self))
        shares = (self.keep, self.share, self.sigma)
        if not all(0 < x <= 1 for x in shares) or self.eps <= 0:
            raise InputError("keep, share and sigma lie in (0, 1], eps above 0", where=repr(self))


class OrderSearch:
    """Scores of candidate orders for every layer and head, from samples of q and k.

    ``observe`` each layer for one or two prompts and some steps; then ``choose``.
    """

    def __init__(
        self,
        grid: Grid,
        layers: int,
        candidates: Sequence[Order] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.grid, self.layers = grid, layers
        given = default_candidates(grid) if candidates is None else tuple(candidates)
        if not given or any(o.grid != grid for o in given):
            raise InputError("candidates are orders over the search's grid", where=repr(grid))
        self.candidates = given
        rows, columns = (-(-grid.tokens // b) for b in self.settings.block)
        self.looked = sampled_rows(rows, self.settings.every, self.settings.seed)
        self.text = dense_text(grid, self.settings.block)[self.looked]
        self.seen: list[list[Scores]] = [[] for _ in range(layers)]
        self.cells = min(len(self.looked), CELLS), min(columns, CELLS)
        self._previews: list[Any] = [0] * layers

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates."""
        return tuple(map(name_of, self.candidates))

    def observe(self, layer: int, q: Any, k: Any) -> None:
        """Add a sample: ``q [batch, heads, tokens, head_dim]``, ``k [batch, kv_heads, ...]``.

        In the model's order, RoPE applied; torch tensors or arrays.  See `block_statistics`.
        """
        s, eps = self.settings, self.settings.eps / self.grid.tokens
        scores, previews = [], []
        for order in self.candidates:
            found = block_statistics(
                q, k, order, block=s.block, rows=self.looked, eps=eps, scale=s.scale
            )
            options = {"keep": s.keep, "share": s.share, "sigma": s.sigma}
            scores.append(score(found, ~self.text, self.text, **options))
            previews.append(self._cells(found))
        if self.seen[layer] and self.seen[layer][0].mass.shape[1] != q.shape[1]:
            raise InputError(f"{q.shape[1]} heads, the samples before had others")
        self.seen[layer].append(joined(scores))
        self._previews[layer] = self._previews[layer] + np.stack(previews)

    def _cells(self, found: BlockStatistics) -> npt.NDArray[np.float64]:
        """How much of each cell the heaviest blocks fill, ``[heads, cells, cells]``."""
        mass = np.where(self.text, np.inf, found.mass.mean(0) * found.queries[:, None])
        flat = mass.reshape(len(mass), -1)
        count = max(int(self.settings.share * flat.shape[1]), 1)
        least = np.partition(flat, -count, axis=1)[:, -count]
        out = (mass >= least[:, None, None]).astype(np.float64)
        for axis, cells in zip((1, 2), self.cells, strict=True):
            starts = np.linspace(0, out.shape[axis], cells, endpoint=False).astype(int)
            sizes = np.diff(np.append(starts, out.shape[axis]))
            out = np.add.reduceat(out, starts, axis)
            out /= sizes[:, None] if axis == 1 else sizes
        return out

    def scores(self, layer: int) -> Scores:
        """Means over the samples of a layer; InputError where there are none."""
        if not self.seen[layer]:
            raise InputError(f"no sample of layer {layer}", hint="observe(layer, q, k) before")
        return mean(self.seen[layer])

    def choose(self, rule: str = "mass", alpha: float = 0.5) -> list[list[Order]]:
        """The order of every layer and head; rules as in `Scores.choose`."""
        return [
            [self.candidates[i] for i in self.scores(layer).choose(rule, alpha)]
            for layer in range(self.layers)
        ]

    def previews(self) -> npt.NDArray[np.uint8]:
        """For pictures: ``[layers, heads, candidates, cells, cells]``, 0 (empty) to 255 (kept)."""
        means = [p / len(s) for p, s in zip(self._previews, self.seen, strict=True)]
        # A cell reads empty or full only where it is.
        scaled = np.ceil(np.stack(means) * 254.999).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(scaled.swapaxes(1, 2))


class MassRecord:
    """The mean mass of every block, by range of sampling steps and layer.

    ``orders`` is ``[layers][heads]``; ``steps`` are ranges as `plans.attention.shared_steps` makes
    them.  Sums are float32 ``[heads, rows, columns]`` for each range and layer: in memory, or in
    files of a ``folder`` where they are larger.
    """

    def __init__(
        self,
        grid: Grid,
        orders: Sequence[Sequence[Order]],
        steps: Sequence[tuple[int, int]] = ((0, 0),),
        block: tuple[int, int] = (64, 64),
        scale: float | None = None,
        folder: Path | None = None,
    ) -> None:
        self.grid, self.block, self.scale, self.folder = grid, block, scale, folder
        self.orders = [list(layer) for layer in orders]
        self.steps = tuple(steps)
        self.weights = row_weights(grid.tokens, block[0])
        self.text = dense_text(grid, block)
        self.counts = np.zeros((len(self.steps), len(self.orders)), np.int64)
        self._sums: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def observe(self, layer: int, step: int, q: Any, k: Any) -> None:
        """Add a sample of a layer at a step; arguments as in `OrderSearch.observe`."""
        number = next((i for i, (a, b) in enumerate(self.steps) if a <= step <= b), None)
        if number is None:
            raise InputError(f"step {step}", hint=f"one within {list(self.steps)}")
        order = per_head(self.orders[layer])
        found = block_statistics(q, k, order, block=self.block, scale=self.scale)
        held = self._sum(number, layer)
        held += found.mass.sum(0)
        self.counts[number, layer] += len(found.mass)

    def _sum(self, number: int, layer: int) -> npt.NDArray[np.float32]:
        key = number, layer
        if key not in self._sums:
            shape = (len(self.orders[layer]), *self.text.shape)
            if self.folder is None:
                self._sums[key] = np.zeros(shape, np.float32)
            else:
                path = self.folder / f"mass-{number}-{layer}.npy"
                self._sums[key] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        return self._sums[key]

    def mass(self, number: int, layer: int) -> npt.NDArray[np.float32]:
        """The mean over samples, ``[heads, rows, columns]``; InputError where there are none."""
        if not self.counts[number, layer]:
            raise InputError(f"no sample of layer {layer}, steps {self.steps[number]}")
        return self._sum(number, layer) / np.float32(self.counts[number, layer])

    def __len__(self) -> int:
        return self.counts.size

    def __getitem__(self, at: int) -> npt.NDArray[np.float32]:
        """Masses of all ranges, and in each of all layers, as plans take them."""
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self.mass(*divmod(at, len(self.orders)))

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return (self[i] for i in range(len(self)))
