"""``python -m autotune --world N``: partitions through the tuner, by simulated time."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from kdsl.autotune.cli import main
from kdsl.autotune.cli.arguments import Usage, tune_parser
from kdsl.autotune.cli.plan import PROGRAM, understood
from kdsl.autotune.store import Store
from kdsl.runtime.records import Measurement, Toolchain, Workload
from kdsl.specs import Attention, Partition

WORDS = ["--gpu", "h100", "--world", "4", "--workload", "clip", "--budget", "12"]


def test_rows_are_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run leaves predicted rows of operation ``partition`` with the ranks among the sizes and the
    costs' id beside the tools; the best is no slower than the default; a second run adds none."""
    place = ["--storage", str(tmp_path / "tuning.db")]
    assert main([*WORDS, *place]) == 0
    assert "4 x h100, simulated: 12 predicted, 0 measured" in capsys.readouterr().out
    with Store(tmp_path / "tuning.db") as store:
        rows = list(store.rows())
    found = [r for r in rows if isinstance(r, Measurement)]
    assert len(found) == 12
    assert {(r.kind, r.status) for r in found} == {("predicted", "ok")}
    default = next(r for r in found if r.is_default)
    assert min(r.median_us or 1e9 for r in found) <= (default.median_us or 0)
    (workload,) = (r for r in rows if isinstance(r, Workload))
    assert (workload.op, workload.dims["world_size"]) == ("partition", 4)
    (tools,) = (r for r in rows if isinstance(r, Toolchain))
    assert len(str(tools.extra["model"])) == 12
    assert main([*WORDS, *place]) == 0
    assert "0 predicted, 0 measured (12 more known before)" in capsys.readouterr().out


def test_command_lines_come_back() -> None:
    """A run that is gone on with keeps ranks, nodes and links, and names say how many ranks."""
    plan = understood(
        tune_parser().parse_args([*WORDS, "--node", "2", "--link", "pcie", "--drift", "0.25"])
    )
    assert [name for name, _ in plan.jobs] == ["clip on 4"]
    again = understood(tune_parser().parse_args(shlex.split(plan.command)[len(PROGRAM) :]))
    assert again.words == plan.words
    job = again.jobs[0][1]()
    assert job.name == "clip on 4"
    spec = job.tunable.spec
    assert isinstance(spec, Partition)
    assert job.tunable.drift == 0.25
    assert (spec.world, spec.node, spec.link) == (4, 2, "pcie")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--world", "0"], "--world 0"),
        (["--world", "4", "--node", "3"], "nodes of 3"),
        (["--node", "2"], "belongs to --world"),
        (["--drift", "0.1"], "belongs to --world"),
        (["--world", "4", "--drift", "2"], "--drift 2"),
        (["--world", "4", "--direction", "backward"], "--direction says nothing"),
        (["--world", "4", "--require-device"], "--require-device says nothing"),
    ],
)
def test_wrong_command_lines(words: list[str], said: str) -> None:
    """Ranks that make no group, and options that do not go with simulation, are named."""
    with pytest.raises(Usage, match=said):
        understood(tune_parser().parse_args(["--gpu", "h100", "--workload", "clip", *words]))


def test_a_partition_from_a_file(tmp_path: Path) -> None:
    """A spec of one's own, saved as JSON, is a job of one operation."""
    spec = Partition(attention=Attention(tokens=512, heads=4, head_dim=64), world=2)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(spec.to_json()))
    plan = understood(tune_parser().parse_args(["--gpu", "h100", "--spec", str(path)]))
    assert [name for name, _ in plan.jobs] == ["mine"]
    assert plan.jobs[0][1]().tunable.spec == spec
