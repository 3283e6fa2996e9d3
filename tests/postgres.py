"""A PostgreSQL server of the tests' own: started on a free port, thrown away at the end."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

HINT = "apt install postgresql, pip install 'kdsl-kernels[postgres]'"


def binaries() -> Path | None:
    """The folder of the newest server that is installed."""
    folders = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    named = shutil.which("initdb")
    if named:
        folders.append(Path(named).resolve().parent)
    whole = [f for f in folders if (f / "postgres").exists()]
    return max(whole, key=lambda f: [int(n) for n in re.findall(r"\d+", str(f))], default=None)


def why_not() -> str:
    """Why there can be no server here; empty where there can."""
    if binaries() is None:
        return f"no PostgreSQL server is installed: {HINT}"
    return "" if find_spec("psycopg") else f"psycopg is not installed: {HINT}"


class Server:
    """The server; ``initdb`` and ``postgres`` refuse root, so there they run as ``nobody``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kdsl-pg-"))
        self.password = secrets.token_hex(12)
        self._as: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": "/"}
        if os.geteuid() == 0:
            who = pwd.getpwnam("nobody")
            self._as |= {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
            os.chown(self.folder, who.pw_uid, who.pw_gid)
        self._log = self.folder / "log"
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _start(self) -> None:
        bin_folder = binaries()
        assert bin_folder is not None
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        subprocess.run(
            [str(bin_folder / "initdb"), "-D", str(self.folder / "data"), "-U", "tuner", "-A",
             "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, **self._as,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(bin_folder / "postgres"), "-D", str(self.folder / "data"), "-p",
                 str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1",
                 "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=60"],
                stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            try:
                self.ask("SELECT 1")
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.close()
                    raise
                time.sleep(0.1)

    def url(self, database: str = "postgres") -> str:
        """Of a database, with user and password."""
        return f"postgresql://tuner:{self.password}@127.0.0.1:{self.port}/{database}"

    def ask(self, text: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """What a statement gives, as the server's owner."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as link:
            found = link.execute(text.encode())
            return found.fetchall() if found.description else []

    def new(self) -> str:
        """The URL of a new, empty database."""
        name = f"t_{secrets.token_hex(6)}"
        self.ask(f"CREATE DATABASE {name}")
        return self.url(name)

    def stop(self) -> None:
        """End every connection and the server, as an administrator would."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def close(self) -> None:
        """End it and remove its files."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            self._process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
