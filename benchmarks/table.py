"""Rows as a table: one line a case, the newest run of each card, ratios to ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def newest(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """Rows by (card, case) and implementation, of the last run that has ours."""
    out: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    last: dict[tuple[str, str], str] = {}
    for row in rows:
        key = (row["gpu"], row["case"])
        if row["impl"] == "kdsl":
            last[key] = row["run"]
    for row in rows:
        key = (row["gpu"], row["case"])
        if last.get(key) == row["run"]:
            out.setdefault(key, {})[row["impl"]] = row
    return out


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        title="TFLOP/s of kept blocks (lists and quantize: GB/s), and how many times faster ours is"
    )
    useful = any("useful" in row for row in rows)
    columns = ["card", "case", "density", "impl", "ms", "rate", "ours / peer", "error"]
    for column in columns + ["useful rate"] * useful:
        table.add_column(column, justify="left" if column in ("card", "case", "impl") else "right")
    for (gpu, case), found in newest(rows).items():
        own = found["kdsl"]["ms"]
        for i, (name, row) in enumerate(found.items()):
            scale = 1e9 if row["unit"] == "flop" else 1e6
            lead = ("", "", "") if i else (gpu, case, f"{row['density']:.3f}")
            table.add_row(
                *lead, name, f"{row['ms']:.4f}", f"{row['work'] / row['ms'] / scale:.1f}",
                "" if name == "kdsl" else f"{row['ms'] / own:.3f}x", f"{row['error']:.5f}",
                *([f"{row['useful'] / row['ms'] / scale:.1f}"] if "useful" in row else []),
            )  # fmt: skip
    Console(width=120).print(table)
