"""The pre-pass page's code runs as it stands, and its output is attention's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "prepass.md").read_text()


def test_the_code_runs(tmp_path: Path) -> None:
    """The Python block, alone in a file, in a process of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "prepass.py"
    path.write_text(
        code + "assert out.shape == q.shape and np.isfinite(out).all()\n"
        "assert made.q_pool.shape == (1, 4, 2, 64) and abs(out).max() > 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", str(path)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "norm rms, rope interleaved, order, k less its mean" in done.stdout


def test_its_table_names_what_there_is() -> None:
    """Norms and rotations of the page are the spec's."""
    from kdsl.specs.prepass import NORMS, ROPES

    assert set(re.findall(r'`norm="(\w+)"', PAGE)) == set(NORMS)
    assert re.findall(r'`rope="(\w+)"`, `"(\w+)"`', PAGE) == [ROPES]
