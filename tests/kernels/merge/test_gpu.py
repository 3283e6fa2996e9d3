"""The merging kernel on a GPU: the interpreter's suite with bfloat16, and a result of 4.3 GB."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdsl.runtime.merge import merge
from tests.devices import DEVICE
from tests.interpreter.merge.test_property import *  # noqa: F403

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]


def test_more_than_two_to_the_thirty_one_elements() -> None:
    """Offsets are 64-bit: the last rows of a result of 4.3 GB are merged."""
    if torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 16 GiB")
    rows = 2**31 // 128 + 1000
    total, out = torch.ones(2, rows, 128, dtype=torch.bfloat16, device="cuda")
    out *= 3
    lse = torch.zeros(2, rows, device="cuda")
    found, joint = merge(total, lse[0], out, lse[1])
    assert bool((found[-2000:] == 2).all())
    assert float((joint - math.log(2)).abs().max()) < 1e-6
