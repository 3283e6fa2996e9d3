"""The whole job as a user starts it, and that it fails where the kernels are gone or wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.conftest import copy_tree

ROOT = Path(__file__).resolve().parents[3]


def job(place: Path, root: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``python -m examples.clip...`` in a checkout, with a database and caches of its own."""
    own = {"KDSL_DB": str(place / "tuning.db"), "KDSL_CACHE_DIR": str(place / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=root,
        env={**os.environ, **own, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_the_gpu(tmp_path: Path) -> None:
    """For an absent GPU: predicted, built, right in the interpreter, compiled in full, drawn."""
    words = ("examples.clip", "--gpu", "a100", "--budget", "2", "--out", str(tmp_path / "out"))
    done = job(tmp_path, ROOT, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no a100 here: 2 predicted, 0 measured" in done.stdout
    assert re.search(r"right  a piece of 270 tokens, 8 heads, .* Triton's interpreter", done.stdout)
    assert re.search(r"compiled for a100 \(sm_80\): \d+ registers", done.stdout)
    assert re.search(r"predicted \d+\.\d+ ms on a100", done.stdout)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1 of 1" in page
    assert page.count("data:image") > 20


def test_an_unknown_gpu_ends_it_at_once(tmp_path: Path) -> None:
    """Before any work, with the nearest name; nothing is written."""
    done = job(tmp_path, ROOT, "examples.clip", "--gpu", "a1000", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "unknown GPU 'a1000'" in done.stdout
    assert "'a100'" in done.stdout
    assert "describe" not in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_wrong_kernel_is_found(tmp_path: Path) -> None:
    """The check of the piece is one: with a fault in the template, or without it, it fails."""
    tree = copy_tree(tmp_path / "tree")
    shutil.copytree(ROOT / "examples", tree / "examples")
    template = tree / "kernels" / "attention" / "forward.py"
    sound = template.read_text()
    assert sound.count("share = 1.0 / total") == 1
    template.write_text(sound.replace("1.0 / total", "1.0 / (total + 1.0)"))
    done = job(tmp_path, tree, "examples.clip.piece", TRITON_INTERPRET="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert '"error"' in done.stdout
    template.unlink()
    done = job(tmp_path, tree, "examples.clip.piece", TRITON_INTERPRET="1")
    assert done.returncode != 0
    assert '"error"' not in done.stdout
