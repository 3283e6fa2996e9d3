"""Draw the README's picture: one mask, in two stored orders.

``python -m examples.mask_pictures`` writes docs/mask.svg.
"""

from __future__ import annotations

from pathlib import Path

from kdsl import Grid, masks, orders

OUT = Path(__file__).resolve().parent.parent / "docs" / "mask.svg"


def picture() -> str:
    """Windows of neighbouring frames and rows over a small clip, in cubes of 4 x 4 x 4."""
    grid = Grid(frames=8, height=16, width=16, text=64)
    mask = masks.window(grid, (3, 7, 7)) | masks.text(grid)
    return mask.svg(grid, order=orders.cubes(grid, (4, 4, 4)), block=(64, 64))


def main() -> None:
    """Write the picture."""
    OUT.write_text(picture() + "\n")
    print(OUT)


if __name__ == "__main__":
    main()
