"""Kernels in Triton's interpreter: only with ``TRITON_INTERPRET=1`` set before triton is imported.

`tests/test_interpreter.py` runs each file of this folder in a process of its own with the variable
set, so a plain ``pytest`` covers them; here they are left out without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    import torch

    from tests.devices import poisoned_memory

    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
        yield
