"""Draw the README's picture: its mask in the tokens' own order and in the one it chooses.

``python -m examples.mask_pictures`` writes docs/mask.svg.
"""

from __future__ import annotations

import re
from pathlib import Path

from kdsl import Grid, masks, orders

OUT = Path(__file__).resolve().parent.parent / "docs" / "mask.svg"
WIDTH, GAP = 386, 40


def picture() -> str:
    """Both pictures side by side, the order's name above each."""
    grid = Grid(frames=8, height=16, width=16, text=64)
    mask = masks.window(grid, (15, 3, 3)) | masks.text(grid)
    panels = []
    for number, (letters, said) in enumerate(
        (
            ("FHW", "frame by frame, as the model stores it"),
            ("HWF", "place by place: axes(grid, 'HWF')"),
        )
    ):
        order = orders.axes(grid, letters)
        drawn = mask.svg(grid, order=order, block=(64, 64), title=said)
        at = number * (WIDTH + GAP)
        (height,) = map(int, re.findall(r'viewBox="-1 -1 \d+ (\d+)', drawn))
        drawn = drawn.replace("<svg ", f'<svg x="{at}" y="24" height="{height}" ', 1)
        panels.append(f'<text class="kdsl-text" x="{at}" y="14">{said}</text>{drawn}')
    height += 26
    whole = 2 * WIDTH + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" width="{whole}" '
        f'role="img"><title>One mask in two stored orders</title>{"".join(panels)}</svg>'
    )


def main() -> None:
    """Write the picture."""
    OUT.write_text(picture() + "\n")
    print(OUT)


if __name__ == "__main__":
    main()
