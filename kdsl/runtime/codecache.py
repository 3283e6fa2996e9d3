"""Generated code on disk, and into the process: written whole, checked before it runs.

The folder holds code, so it is treated as such: only its owner may write there, a file appears in
one step, and what is executed is the text in memory after the file was found to hold just that.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import stat
import sys
import tempfile
import types
from pathlib import Path

from kdsl.errors import StoreError, UnsupportedError


def cache_folder() -> Path:
    """``$KDSL_CACHE_DIR``, else ``kdsl`` in the user's cache folder."""
    given = os.environ.get("KDSL_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kdsl"


def code_folder() -> Path:
    """The folder of generated code, made if missing; StoreError if others may write there."""
    folder = cache_folder() / "gen"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise StoreError(
            f"the code cache cannot be made: {error.strerror}",
            where=str(folder),
            hint="KDSL_CACHE_DIR=/a/folder/of/yours",
        ) from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise StoreError(
            "the code cache belongs to somebody else or others may write to it",
            where=f"{folder}, owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
            hint=f"chmod 700 {folder}, or KDSL_CACHE_DIR=/a/folder/of/yours",
        )
    return folder


def store(source: str, suffix: str = ".py") -> Path:
    """Put generated code under the hash of its text and return the file.

    A file that is there already must hold the same text: StoreError if it was changed.
    """
    path = code_folder() / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}{suffix}"
    data = source.encode()
    try:
        if not path.exists():
            _write(path, data)
        held = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"generated code cannot be written: {error.strerror}",
            where=str(path),
            hint="free some space, or KDSL_CACHE_DIR=/another/folder",
        ) from error
    if held != data:
        raise StoreError(
            "a file of the code cache does not hold what its name says; it was not executed",
            where=str(path),
            hint=f"look at who changed it, then rm {path}",
        )
    return path


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


_modules: dict[Path, types.ModuleType] = {}


def load(source: str) -> types.ModuleType:
    """The generated Python text as a module; the same text gives the same module.

    UnsupportedError where a package that it imports is missing.
    """
    path = store(source)
    module = _modules.get(path)
    if module is None:
        module = types.ModuleType(f"_kdsl_gen_{path.stem}")
        module.__file__ = str(path)
        # Triton asks for the source of its functions: let it see the text that was checked.
        linecache.cache[str(path)] = (len(source), None, source.splitlines(True), str(path))
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102
        except ImportError as error:
            del sys.modules[module.__name__]
            raise UnsupportedError(
                f"the generated kernel cannot be imported: {error}",
                hint='pip install "kdsl-kernels[triton]"',
            ) from error
        _modules[path] = module
    return module
