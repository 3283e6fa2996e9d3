"""Real frames on a token grid: decode, sample, crop, and describe every patch by numbers.

A video model sees patches of a few frames; here each sampled frame is cut into square patches, and
a patch is described by its colour, its low DCT coefficients, its edges, its texture and its motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from examples.clip.arrays import Floats
from kdsl.errors import InputError
from kdsl.grid import Grid

if TYPE_CHECKING:
    import av

CLIP = Path(__file__).parent / "data" / "big_buck_bunny_cut.mp4"
GRID = Grid(frames=13, height=15, width=27)  # 5,265 tokens: 82 blocks of 64 and 17 tokens
PATCH = 16
LOW = 4  # DCT coefficients kept along each side of a patch
BINS = 4  # edge orientations


@dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames and what their patches look like.

    ``frames`` is uint8 ``[frames, height * patch, width * patch, 3]`` (RGB), ``seconds`` the time
    of each in the file, ``features`` float32 ``[tokens, channels]``, standardised over the tokens,
    tokens in the grid's row-major order.
    """

    path: Path
    grid: Grid
    patch: int
    frames: npt.NDArray[np.uint8]
    seconds: tuple[float, ...]
    features: Floats

    @property
    def shipped(self) -> bool:
        """Whether this is the clip that comes with the example, whose author is to be named."""
        return self.path == CLIP

    @property
    def title(self) -> str:
        """What to call it."""
        return "Big Buck Bunny" if self.shipped else self.path.name


def load(
    path: Path = CLIP, grid: Grid = GRID, patch: int = PATCH, span: tuple[int, int] | None = None
) -> Clip:
    """Read ``path`` onto ``grid``: frames evenly sampled over the file, features of every patch.

    ``span`` (first, last) takes frames of a part of the file alone.  Raises ``InputError`` for a
    grid without frames, height and width or with text, and for a file that is missing, cannot be
    decoded or has fewer frames than the grid.
    """
    if grid.letters != "FHW" or grid.text or not grid.tokens:
        raise InputError(
            "a clip needs a grid of frames x height x width without text",
            where=repr(grid),
            hint="Grid(frames=13, height=15, width=27)",
        )
    count, rows, columns = grid.shape
    frames, seconds = decode(path, count, rows * patch, columns * patch, span)
    return Clip(path, grid, patch, frames, seconds, standardise(describe(frames, patch)))


def decode(
    path: Path, count: int, height: int, width: int, span: tuple[int, int] | None = None
) -> tuple[npt.NDArray[np.uint8], tuple[float, ...]]:
    """``count`` frames from first to last, scaled to cover ``height`` x ``width``, centre-cropped.

    Returns uint8 ``[count, height, width, 3]`` and their times in seconds.  Raises ``InputError``.
    """
    # The one place that needs FFmpeg: everything else is importable without it.
    import av

    try:
        with av.open(path) as file:
            decoded = list(file.decode(video=0))
    except (OSError, IndexError, av.FFmpegError) as error:
        raise InputError(
            f"no video to read: {error}", where=str(path), hint=f"the clip shipped here, {CLIP}"
        ) from error
    if span is not None:
        decoded = decoded[span[0] : span[1] + 1]
    if len(decoded) < count:
        raise InputError(
            f"{len(decoded)} frames, {count} wanted",
            where=str(path),
            hint=f"a longer video, or a grid of at most {len(decoded)} frames",
        )
    picked = [decoded[i] for i in np.linspace(0, len(decoded) - 1, count).round().astype(int)]
    pictures = np.stack([_cover(frame, height, width) for frame in picked])
    return pictures, tuple(float(frame.time or 0.0) for frame in picked)


def _cover(frame: av.VideoFrame, height: int, width: int) -> npt.NDArray[np.uint8]:
    """One frame as RGB: scaled until it covers the wanted size, what stands over cut off evenly."""
    scale = max(height / frame.height, width / frame.width)
    tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    rgb = frame.reformat(wide, tall, format="rgb24", interpolation="AREA").to_ndarray()
    top, left = (tall - height) // 2, (wide - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def describe(frames: npt.NDArray[np.uint8], patch: int) -> Floats:
    """Features of every patch, float32 ``[tokens, channels]``, not yet standardised.

    Channels: mean luma and two colour differences; ``LOW ** 2 - 1`` DCT coefficients of the luma;
    edge energy in ``BINS`` orientations; fine texture; change against the neighbouring frames.
    """
    red, green, blue = np.moveaxis(frames.astype(np.float32) / 255, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colour = [_cut(plane, patch).mean((1, 2)) for plane in (luma, red - luma, blue - luma)]
    basis = _dct(patch)[:LOW]
    blocks = _cut(luma, patch)
    low = (basis @ blocks @ basis.T).reshape(len(blocks), -1)[:, 1:]  # the mean is there already
    motion = np.abs(np.gradient(luma, axis=0)) if len(luma) > 1 else np.zeros_like(luma)
    energy = [*_edges(luma), (luma - _smooth(luma)) ** 2, motion**2]
    spread = [np.sqrt(_cut(plane, patch).mean((1, 2))) for plane in energy]
    return np.column_stack([*colour, low, *spread]).astype(np.float32)


def standardise(features: Floats) -> Floats:
    """Every channel to mean 0 and deviation 1 over the tokens; a constant channel to 0."""
    centred = features - features.mean(0, dtype=np.float64)
    deviation = centred.std(0)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1), np.float32)


def _cut(planes: Floats, patch: int) -> Floats:
    """``[frames, height, width]`` to ``[tokens, patch, patch]`` in row-major order."""
    frames, height, width = planes.shape
    tiles = planes.reshape(frames, height // patch, patch, width // patch, patch)
    return tiles.swapaxes(2, 3).reshape(-1, patch, patch)


def _dct(size: int) -> Floats:
    """The orthonormal DCT-II matrix, ``[frequency, position]``."""
    angle = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.cos(angle) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float32)


def _edges(luma: Floats) -> list[Floats]:
    """Squared gradient of each pixel, filed under the orientation it points to."""
    down, right = np.gradient(luma, axis=(1, 2))
    bins = np.floor(np.arctan2(down, right) / np.pi * BINS).astype(int) % BINS
    energy = down**2 + right**2
    return [np.where(bins == i, energy, 0).astype(np.float32) for i in range(BINS)]


def _smooth(luma: Floats) -> Floats:
    """A 3 x 3 mean, edges repeated."""
    height, width = luma.shape[1:]
    padded = np.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.asarray(sum(shifted) / 9, np.float32)
