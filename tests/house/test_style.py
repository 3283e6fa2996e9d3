"""Rules that no linter carries: the length of files and words that are not used."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOMS = ("autotune", "benchmarks", "examples", "kdsl", "kernels", "parallel", "reference")
SOURCES = {".py", ".cu", ".cuh", ".sql"}
LINES = 400

# Databases and caches come from other people's machines: nothing read from them is executed.
BANNED = {
    r"(?<![\w.])eval\(": "parse it: json, ast.literal_eval",
    r"\bmake_block_ptr\b": "make_tensor_descriptor, or plain pointers",
    r"\btime\.time\(": "time.perf_counter for durations, datetime.now(UTC) for dates",
    r"^\s*except\s*:": "name the exceptions",
    r"\b(import|from)\s+(pickle|marshal|shelve|dill|cloudpickle)\b": "JSON or safetensors",
}


def sources(root: Path) -> list[Path]:
    """Source files of the package, the benchmarks and the examples."""
    files = [f for room in ROOMS for f in (root / room).rglob("*") if f.suffix in SOURCES]
    return sorted(files)


def offences(text: str) -> list[str]:
    """Lines that hold a banned word, with what to write instead."""
    return [
        f"{number}: {line.strip()} (instead: {instead})"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, instead in BANNED.items()
        if re.search(pattern, line)
    ]


def test_no_file_is_longer_than_a_reader_can_hold(root: Path) -> None:
    """No source file has more than 400 lines."""
    lengths = {str(f.relative_to(root)): len(f.read_text().splitlines()) for f in sources(root)}
    assert len(lengths) > 30, "the files were not found"
    assert not {name: n for name, n in lengths.items() if n > LINES}


def test_banned_words_are_not_used(root: Path) -> None:
    """No source file evaluates text, unpickles, swallows every exception or uses a dead name."""
    found = {str(f.relative_to(root)): offences(f.read_text()) for f in sources(root)}
    assert not {name: lines for name, lines in found.items() if lines}


def test_banned_words_would_be_found() -> None:
    """Each pattern finds what it is for, and leaves its harmless neighbours alone."""
    bad = ["eval(text)", "tl.make_block_ptr(x)", "t = time.time()", "except:", "import pickle"]
    assert len(offences("\n".join(bad))) == len(bad)
    assert offences("model.eval()\nliteral_eval(x)\nexcept OSError:\ntime.perf_counter()") == []


def test_every_test_says_what_it_proves(root: Path) -> None:
    """Each test function has a docstring, in every file of tests."""
    files = sorted((root / "tests").rglob("test_*.py"))
    silent = [
        f"{file.relative_to(root)}: {node.name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not ast.get_docstring(node)
    ]
    assert len(files) > 3, "the files were not found"
    assert not silent
