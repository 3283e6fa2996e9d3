"""The tuner's end of a child process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kdsl.autotune.children.serve import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class ChildDied(Exception):
    """The child ended by itself; the message says how, with the last line it wrote."""


class ChildHung(Exception):
    """The child did not answer in time."""


class Child:
    """A Python process of its own session that runs ``function(connection, *arguments)``.

    ``function`` is given as ``"package.module:name"``.  It is a fresh process, not a fork, with
    this one's import path; a Ctrl-C at the terminal does not reach it, and it ends when this
    process does.  What it prints goes to a file, not to the terminal.  ``keep`` are file
    descriptors it holds open, ``environment`` variables that it sees besides this process's own.
    """

    def __init__(
        self,
        function: str,
        *arguments: Any,
        keep: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.connection: Connection[Any, Any]
        self.connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno()),
                 str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**inherited, **(environment or {})},
                pass_fds=(theirs.fileno(), *keep),
                start_new_session=True,
            )  # fmt: skip
        try:
            self.send((function, arguments))
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Hand over any plain value; ChildDied if nobody is there."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise ChildDied(self._epitaph()) from error

    def receive(self, seconds: float) -> Any:
        """The next message; ChildHung after so many seconds, ChildDied if there will be none."""
        try:
            if not self.connection.poll(max(seconds, 0.0)):
                raise ChildHung(f"no answer within {seconds:.0f} s")
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise ChildDied(self._epitaph()) from error

    def _epitaph(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the process closed its connection"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"the process was killed by {signal.Signals(-code).name}{self._said()}"
        return f"the process ended with code {code}{self._said()}"

    def _said(self) -> str:
        self._log.seek(0)
        lines = [
            line.strip() for line in self._log.read()[-8192:].decode(errors="replace").split("\n")
        ]
        last = next((line for line in reversed(lines) if line), "")
        return f": {last[:300]}" if last else ""

    def kill(self) -> None:
        """End the process and everything it started; does nothing the second time."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()
        self._log.close()
