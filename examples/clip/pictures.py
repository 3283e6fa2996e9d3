"""Arrays as pictures inside a page: data URIs, nothing to load from elsewhere."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.clip.arrays import Blocks, Floats
from kdsl.grid import Grid

Pixels = npt.NDArray[np.uint8]

INK = (59, 130, 196)  # stands out on white and on near-black
COLD, HOT = np.array([196, 58, 20.0]), np.array([255, 226, 120.0])
MARK, BORDER = (90, 220, 255), 4  # the query's outline, in pixels of a frame shown at a third


def photo(rgb: Pixels, width: int | None = None) -> str:
    """A JPEG data URI of ``[height, width, 3]``, scaled to ``width`` pixels."""
    image = Image.fromarray(rgb)
    if width is not None:
        image = image.resize((width, round(image.height * width / image.width)))
    return _uri(image, "JPEG", quality=86)


def block_map(keep: Blocks, mass: Floats) -> str:
    """A PNG data URI of ``[rows, columns]``, one pixel a block: dropped clear, kept inked by mass.

    Full ink is ten times the mass of uniform attention or more, a third of it a tenth or less.
    """
    against_uniform = mass * mass.shape[1]
    strength = np.clip((np.log10(np.maximum(against_uniform, 1e-9)) + 1) / 2, 0, 1)
    pixels = np.zeros((*keep.shape, 4), np.uint8)
    pixels[..., :3] = INK
    pixels[..., 3] = np.where(keep, 85 + 170 * strength, 0).astype(np.uint8)
    return _uri(Image.fromarray(pixels, "RGBA"), "PNG", optimize=True)


def overlay(
    frame: Pixels, weights: Floats, peak: float, query: tuple[int, int] | None = None
) -> str:
    """Attention ``weights`` ``[rows, columns]`` as heat over the dimmed frame; JPEG data URI.

    Heat grows with the square root of weight / ``peak``; patches of weight 0 are dimmed further;
    ``query`` (row, column) gets an outline.
    """
    patch = frame.shape[0] // weights.shape[0]
    spread = weights.repeat(patch, 0).repeat(patch, 1)[..., None]
    heat = np.sqrt(np.clip(spread / max(peak, 1e-30), 0, 1))
    grey = frame.mean(-1, keepdims=True) * np.where(spread > 0, 0.62, 0.16) + 14
    shown = grey * (1 - heat) + (COLD + (HOT - COLD) * heat) * heat
    if query is not None:
        _outline(shown, query[0] * patch, query[1] * patch, patch)
    return _uri(Image.fromarray(shown.clip(0, 255).astype(np.uint8)), "JPEG", quality=88)


def on_frames(values: Floats, grid: Grid) -> Floats:
    """A value a token as ``[frames, height, width]``."""
    return values[grid.visual_start :][: grid.visual].reshape(grid.shape)


def _outline(pixels: npt.NDArray[np.floating], top: int, left: int, size: int) -> None:
    """Draw a border just outside a square patch, in place; at the picture's edge it is cut off."""
    inside = np.s_[top : top + size, left : left + size]
    kept = pixels[inside].copy()
    low_y, low_x = max(top - BORDER, 0), max(left - BORDER, 0)
    pixels[low_y : top + size + BORDER, low_x : left + size + BORDER] = MARK
    pixels[inside] = kept


def _uri(image: Image.Image, kind: str, **options: int | bool) -> str:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
