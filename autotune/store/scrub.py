"""Take out of free text what must not leave the machine."""

from __future__ import annotations

import re
import socket
from pathlib import Path

_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]+")
_NAMED = re.compile(
    r"\b(password|passwd|pwd|token|secret|api_?key|user|host|hostaddr)(\s*[=:]\s*)[^\s,;]+", re.I
)
_HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s'\":]+")
_SERIAL = re.compile(r"\b(GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}[\w/-]*")


def scrub(text: str) -> str:
    """``text`` without URLs' hosts and passwords, home folders, this host's name and GPU serials.

    Doing it twice changes nothing more.
    """
    text = _URL.sub(r"\1***", text)
    text = _NAMED.sub(r"\1\2***", text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    text = _HOME.sub("~", text)
    text = _SERIAL.sub(r"\1-***", text)
    full = socket.gethostname()
    for name in (full, full.partition(".")[0]):
        if len(name) > 1 and name != "localhost":
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "<host>", text)
    return text
