"""docs/linear.md: its code runs as it stands, and its table is what the command computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
PAGE = (Path(__file__).parents[2] / "docs" / "linear.md").read_text()
pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block alone, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        held: dict[str, Any] = {}
        exec(compile(block, "linear.md", "exec"), held)
    assert tuple(held["y"].shape) == (2, 100, 4608)
    with torch.no_grad():
        exact = torch.nn.functional.gelu(held["plain"](held["x"]), approximate="tanh")
    assert (held["y"] - exact).norm() < 0.2 * exact.norm()


def test_the_table_is_computed() -> None:
    """Megabytes and ratios of every block and number of bits."""
    from benchmarks.memory import computed

    found = {(r["block"], r["weights"]): r for r in computed()}
    titles = {"Flux.1 double": "flux-double", "Flux.1 single": "flux-single",
              "Wan2.1-14B": "wan2.1-14b"}  # fmt: skip
    for title, name in titles.items():
        (line,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", PAGE, re.MULTILINE)
        for bits, cell in zip(("bf16", "fp8", "w4", "w3"), line.split("|"), strict=True):
            row = found[name, bits]
            said = f"{row['bytes'] / 1e6:.1f} MB"
            said += "" if bits == "bf16" else f" ({row['smaller_than_bf16']:.2f}x)"
            assert cell.strip() == said
