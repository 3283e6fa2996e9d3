"""``python -m autotune merge``, ``diff``, ``doctor`` and ``prune``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.measuring.lock import hold
from kdsl.autotune.measuring.vitals import Gauge
from kdsl.autotune.recordings.subject import Names
from kdsl.autotune.screen import report
from kdsl.autotune.store import Store, merge, reading
from kdsl.autotune.store.checkup import examine
from kdsl.autotune.store.compare import Comparison, compare
from kdsl.autotune.store.database import Best
from kdsl.autotune.store.prune import prune
from kdsl.errors import KdslError, StoreError
from kdsl.runtime.records import Place, default_place
from kdsl.runtime.records.link import Symptom, is_server

DONE, FAULT = 0, 1
MOST = 20
"""Differing groups and problems that are shown."""


def run(given: argparse.Namespace, hardware: Hardware) -> int:
    """Do what the command line says, and return the exit code."""
    console = report.console()
    if given.command == "merge":
        return _merge(given.storage, given.sources)
    if given.command == "diff":
        with reading(given.a) as a, reading(given.b) as b:
            _compared(console, compare(a, b))
        return DONE
    if given.command == "prune":
        return _prune(given)
    return _doctor(console, given.storage, hardware)


def _merge(storage: Place | None, sources: list[Place]) -> int:
    skipped = 0
    with Store(storage) as store:
        for source in sources:
            done = merge(store, source)
            skipped += done.skipped
            for problem in done.problems[:MOST]:
                print(problem, file=sys.stderr)
            if done.skipped > MOST:
                print(f"and {done.skipped - MOST} more", file=sys.stderr)
            name = Path(source).name if not is_server(source) else "the other database"
            print(f"{name}: {done.added} new rows, {done.known} known, {done.skipped} skipped")
    return FAULT if skipped else DONE


def _compared(console: Console, found: Comparison) -> None:
    table = Table("rows of", title_justify="left")
    for name in ("both", "only A", "only B"):
        table.add_column(name, justify="right")
    for name, counts in found.counts.items():
        table.add_row(name, *map(str, counts))
    console.print(table)
    if found.disagreements:
        table = Table("workload", "GPU", "from", "A", "B")
        for one in found.disagreements[:MOST]:
            sides = (_best(one.a), _best(one.b))
            what = Text(Names().of(one.workload))
            table.add_row(what, one.device.name, one.kind, *map(Text, sides))
        console.print(table)
        if len(found.disagreements) > MOST:
            print(f"and {len(found.disagreements) - MOST} more")
    print(f"{found.agreed} bests agree, {len(found.disagreements)} differ")


def _best(best: Best | None) -> str:
    return "-" if best is None else f"{best.median_us:.1f} us {best.params}"


def _prune(given: argparse.Namespace) -> int:
    with Store(given.storage) as store:
        done = prune(store, older_days=given.older, keep=given.keep, apply=given.yes)
    word = "removed" if given.yes else "would remove"
    rows = ", ".join(f"{n} {table}" for table, n in done.rows.items()) or "nothing"
    print(f"{word}: {rows}")
    if done.statuses:
        said = ", ".join(f"{n} {status}" for status, n in sorted(done.statuses.items()))
        print(f"outcomes among them: {said}; {done.kept} stay, and every best with them")
    if done.rows and not given.yes:
        print("nothing was changed; --yes does it")
    return DONE


def _doctor(console: Console, storage: Place | None, hardware: Hardware) -> int:
    table = Table("", "", "")
    faults = 0
    for one in (*_database(storage), *_gpus(hardware)):
        faults += not one.sound
        mark = Text("ok", "green") if one.sound else Text("FAULT", "bold red")
        table.add_row(one.subject, mark, Text(one.said))
    console.print(table)
    print(f"{faults} faults" if faults else "sound")
    return FAULT if faults else DONE


def _database(storage: Place | None) -> Iterator[Symptom]:
    place = default_place() if storage is None else storage
    if not is_server(place) and not Path(place).exists():
        yield Symptom("database", True, f"none yet at {place}")
        return
    try:
        with Store(place, write=False) as store:
            yield Symptom("database", True, store.name)
            yield from examine(store)
    except StoreError as error:
        yield Symptom("database", False, str(error))


def _gpus(hardware: Hardware) -> Iterator[Symptom]:
    found = hardware.gpus()
    if not found:
        yield Symptom("GPU", True, "none here: times are predicted, or measured with --ray")
    for one in found:
        target, gauge = one.target, Gauge(one.card)
        now, cap = gauge.vitals(), gauge.power_cap_w()
        facts = [
            f"compute capability {target.cc // 10}.{target.cc % 10}",
            f"{target.sms} multiprocessors",
            f"driver {gauge.driver() or 'unknown'}",
            f"{now.clock_mhz:.0f} MHz" if now.clock_mhz else "clock unknown",
            f"{now.temp_c:.0f} C" if now.temp_c else "temperature unknown",
            f"{cap:.0f} W at most" if cap else "power limit unknown",
        ]
        yield Symptom(f"GPU {one.index}", True, f"{target.name}: {', '.join(facts)}")
        if target.live:
            said = "no data sheet of it here, so impossible times are not recognised"
            yield Symptom(f"GPU {one.index} in the table", True, said)
        try:
            with hold(one.card):
                yield Symptom(f"GPU {one.index} lock", True, "free to measure")
        except KdslError as error:
            yield Symptom(f"GPU {one.index} lock", True, error.what)
