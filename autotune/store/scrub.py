"""Take out of free text what must not leave the machine."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from kdsl.runtime.records.form import Row, dumps
from kdsl.runtime.records.rows import Device, Measurement, Run, Toolchain

_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]+")
_NAMED = re.compile(
    r"(\b\w*(?:password|passwd|pwd|token|secret|api_?key|user|host|hostaddr)\s*[=:]\s*)[^\s,;]+",
    re.I,
)
_OPTION = re.compile(r"(--(?:password|passwd|token|secret|api[-_]key|user|host)\s+)[^\s,;]+", re.I)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+(?!\*)[A-Za-z0-9._~+/-]+=*")
_HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s'\":]+")
_UUID = re.compile(r"\b((?:GPU|MIG)-)?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}[\w/-]*")
_ADDRESS = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IN_URL = re.compile(r"(://[^\s:/@]*):[^\s/]*@")
_IN_QUERY = re.compile(r"(password=)[^\s&'\"]+", re.I)
_PSEUDONYM = re.compile(r"(?:[0-9a-f]{16})?")


def scrub(text: str) -> str:
    """``text`` without URLs' hosts and passwords, home folders, this host's name, addresses and GPU
    serials.

    Doing it twice changes nothing more.
    """
    text = _URL.sub(r"\1***", text)
    text = _NAMED.sub(r"\1***", text)
    text = _OPTION.sub(r"\1***", text)
    text = _BEARER.sub(r"\1 ***", text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    text = _HOME.sub("~", text)
    text = _UUID.sub(r"\1***", text)
    text = _ADDRESS.sub("<address>", text)
    full = socket.gethostname()
    for name in (full, full.partition(".")[0]):
        if len(name) > 1 and name != "localhost":
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "<host>", text)
    return text


def mask_passwords(text: str) -> str:
    """``text`` with its URLs' passwords hidden; hosts, which help to find a fault, stay."""
    return _IN_QUERY.sub(r"\1***", _IN_URL.sub(r"\1:***@", text))


def free_texts(row: Row) -> list[str]:
    """What in a row was written by people, compilers or drivers, and may say anything."""
    texts = [dumps(row.extra)] if row.extra else []
    if isinstance(row, Run):
        texts.append(row.command)
    elif isinstance(row, Measurement):
        texts.append(row.reason)
    elif isinstance(row, Toolchain):
        texts.append(row.numerics_env)
    elif isinstance(row, Device):
        texts.append(row.mig)
    return texts


def leaks(row: Row) -> bool:
    """Whether a row says what must not leave the machine."""
    if isinstance(row, Run):
        named = (row.host, row.card)
        if not all(_PSEUDONYM.fullmatch(name) for name in named):
            return True
    return any(scrub(text) != text for text in free_texts(row))
