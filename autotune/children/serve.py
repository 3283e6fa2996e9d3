"""The child's end: tie its life to the parent's, then run what the parent names."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def main(descriptor: int, parent: int) -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        function, arguments = connection.recv()
        module, name = function.split(":")
        getattr(import_module(module), name)(connection, *arguments)
    except (EOFError, BrokenPipeError):
        pass  # the parent has gone or wants no more


def die_with(parent: int) -> None:
    """End this process when the parent ends, however it ends; Linux alone can promise it.

    Elsewhere the process ends at its next message.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
