"""Calibration over samples: first the order of each head, then the mass of its blocks.

Both take q and k as they come by, layer after layer and step after step, and keep sums alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.calibrate.candidates import candidates as default_candidates
from kdsl.calibrate.rules import dense_text, row_weights
from kdsl.calibrate.scores import Scores, heaviest, joined, mean, score
from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.orders import Order, name_of, per_head
from kdsl.runtime.statistics import block_statistics
from kdsl.statistics import block_sizes, sampled_rows

CELLS = 32
"""Rows and columns of a preview, at most."""


@dataclass(frozen=True)
class Settings:
    """What a search looks at.

    ``block`` is (queries, keys) in tokens; one block row in ``every`` is looked at, drawn with
    ``seed`` (of fewer than about 50 the choice of an order is noisy).  ``keep`` is the share of
    mass that densities are for, ``shares`` the densities that masses are for, the wanted one first.
    An entry is small below ``eps`` times uniform attention, 1 / tokens (the paper's 1e-3 at 17,500
    tokens is 17 times uniform), and a block sparse when ``sigma`` of its entries are.  ``scale`` of
    the softmax defaults to ``head_dim ** -0.5``.
    """

    block: tuple[int, int] = (64, 64)
    every: int = 8
    keep: float = 0.95
    shares: tuple[float, ...] = (0.3,)
    eps: float = 1.0
    sigma: float = 0.9
    scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.block) < 1 or self.every < 1:
            raise InputError("blocks and strides are at least 1", where=repr(self))
        shares = (self.keep, self.sigma, *self.shares)
        if not all(0 < x <= 1 for x in shares) or not self.shares or self.eps <= 0:
            raise InputError("keep, shares and sigma lie in (0, 1], eps above 0", where=repr(self))


class OrderSearch:
    """Scores of candidate orders for every layer and head, from samples of q and k.

    ``observe`` each layer for two prompts or more and some steps; then ``choose``.  Held meanwhile:
    the mass of looked-at rows in every order, ``4 * layers * candidates * heads * rows / every *
    columns`` bytes.
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
        check_text(grid, given)
        self.candidates = given
        rows, columns = (-(-grid.tokens // b) for b in self.settings.block)
        self.looked = sampled_rows(rows, self.settings.every, self.settings.seed)
        self.text = dense_text(grid, self.settings.block)[self.looked]
        self.seen: list[list[Scores]] = [[] for _ in range(layers)]
        self.cells = min(len(self.looked), CELLS), min(columns, CELLS)
        self._sums: list[npt.NDArray[np.float32] | None] = [None] * layers

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates."""
        return tuple(map(name_of, self.candidates))

    def observe(self, layer: int, q: Any, k: Any) -> None:
        """Add a sample: ``q [batch, heads, tokens, head_dim]``, ``k [batch, kv_heads, ...]``.

        In the model's order, RoPE applied; torch tensors or arrays.  See `block_statistics`.
        """
        s, eps, before = self.settings, self.settings.eps / self.grid.tokens, self._sums[layer]
        if before is not None and before.shape[1] != q.shape[1]:
            raise InputError(f"{q.shape[1]} heads, the samples before had {before.shape[1]}")
        options: dict[str, Any] = {"keep": s.keep, "shares": s.shares, "sigma": s.sigma}
        scores, masses = [], []
        for number, order in enumerate(self.candidates):
            found = block_statistics(
                q, k, order, block=s.block, rows=self.looked, eps=eps, scale=s.scale
            )
            known = None if before is None else before[number]
            scores.append(score(found, known, ~self.text, self.text, **options))
            masses.append(found.mass.mean(0))
        self.seen[layer].append(joined(scores))
        made = np.stack(masses).astype(np.float32)
        self._sums[layer] = made if before is None else before + made

    def scores(self, layer: int) -> Scores:
        """Means over the samples of a layer; InputError where there are none."""
        if not self.seen[layer]:
            raise InputError(f"no sample of layer {layer}", hint="observe(layer, q, k) before")
        return mean(self.seen[layer])

    def choose(self, rule: str = "mass", *, at: int = 0, alpha: float = 0.5) -> list[list[Order]]:
        """The order of every layer and head; rules as in `Scores.choose`."""
        return [
            [self.candidates[i] for i in self.scores(layer).choose(rule, at=at, alpha=alpha)]
            for layer in range(self.layers)
        ]

    def previews(self) -> npt.NDArray[np.uint8]:
        """For pictures: ``[layers, heads, candidates, cells, cells]``, 0 (empty) to 255 (kept).

        How much of each cell is filled by the heaviest share (the first) of the looked-at blocks.
        """
        sizes = block_sizes(self.grid.tokens, self.settings.block[0])[self.looked]
        layers = []
        for layer, sums in enumerate(self._sums):
            self.scores(layer)
            assert sums is not None
            share = self.settings.shares[0]
            kept = [heaviest(m, sizes / sizes.sum(), share, self.text) for m in sums]
            layers.append(self._cells(np.stack(kept, 1).astype(np.float64)))
        means = np.stack(layers)
        # A cell reads empty or full only where it is.
        return np.where(means < 1, np.ceil(means * 254), 255).astype(np.uint8)

    def _cells(self, kept: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Means over rectangles of ``[..., looked, columns]``."""
        for axis, cells in zip((-2, -1), self.cells, strict=True):
            starts = np.linspace(0, kept.shape[axis], cells, endpoint=False).astype(int)
            sizes = np.diff(np.append(starts, kept.shape[axis]))
            kept = np.add.reduceat(kept, starts, axis) / (sizes[:, None] if axis == -2 else sizes)
        return kept


def check_text(grid: Grid, orders: Iterable[Order]) -> None:
    """InputError where an order moves text, whose rows and columns are to stay dense."""
    text = np.delete(
        np.arange(grid.tokens), slice(grid.visual_start, grid.visual_start + grid.visual)
    )
    for order in orders:
        if not np.array_equal(order.index()[text], text):
            raise InputError("an order moves text tokens", where=repr(order), hint="text in place")


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
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.grid, self.block, self.scale = grid, block, scale
        self.folder = None if folder is None else Path(folder)
        check_text(grid, {o for layer in orders for o in layer})
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
