"""Commands that work on measured rows: replay, calibrate, evaluate, ablate, distil, report."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import kdsl.kernels
from kdsl import targets
from kdsl.autotune.cli.arguments import Usage
from kdsl.autotune.cli.plan import understanding
from kdsl.autotune.recordings import Recording, read, recordings
from kdsl.autotune.recordings.files import Held
from kdsl.autotune.screen import evidence as screen
from kdsl.autotune.screen.report import console
from kdsl.errors import KdslError
from kdsl.runtime import calibration


def run(given: argparse.Namespace) -> int:
    """Do what the command line says, and return the exit code."""
    with understanding():
        gpu = targets.get(given.gpu).name if given.gpu is not None else None
        held = read(given.files, given.storage, own=given.command != "distil")
    for problem in held.problems:
        print(f"skipped {problem}")
    return _DOES[given.command](given, held, gpu)


def _found(held: Held, gpu: str | None, *, whole: bool = False) -> list[Recording]:
    """Recordings, or KdslError where there are none; those left out are named."""
    found, left = recordings(held, gpu)
    for line in left:
        print(f"left out: {line}")
    if whole:
        for r in (r for r in found if not r.whole):
            print(f"left out: {r.name} on {r.target.name} has {len(r.outcomes)} candidates alone")
        found = [r for r in found if r.whole]
    if not found:
        raise KdslError("no recordings", hint="python -m autotune --gpu NAME --record")
    return found


def _replay(given: argparse.Namespace, held: Held, gpu: str | None) -> int:
    from kdsl.autotune.recordings.replay import replay, share, start

    replays = []
    found = _found(held, gpu, whole=True)
    for recording in found:
        if recording.regret(recording.default) is None:
            print(f"left out: {recording.name}: the default was not measured")
            continue
        warm, model = start(recording, found, held) if given.held_out else ((), None)
        replays.append(
            replay(
                recording,
                seeds=range(given.seeds),
                budget=given.budget,
                within=given.within,
                warm=warm,
                calibration=model,
            )
        )
    screen.replays(console(), replays, given.budget, given.within)
    return int(given.require is not None and share(replays) < given.require)


def _calibrate(given: argparse.Namespace, held: Held, gpu: str | None) -> int:
    from kdsl.autotune.model import groups, held_out, samples_of

    path = given.output or calibration.own_path()
    lessons = groups(samples_of(r) for r in _found(held, gpu))
    made = [entry for _, group in sorted(lessons.items()) for entry in [held_out(group)[0]]]
    for entry in made:
        screen.calibration(console(), entry)
    made = [entry for entry in made if math.isfinite(entry.typical_error)]
    before = calibration.parse(path.read_text(), str(path)) if path.exists() else ()
    new = {(c.op, c.unit, c.cc): c for c in made}
    kept = [c for c in before if (c.op, c.unit, c.cc) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(calibration.text((*kept, *new.values())))
    print(f"calibrations written: {len(new)}, in {path}")
    return 0


def _evaluate(given: argparse.Namespace, held: Held, gpu: str | None) -> int:
    from kdsl.autotune.model import groups, held_out, samples_of, transferred

    lessons = groups(samples_of(r) for r in _found(held, None if given.train else gpu))
    if given.train is None:
        for at, group in sorted(lessons.items()):
            screen.cases(console(), at, held_out(group)[1])
        return 0
    with understanding():
        source = targets.get(given.train).name
    for at, group in sorted(lessons.items()):
        train = [x for x in group if x.target.name == source]
        test = [x for x in group if x.target.name != source and gpu in (None, x.target.name)]
        if train and test:
            screen.cases(console(), at, transferred(train, test), f"from {source}")
    return 0


def _ablate(given: argparse.Namespace, held: Held, gpu: str | None) -> int:
    from kdsl.autotune.recordings.ablation import ablate

    screen.ablation(console(), ablate(_found(held, gpu)))
    return 0


def _distil(given: argparse.Namespace, held: Held, gpu: str | None) -> int:
    from kdsl.autotune.distil import rules, source

    found = [r for r in recordings(held, gpu)[0] if r.job.tunable.op == given.op]
    made = rules(found)
    ids = [row for r in found for row in r.row_ids]
    text = source(given.op, made, ids)
    path = given.output or Path(kdsl.kernels.__path__[0]) / given.op / "distilled.py"
    path.write_text(text)
    screen.rules(console(), made)
    print(f"{len(made)} rules in {path}")
    return 0


def _report(given: argparse.Namespace, held: Held, gpu: str | None) -> int:
    from kdsl.autotune.page import page, sections

    found = _found(held, gpu)
    chosen = [r for r in found if given.workload in (None, r.name)]
    if not chosen:
        raise Usage(
            f"no rows of {given.workload!r}", hint=", ".join(sorted({r.name for r in found}))
        )
    given.output.write_text(page(sections(chosen)), encoding="utf-8")
    print(f"{len(chosen)} workloads in {given.output}")
    return 0


_DOES: Mapping[str, Callable[[argparse.Namespace, Held, str | None], int]] = {
    "replay": _replay,
    "calibrate": _calibrate,
    "evaluate": _evaluate,
    "ablate": _ablate,
    "distil": _distil,
    "report": _report,
}
