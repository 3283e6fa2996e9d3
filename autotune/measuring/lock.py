"""One measuring process a GPU: a lock file that a dead process cannot keep."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdsl.errors import KdslError, StoreError
from kdsl.runtime.codecache import cache_folder


@contextmanager
def hold(card: str, folder: Path | None = None) -> Iterator[int]:
    """Hold the lock of a card; yields the descriptor, which a child may keep open as well.

    KdslError with the holder's process id if somebody measures there.
    """
    place = folder or cache_folder()
    path = place / f"gpu-{hashlib.sha256(card.encode()).hexdigest()[:16]}.lock"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"the lock of the GPU cannot be made: {error.strerror}",
            where=str(path),
            hint="KDSL_CACHE_DIR=/a/folder/of/yours",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise KdslError(
                f"another process measures on this GPU: pid {holder}",
                where=str(path),
                hint="wait for it, or end it; two on one card would spoil each other's times",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
