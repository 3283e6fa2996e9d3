"""The gathering kernel on a GPU: the interpreter's suite there."""

from __future__ import annotations

from typing import Any

import pytest

from kdsl.runtime.lines import gather
from tests.devices import DEVICE
from tests.interpreter.lines.test_property import *  # noqa: F403

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]


def test_more_than_two_to_the_thirty_one_numbers() -> None:
    """Offsets are 64-bit: the last lines of 4.3 GB are found and written."""
    if torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 16 GiB")
    lines = 2**31 // 128 + 1000
    held = torch.ones(lines, 128, dtype=torch.bfloat16, device="cuda")
    held[-1] = 5
    index = torch.arange(lines, device="cuda").flip(0)
    found = gather([held], index)
    assert bool((found[0] == 5).all())
    assert bool((found[1:1000] == 1).all())
    assert bool((found[-1] == 1).all())
