"""Tables of what recordings say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from kdsl.autotune.distil import Rule
from kdsl.autotune.model import Case
from kdsl.autotune.model.judging import summary
from kdsl.autotune.recordings.ablation import Ablation
from kdsl.autotune.recordings.replay import Replay, counts, share
from kdsl.runtime.calibration import Calibration


def replays(console: Console, found: Sequence[Replay], budget: int, within: float) -> None:
    """One line a recording, and how many pairs of all are within the bound."""
    table = _table("workload", "GPU", right=("candidates", "best us", "default", "within",
                   "first within at", "worst"))  # fmt: skip
    for r in found:
        firsts = sorted(a.found_at or budget + 1 for a in r.attempts)
        first = firsts[len(firsts) // 2]
        table.add_row(
            r.recording.name,
            r.recording.target.name,
            str(len(r.recording.outcomes)),
            f"{r.recording.best_us:.1f}",
            _times(r.recording.regret(r.recording.default)),
            f"{r.reached}/{len(r.attempts)}",
            "never" if first > budget else str(first),
            _times(max(a.regret for a in r.attempts)),
        )
    console.print(table)
    number = counts(found)
    _say(
        console,
        f"{number['reached']} of {number['pairs']} (recording, seed) pairs, {share(found):.1%}: "
        f"within {within:.0%} of the recorded best after at most {budget} measurements",
    )


def cases(
    console: Console, at: tuple[str, str, int], found: Sequence[Case], note: str = "held out"
) -> None:
    """Every case, then the figures that goals are set in."""
    op, unit, cc = at
    table = _table("workload", "GPU", right=("candidates", "Spearman", "top choice", "factor",
                   "bound alone", "its top choice"))  # fmt: skip
    table.title = f"{op} {unit} cc {cc / 10:.1f}, {note}"
    for c in found:
        level = math.exp(sum(map(math.log, c.factors)) / len(c.factors))
        table.add_row(
            c.recording.name,
            c.recording.target.name,
            str(len(c.measured)),
            f"{c.spearman:.3f}",
            _times(c.regret),
            _times(level),
            f"{c.plain_spearman:.3f}",
            _times(c.plain_regret),
        )
    console.print(table)
    if not found:
        _say(console, f"{op} {unit} cc {cc / 10:.1f}: one recording, nothing to hold out")
        return
    s = summary(found)
    _say(
        console,
        f"Spearman within a key: median {s['spearman_median']:.3f}, worst {s['spearman_worst']:.3f}"
        f"; top choice over best: median {s['regret_median']:.3f}x, worst "
        f"{s['regret_worst']:.3f}x",
    )


def calibration(console: Console, entry: Calibration) -> None:
    """What was fitted, and to what."""
    typical = entry.typical_error
    said = "nothing could be left out, so it is not used"
    if math.isfinite(typical):
        said = f"typical error {typical:.2f}x where left out"
    _say(
        console,
        f"{entry.op} {entry.unit} cc {entry.cc / 10:.1f}: {entry.rows} rows of "
        f"{len(entry.workloads)} workloads on {', '.join(entry.devices)}; {said}",
    )


def rules(console: Console, found: Sequence[Rule]) -> None:
    """What each rule loses, beside the hand-written one."""
    table = _table("class", right=("workloads", "choices", "worst", "mean", "written, worst",
                   "written, mean"))  # fmt: skip
    for rule in found:
        written = [loss for loss in rule.written if math.isfinite(loss)]
        table.add_row(
            " ".join(f"{name}={value}" for name, value in rule.equal.items()),
            str(len(rule.losses)),
            str(len(rule.tree.leaves)),
            _times(max(rule.losses)),
            _times(_mean(rule.losses)),
            _times(max(written, default=None)),
            _times(_mean(written) if written else None),
        )
    if found:
        console.print(table)


def ablation(console: Console, found: Sequence[Ablation]) -> None:
    """What each recording would lose under coarser keys."""
    if not found:
        _say(console, "no two recordings of one size with different masks")
        return
    table = _table("workload", "GPU", right=("other masks", "own best", "nearest mask", "octaves",
                   "any mask, mean", "worst", "default"))  # fmt: skip
    for a in found:
        table.add_row(
            a.recording.name,
            a.recording.target.name,
            str(a.others),
            "1.000x",
            _times(a.nearest),
            f"{a.distance:.2f}{' (one bucket)' if a.same_bucket else ''}",
            _times(a.mean),
            _times(a.worst),
            _times(a.default),
        )
    console.print(table)
    near = _mean(a.nearest for a in found)
    _say(
        console,
        f"time over the best, geometric mean: exact key 1.000x, nearest mask {near:.3f}x, sizes "
        f"alone {_mean(a.mean for a in found):.3f}x (worst {max(a.worst for a in found):.3f}x)",
    )


def _mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}x"


def _table(*names: str, right: Sequence[str]) -> Table:
    table = Table(title_justify="left")
    for name in names:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
