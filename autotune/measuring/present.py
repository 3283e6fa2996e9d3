"""Which GPUs are here, asked in a process of its own so that this one holds no CUDA context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import SimpleNamespace

from kdsl import targets
from kdsl.autotune.children import Child, ChildDied, ChildHung
from kdsl.errors import UnsupportedError
from kdsl.targets import Target

ANSWER_S = 180.0


@dataclass(frozen=True)
class Present:
    """A GPU of this machine: CUDA's number for it, what it is, and its serial."""

    index: int
    target: Target
    card: str


def devices() -> list[Present]:
    """Every GPU that CUDA sees here and that this library can describe."""
    if not _driver():
        return []
    child = Child("kdsl.autotune.measuring.cuda:answer")
    try:
        said = child.receive(ANSWER_S)
    except (ChildDied, ChildHung):
        return []
    finally:
        child.kill()
    found = []
    for index, facts in enumerate(said if isinstance(said, list) else []):
        try:
            target = targets.from_device(SimpleNamespace(**facts))
        except UnsupportedError:
            continue
        found.append(Present(index, target, str(facts["uuid"])))
    return found


def _driver() -> bool:
    """Whether there is a CUDA driver at all: much cheaper to know than what torch can see."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
