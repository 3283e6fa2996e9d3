"""Rows of results: what they hold, where they go, and whether they belong to a commit."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kdsl.errors import StoreError

ROOT = Path(__file__).resolve().parent.parent
COVERED = ("kdsl", "kernels", "reference", "parallel", "autotune", "benchmarks")
"""Folders whose sources a row vouches for."""
SUFFIXES = (".py", ".cu", ".cuh", ".sql")
FIELDS = (
    "suite", "case", "impl", "dtype", "ms", "work", "unit", "error", "density", "run", "gpu",
    "commit", "sources", "versions", "date",
)  # fmt: skip
OPTIONAL = ("useful", "partial", "virtual")
"""What rows of real masks say beside: work of the pairs that are kept, share of partial blocks; and
what is measured and what is modelled of ranks that were run one by one (`virtual`)."""


def sources_hash(root: Path = ROOT) -> str:
    """Hash of the covered sources in a folder, by Git's own hash of each file."""
    files = (
        p for d in COVERED for p in sorted((root / d).rglob("*")) if not (root / d).is_symlink()
    )
    found = {}
    for path in files:
        inside = path.relative_to(root)
        if path.suffix in SUFFIXES and path.is_file() and not _through_link(root, inside):
            data = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            found[inside.as_posix()] = blob
    return _digest(found)


def _through_link(root: Path, inside: Path) -> bool:
    """Whether a path leads through one of the mounted rooms, which are covered themselves."""
    return any((root / parent).is_symlink() for parent in inside.parents)


def commit_hash(commit: str, root: Path = ROOT) -> str:
    """The same hash for a commit, from Git's own records."""
    done = subprocess.run(
        ["git", "ls-tree", "-r", commit, "--", *COVERED],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StoreError(f"git does not know commit {commit!r}", where=done.stderr.strip())
    found = {}
    for line in done.stdout.splitlines():
        about, path = line.split("\t")
        mode, _, blob = about.split()
        if path.endswith(SUFFIXES) and mode != "120000":
            found[path] = blob
    return _digest(found)


def _digest(files: Mapping[str, str]) -> str:
    text = "\n".join(f"{path} {blob}" for path, blob in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def current_commit(root: Path = ROOT) -> str:
    """The checked-out commit, marked if the covered sources differ from it."""
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return "unknown"
    commit = done.stdout.strip()
    return commit if commit_hash(commit, root) == sources_hash(root) else f"{commit}+changes"


def versions() -> dict[str, str]:
    """What ran: Python, torch, triton, CuPy, driver."""
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "cupy-cuda13x", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if shutil.which("nvidia-smi") is None:
        return found
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.returncode:
        found["driver"] = done.stdout.splitlines()[0].strip()
    return found


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def append(rows: Iterable[Mapping[str, Any]], folder: Path, gpu: str, suite: str) -> Path:
    """Add rows to ``<folder>/<gpu>/<suite>.jsonl``."""
    path = folder / gpu / f"{suite}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            missing = [f for f in FIELDS if f not in row]
            if missing:
                raise StoreError(f"a row lacks {missing[0]!r}", where=str(dict(row))[:200])
            file.write(json.dumps({f: row[f] for f in (*FIELDS, *OPTIONAL) if f in row}) + "\n")
    return path


def load(folder: Path) -> list[dict[str, Any]]:
    """All rows below a folder."""
    out = []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise StoreError(f"line {number} is no JSON: {error}", where=str(path)) from error
    return out


def unproven(folder: Path, root: Path = ROOT) -> list[str]:
    """Rows whose sources are not those of the commit they name, one line each."""
    known: dict[str, str] = {}
    out = []
    for row in load(folder):
        commit = row["commit"]
        if commit not in known:
            try:
                known[commit] = commit_hash(commit, root)
            except StoreError as error:
                known[commit] = str(error)
        if known[commit] != row["sources"]:
            out.append(f"{row['gpu']} {row['case']} {row['impl']}: not the sources of {commit}")
    return out
