"""Models, masks and the grid of ``python -m benchmarks sequence_parallel --virtual``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdsl import masks
from kdsl.blocks import from_maps
from kdsl.parallel.topology import Topology
from kdsl.parallel.work import BlockWork
from kdsl.specs import Attention

Bools = npt.NDArray[np.bool_]
NODE = 8
SPREAD = 0.55
"""Coefficient of variation of the heads' densities: at it, plain Ulysses on 8 ranks is as uneven as
db-SP reports."""


@dataclass(frozen=True)
class Model:
    """A diffusion transformer: its attention and its layer.

    ``text`` > 0: a cross attention to so many text tokens; ``steps`` denoising steps.
    """

    name: str
    heads: int
    tokens: int
    head_dim: int
    block: int
    dtype: str
    hidden: int
    feed: int
    layers: int
    steps: int
    text: int = 0

    @property
    def spec(self) -> Attention:
        """The attention, over a block map."""
        block = (self.block, self.block)
        return Attention(
            tokens=self.tokens, heads=self.heads, head_dim=self.head_dim, dtype=self.dtype,
            mask=masks.blocks("plan", block=block), block=block,
        )  # fmt: skip

    @property
    def lines(self) -> int:
        """Blocks along the sequence."""
        return -(-self.tokens // self.block)


MODELS = {
    m.name: m
    for m in (
        Model("wan14b", 40, 75600, 128, 128, "bfloat16", 5120, 13824, 40, 50, 512),
        Model("cogvideox", 48, 17776, 64, 128, "bfloat16", 3072, 12288, 42, 50),
        Model("tiny", 5, 300, 64, 32, "float32", 320, 640, 2, 2, 16),
    )
}
MASKS = ("video", "dense head", "half empty")


@dataclass(frozen=True)
class Point:
    """One attention over some ranks."""

    model: Model
    mask: str
    density: float
    world: int

    @property
    def id(self) -> str:
        """Model, mask, density, ranks."""
        mask = self.mask.replace(" ", "-")
        return f"virtual-{self.model.name}-{mask}-d{self.density:.2f}-P{self.world}"

    @property
    def topology(self) -> Topology:
        """One NVLink node, or nodes of eight."""
        return Topology(self.world, self.world if self.world % NODE else min(NODE, self.world))


def kept(model: Model, mask: str, density: float) -> Bools:
    """Kept blocks ``[heads, n, n]``, seeded.

    ``video``: half of each head's blocks near the diagonal, half anywhere; densities of heads
    follow a gamma distribution.  ``dense head``: the first head is dense besides.  ``half empty``:
    the first half of the rows keeps nothing.
    """
    n, rng = model.lines, np.random.default_rng(0)
    shape = 1 / SPREAD**2
    share = np.clip(rng.gamma(shape, density / shape, (model.heads, 1, 1)), 1 / n, 1)
    away = np.abs(np.arange(n)[:, None] - np.arange(n)) / n
    out = (away[None] < share / 4) | (rng.random((model.heads, n, n), np.float32) < share / 2)
    if mask == "dense head":
        out[0] = True
    if mask == "half empty":
        out[:, : n // 2] = False
    return np.asarray(out, np.bool_)


def work_of(model: Model, found: Bools) -> BlockWork:
    """What is divided."""
    block = (model.block, model.block)
    return BlockWork.of(from_maps(found, None, block, model.tokens, model.tokens), model.heads)


def grid(names: Sequence[str]) -> Iterator[tuple[Model, str, float]]:
    """(model, mask, density), what says most first."""
    models = [MODELS[name] for name in names]
    for density in (0.3, 0.1, 0.7):
        for model in models:
            yield model, "video", density
    for mask in MASKS[1:]:
        for model in models:
            yield model, mask, 0.3
