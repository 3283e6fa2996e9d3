"""Progress and the table of errors by layer, with rich."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdsl.plans.quantization import QuantizationPlan


class Bars:
    """Progress bars: ``with Bars() as bar: step = bar("layers", 12)``, then ``step()`` by step."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
        self.progress = Progress(*columns)

    def __enter__(self) -> Callable[[str, int | None], Callable[[], None]]:
        self.progress.start()
        return self._bar

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def _bar(self, words: str, total: int | None) -> Callable[[], None]:
        task = self.progress.add_task(words, total=total)
        return lambda: self.progress.advance(task)


def show(plan: QuantizationPlan) -> None:
    """Print a plan: a line a layer, and the sums."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{plan.model}: {len(plan.layers)} quantized layers")
    table.add_column("layer", no_wrap=True)
    for title in ("out x in", "weight", "x", "recipe"):
        table.add_column(title)
    for title in ("bits", "weight dB", "output dB", "output error"):
        table.add_column(title, justify="right")
    for name, layer in plan.layers.items():
        said = layer.report
        table.add_row(
            name, f"{layer.shape[0]} x {layer.shape[1]}", layer.weight.name,
            "16 bits" if layer.x is None else layer.x.name, str(said.get("recipe", "")),
            *(_number(said.get(key), form) for key, form in (
                ("bits", ".2f"), ("weight_db", ".1f"), ("output_db", ".1f"),
                ("output_error", ".4f"))),
        )  # fmt: skip
    count = sum(layer.shape[0] * layer.shape[1] for layer in plan.layers.values())
    console = Console()
    console.print(table)
    console.print(
        f"{count / 1e6:.2f} million weights: {plan.nbytes / 1e6:.2f} MB stored, "
        f"{2 * count / 1e6:.2f} MB in 16 bits, {8 * plan.nbytes / count:.2f} bits a weight"
    )


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
