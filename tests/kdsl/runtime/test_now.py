"""``mode="now"``: the tuner runs as a process, and what it stored is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdsl
from kdsl import Attention, masks, targets
from kdsl.autotune.session.evaluate import timed
from kdsl.autotune.session.ledger import Ledger
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.store import Store
from kdsl.errors import ConfigError
from kdsl.runtime import choice
from kdsl.runtime.keying import key_for, space_hash
from kdsl.runtime.tunables import tunable_for

H100 = targets.get("h100")
SPEC = Attention(
    tokens=256, heads=2, head_dim=64, mask=masks.blocks("plan", block=(64, 64)), block=(64, 64)
)
PLAN = {"plan": np.ones((2, 4, 4), np.uint8)}
CHOSEN = {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2, "loads": "pointer"}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database of the test's own."""
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "tuning.sqlite"))
    return tmp_path / "tuning.sqlite"


def settle(mode: str, here: bool = True) -> choice.Choice:
    """The choice for the spec on an H100."""
    tunable = tunable_for(SPEC, PLAN)
    found = choice.settle(tunable, H100, "triton", None, mode, here=here, tables=PLAN)
    assert found is not None
    return found


def test_what_the_tuner_stored_is_taken(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec and tables reach the process as files; its row is then the answer, and is asked once."""
    calls = []

    def tuner(command: list[str], **options: Any) -> Any:
        words = dict(zip(command[3::2], command[4::2], strict=True))
        calls.append(words)
        assert command[:3] == [sys.executable, "-m", "kdsl.autotune"]
        spec = kdsl.Attention.from_json(json.loads(Path(words["--spec"]).read_text()))
        with np.load(words["--tables"]) as held:
            tunable = tunable_for(spec, dict(held))
        with Store(database) as store:
            run = store.begin(
                "fake", host="", card="", budget="", sampler="", seed=0, git_rev="", git_dirty=False
            )
            space = space_hash(tunable.space(H100))
            default = tunable.default(H100)
            ledger = Ledger(store, run, key_for(tunable, H100), space, "measured", default)
            ledger.add(timed(Outcome(CHOSEN, "ok"), [7.0, 7.1, 7.2, 7.0, 7.1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(choice.subprocess, "run", tuner)
    assert settle("now", here=False).rung == "rule"
    assert calls == [], "nothing can be measured for a GPU that is not here"
    found = settle("now")
    assert (found.rung, dict(found.params), found.measured_us) == ("exact", CHOSEN, 7.1)
    assert [words["--gpu"] for words in calls] == ["h100"]
    assert settle("now").rung == "exact"
    assert len(calls) == 1
    assert settle("strict").params == CHOSEN


def test_a_tuner_that_fails_is_quoted(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code and last words are in the error, with the command to run by hand."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho first >&2\necho the GPU is in use >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ConfigError, match="ended with exit code 3") as caught:
        settle("now")
    assert "the GPU is in use" in caught.value.where
    assert "-m kdsl.autotune --gpu h100" in caught.value.hint
    assert not database.exists()
