"""The page on formats: its code runs, in one go, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.filterwarnings("ignore:no CUDA GPU here", "ignore:Sparse BSR tensor support")
def test_the_code_of_the_page_runs() -> None:
    """All blocks, one after the other, with the assertions that stand in them."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    page = (Path(__file__).parents[3] / "docs" / "interop.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 6
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    assert names["out"].any()
    assert (names["rows"].kept() == names["video"].rows().kept()[:, :1]).all()
