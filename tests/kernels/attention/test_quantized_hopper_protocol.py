"""The quantized Hopper template waits and arrives as the 16-bit one, whose protocol is modelled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kdsl.kernels.attention.generate import HOPPER
from kdsl.kernels.attention.quantized.hopper.config import MODULES

EVENT = re.compile(r"(mbarrier\.(?:wait|arrive|expect|init)|tma\.store_wait)\(([^#\n]*)\)$")
RENAMED = {
    "coded_steps": "late_steps",
    "coded_early_steps": "early_steps",
    "coded_consumer": "consumer",
    "coded_feed": "feed",
    "coded_producer": "producer",
    "attention_quantized": "attention_forward",
}


def events(modules: tuple[Path, ...]) -> dict[str, list[str]]:
    """Waits and arrivals of each function, in the order in which they are written."""
    out: dict[str, list[str]] = {}
    name = ""
    for line in "\n".join(path.read_text() for path in modules).splitlines():
        if line.startswith("def "):
            name = line[4:].split("(")[0]
        found = EVENT.search(line.strip())
        if found:
            text = re.sub(r"C\.(ROW_BYTES|D0)\b", "ROW", found.group(0))
            out.setdefault(RENAMED.get(name, name), []).append(text)
    return out


def test_waits_and_arrivals_are_those_of_the_modelled_template() -> None:
    """Function by function the same barriers, phases and predicates in the same order: what
    `test_hopper_protocol.py` replays is true of both.

    Turns between warpgroups, which this template does not take, are no mbarriers.
    """
    mine, modelled = events(MODULES), events(HOPPER)
    assert set(mine) == set(modelled) >= set(RENAMED.values())
    for name, found in modelled.items():
        assert mine[name] == found, name
