"""``python -m examples.paro``: calibrate on some frames of a real clip, judge on others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from examples.paro.study import GRID, Study
from examples.paro.tables import budget_table, comparison, order_table, verdict
from kdsl.errors import KdslError
from kdsl.grid import Grid

WIDTH = 150
"""Columns where the output is no terminal."""
WORST = -0.01
"""Mass that a head may lose against PAROAttention at equal density."""


def main(arguments: list[str] | None = None) -> int:
    """Print tables, write the plan and its pictures; exit code 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.paro",
        description="Calibrate on some frames of a real clip, judge on others.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--grid",
        type=int,
        nargs=3,
        default=GRID.shape,
        metavar=("F", "H", "W"),
        help="frames, rows and columns of tokens",
    )
    parser.add_argument(
        "--block",
        type=int,
        nargs=2,
        default=(64, 64),
        metavar=("Q", "K"),
        help="queries and keys a block",
    )
    parser.add_argument("--every", type=int, default=2, help="one block row in so many is scored")
    parser.add_argument("--budget", type=float, default=0.05, help="error of a head's output")
    parser.add_argument("--out", type=Path, default=Path("out/paro"), help="folder")
    given = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, WIDTH))
    try:
        return _run(console, given)
    except KdslError as error:
        console.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False)
        return 1


def _run(console: Console, given: argparse.Namespace) -> int:
    grid = Grid(frames=given.grid[0], height=given.grid[1], width=given.grid[2])
    with console.status("decoding, scoring the orders of every head"):
        study = Study(grid, (given.block[0], given.block[1]), given.every)
    console.print(order_table(study))
    judged = list(study.compare())
    console.print(comparison(judged, study.names))
    good = True
    for density, gain, worst in verdict(judged):
        fine = gain >= 0 and worst >= WORST
        good &= fine
        console.print(
            f"{'[green]holds[/]' if fine else '[red]FAILS[/]'}  density {density:.0%}: "
            f"{100 * gain:+.2f} points of mass over PAROAttention's in the mean, "
            f"{100 * worst:+.2f} in the worst head"
        )
    found = study.budget(given.budget)
    console.print(budget_table(found, study.names))
    console.print(f"{'[green]holds[/]' if found.inside else '[red]FAILS[/]'}  every head inside")
    plan = study.plan()
    given.out.mkdir(parents=True, exist_ok=True)
    plan.save(given.out / "plan.safetensors")
    for head, name in enumerate(study.names):
        (given.out / f"{name}.svg").write_text(plan.svg(0, head) + "\n")
    console.print(plan.show(0, 0), highlight=False, markup=False)
    console.print(f"[bold]{given.out.resolve()}[/]: the plan, and a picture of every head")
    return 0 if good and found.inside else 1


if __name__ == "__main__":
    sys.exit(main())
