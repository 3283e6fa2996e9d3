"""The README's code runs as it stands, its picture is of the mask in it, its figures are rows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.cases import DENSITIES
from benchmarks.rows import load
from benchmarks.table import newest

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_code_runs(tmp_path: Path) -> None:
    """The Python block, alone in a file, in a process of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "readme.py"
    path.write_text(code + "assert out.shape == q.shape and np.isfinite(out).all()\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", str(path)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "density 0.2287" in done.stdout


def test_the_picture_is_of_this_mask() -> None:
    """The caption's shares are those in the picture, and drawing it again changes nothing."""
    from examples.mask_pictures import OUT, picture

    assert OUT.read_text() == picture() + "\n"
    assert "density 64.7 %" in picture()
    assert "density 22.9 %" in picture()
    assert "fall from 65 % to 23 %" in README


def test_commands_are_real() -> None:
    """Every ``python -m`` command of the README knows the options that it is shown with."""
    for line in re.findall(r"^(python -m \S+.*?)(?:\s+#.*)?$", README, re.MULTILINE):
        words = line.split()
        options = [w for w in words if w.startswith("--")]
        shown = subprocess.run(
            [sys.executable, *words[1:4 if words[2] == "kdsl" else 3], "--help"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert not [o for o in options if o not in shown.stdout], line


def test_its_figures_are_rows() -> None:
    """Each rate, and its ratio to FlexAttention, is that of the newest run on an H100."""
    found = newest(load(ROOT / "benchmarks" / "results"))
    lines = {"W": "12 heads x 32,768 tokens x 128", "C": "48 heads x 17,920 tokens x 64"}
    for case, title in lines.items():
        (line,) = re.findall(rf"^\| {title} \|(.*)\|$", README, re.MULTILINE)
        for density, cell in zip(DENSITIES, line.split("|"), strict=True):
            rows = found["NVIDIA H100 80GB HBM3", f"fwd-{case}-bf16-d{density:.2f}"]
            own, peer = rows["kdsl"], rows["FlexAttention"]
            rate = own["work"] / own["ms"] / 1e9
            assert cell.strip() == f"{rate:.0f} ({peer['ms'] / own['ms']:.2f}x)"
