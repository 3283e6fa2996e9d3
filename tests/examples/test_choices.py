"""The page on blocks chosen in the call: its code runs, in one go, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, one after the other, with the assertions that stand in them; what they print
    names the rule, the error and the density of the sample."""
    page = (Path(__file__).parents[2] / "docs" / "choices.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 4
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    said = capsys.readouterr().out
    for text in ("topk(2)", "combine by `&` and `|` alone", "density"):
        assert text in said
    assert names["out"].shape == names["q"].shape
