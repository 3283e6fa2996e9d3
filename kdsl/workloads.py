"""The catalogue: attention shapes of published models, to tune and to measure.

Shapes are the models' own (latent grid after patching, heads, head dimension); the masks are
typical of what is run on them, not calibrated from them: `Workload.sample` makes up block maps
whose heads differ in density as calibrated ones do, from a fixed seed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdsl import masks, orders
from kdsl.errors import SpecError
from kdsl.grid import Grid
from kdsl.specs import Attention

Tables = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Workload:
    """A named spec with sample values for its open tables."""

    name: str
    about: str
    make: Callable[[], Attention]
    density: float = 0.0
    """Mean density of the sample block map, where there is one."""

    @property
    def spec(self) -> Attention:
        """What is computed."""
        return self.make()

    def sample(self, density: float | None = None) -> Tables:
        """Values of the open tables: seeded block maps; empty where the mask is closed.

        ``density`` takes the place of the catalogue's; see `mean_density`.
        """
        mean = self.mean_density(density)
        return {
            table.name: block_map(table.shape, mean, seed)
            for seed, table in enumerate(self.spec.open_tables)
        }

    def mean_density(self, asked: float | None = None) -> float:
        """Mean density of a sample: what is asked for, above 0 and at most 1, or the catalogue's.

        SpecError where the mask is closed, since its density is its own.
        """
        if asked is None:
            return self.density
        if not self.density:
            planned = ", ".join(w.name for w in CATALOGUE if w.density)
            raise SpecError(f"the mask of {self.name!r} has a density of its own", hint=planned)
        if not 0 < asked <= 1:
            raise SpecError(f"density {asked:g}", hint="above 0 and at most 1")
        return asked


def block_map(shape: tuple[int, ...], density: float, seed: int) -> npt.NDArray[np.uint8]:
    """Kept blocks ``[heads, rows, columns]``: half near the diagonal, half anywhere.

    Heads run from half to one and a half times the mean density, as calibrated heads differ.
    """
    heads, rows, columns = shape
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.5, 1.5, heads)[:, None, None] if heads > 1 else np.ones((1, 1, 1))
    away = np.abs(np.arange(rows)[:, None] / rows - np.arange(columns)[None, :] / columns)
    near = away[None] < density * scale / 4
    wanted = density * scale - near.mean((1, 2), keepdims=True)
    anywhere = rng.random(shape) < wanted / (1 - near.mean((1, 2), keepdims=True))
    return np.asarray(near | anywhere | (away[None] < 1 / columns), np.uint8)


def _wan_small() -> Attention:
    grid = Grid(frames=21, height=30, width=52)
    return Attention(tokens=grid, heads=12, head_dim=128, mask=masks.blocks("plan"))


def _wan_large() -> Attention:
    grid = Grid(frames=21, height=45, width=80)
    return Attention(tokens=grid, heads=40, head_dim=128, mask=masks.blocks("plan"))


def _cogvideo() -> Attention:
    grid = Grid(frames=13, height=30, width=45, text=226)
    six = ("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")
    order = orders.per_head([orders.axes(grid, six[h % 6]) for h in range(48)])
    mask = masks.blocks("plan", order=order) | masks.text(grid)
    return Attention(tokens=grid, heads=48, head_dim=64, mask=mask, order=order)


def _hunyuan() -> Attention:
    grid = Grid(frames=33, height=45, width=80, text=256, text_at="end")
    mask = masks.window(grid, (13, 17, 17)) | masks.text(grid)
    return Attention(
        tokens=grid, heads=24, head_dim=128, mask=mask, order=orders.cubes(grid, (2, 8, 8))
    )


def _flux() -> Attention:
    grid = Grid(height=64, width=64, text=512)
    mask = masks.window(grid, (33, 33)) | masks.text(grid)
    return Attention(
        tokens=grid, heads=24, head_dim=128, mask=mask, order=orders.windows(grid, (8, 16))
    )


def _sd35() -> Attention:
    grid = Grid(height=64, width=64, text=333)
    mask = masks.window(grid, (25, 25)) | masks.text(grid)
    return Attention(
        tokens=grid, heads=38, head_dim=64, mask=mask, order=orders.windows(grid, (8, 16))
    )


def _ltx() -> Attention:
    grid = Grid(frames=16, height=16, width=24)
    return Attention(tokens=grid, heads=32, head_dim=64, mask=masks.blocks("plan"))


def _clip() -> Attention:
    grid = Grid(frames=13, height=15, width=27)
    names = ("HWF", "FHW", "HFW", "WHF", "WHF", "WFH", "FWH", "HWF")
    order = orders.per_head([orders.axes(grid, name) for name in names])
    mask = masks.blocks("plan", order=order, block=(64, 64))
    return Attention(tokens=grid, heads=8, head_dim=64, mask=mask, order=order, block=(64, 64))


CATALOGUE = (
    Workload(
        "clip",
        "the example's clip (examples/clip): 8 heads, each in the order its calibration chose",
        _clip,
        0.2,
    ),
    Workload(
        "ltx-video-768x512",
        "LTX-Video, 768 x 512, 121 frames, a block plan",
        _ltx,
        0.3,
    ),
    Workload(
        "sd3.5-large-1024",
        "SD 3.5 Large, 1024 x 1024: 64 x 64 tokens behind 333 of text, window of 25 x 25",
        _sd35,
    ),
    Workload(
        "flux-dev-1024",
        "Flux.1-dev, 1024 x 1024: 64 x 64 tokens behind 512 of text, window of 33 x 33",
        _flux,
    ),
    Workload(
        "cogvideox-5b",
        "CogVideoX-5B, 720 x 480, 49 frames: 226 of text, six axis orders, a block plan",
        _cogvideo,
        0.3,
    ),
    Workload(
        "wan2.1-1.3b-480p",
        "Wan2.1-T2V-1.3B, 832 x 480, 81 frames, a block plan",
        _wan_small,
        0.25,
    ),
    Workload(
        "hunyuanvideo-720p",
        "HunyuanVideo, 1280 x 720, 129 frames, cubes of 2 x 8 x 8, window of 13 x 17 x 17, text",
        _hunyuan,
    ),
    Workload(
        "wan2.1-14b-720p",
        "Wan2.1-T2V-14B, 1280 x 720, 81 frames, a block plan",
        _wan_large,
        0.2,
    ),
)


def names() -> tuple[str, ...]:
    """All names, smallest workload first."""
    return tuple(w.name for w in CATALOGUE)


def get(name: str) -> Workload:
    """A workload by name; SpecError lists the known ones."""
    for workload in CATALOGUE:
        if workload.name == name:
            return workload
    near = difflib.get_close_matches(name, names(), 1)
    raise SpecError(
        f"unknown workload {name!r}" + (f"; {near[0]!r}?" if near else ""), hint=", ".join(names())
    )
