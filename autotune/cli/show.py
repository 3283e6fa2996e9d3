"""``python -m autotune show`` and ``export``."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

from kdsl import targets, workloads
from kdsl.autotune.cli.plan import understanding
from kdsl.autotune.recordings.subject import Names
from kdsl.autotune.screen import report
from kdsl.autotune.session.ledger import outcomes_of
from kdsl.autotune.session.tuner import Tally
from kdsl.autotune.store import Store, export_jsonl
from kdsl.runtime.records import Trial, Workload


def run(given: argparse.Namespace) -> int:
    """Do what the command line says, and return the exit code."""
    with understanding():
        gpu = targets.get(given.gpu).name if given.gpu is not None else None
        if getattr(given, "workload", None) is not None:
            workloads.get(given.workload)
    with Store(given.storage) as store:
        if given.command == "export":
            count = export_jsonl(store, given.file, device=gpu)
            print(f"{count} rows in {given.file}")
            return 0
        found = [
            (device, tally)
            for device, tally in tallies(store)
            if gpu in (None, device) and given.workload in (None, tally.name)
        ]
    console = report.console()
    if not found:
        print("no such rows; python -m autotune --gpu NAME makes some")
        return 0
    report.summary(console, found)
    if given.workload is not None:
        for _, tally in found:
            report.ranking(console, tally)
    return 0


def tallies(store: Store) -> Iterator[tuple[str, Tally]]:
    """GPU and results of every workload, by kind and tools; the catalogue's workloads first."""
    names = Names()
    order = {name: number for number, name in enumerate(workloads.names())}
    found = [row for row in store.rows() if isinstance(row, Workload)]

    def place(row: Workload) -> tuple[int, str]:
        return order.get(names.catalogue(row), len(order)), row.id

    condemned = store.source.condemned()
    for row in sorted(found, key=place):
        groups: defaultdict[tuple[str, str, str], list[Trial]] = defaultdict(list)
        for trial in store.source.trials(row.id):
            key = (trial.device.name, trial.measurement.kind, trial.toolchain.id)
            groups[key].append(trial)
        for (device, kind, _), trials in sorted(groups.items()):
            outcomes = outcomes_of(trials, condemned)
            tally = Tally(names.of(row), kind, 0, None, outcomes)
            default = {t.candidate.id: t for t in trials if t.measurement.is_default}
            params = [t.candidate.params for t in default.values()]
            tally.default = next((o for o in outcomes if o.params in params), None)
            tally.exhausted = tally.settled = True
            yield device, tally
