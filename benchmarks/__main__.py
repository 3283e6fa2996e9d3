"""``python -m benchmarks SUITE``: check, time side by side, append rows; ``table`` prints them.

``overhead`` times the host's part of a call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import overhead, rows
from benchmarks.attention import VARIANTS
from benchmarks.attention import suite as attention
from benchmarks.cases import ATTENTION, LISTS
from benchmarks.lists import suite as lists
from benchmarks.peers import PEERS
from benchmarks.table import show
from kdsl.errors import KdslError

SUITES: dict[str, tuple[Any, Mapping[str, object]]] = {
    "attention": (attention, ATTENTION),
    "lists": (lists, LISTS),
}
RATES = {"flop": (1e9, "TFLOP/s"), "byte": (1e6, "GB/s")}


def main(arguments: list[str] | None = None) -> int:
    """Run a suite, time host overhead, print the table of results, or check rows' commits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=[*SUITES, "overhead", "table", "check"])
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        help=f"names by comma, also {' and '.join(VARIANTS)}; default: %(default)s",
    )
    parser.add_argument("--cases", default="", help="case ids by comma; default: the whole suite")
    parser.add_argument("--results", type=Path, default=rows.ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--commit", default="", help="the commit of these sources, where Git is not"
    )
    given = parser.parse_args(arguments)
    if given.suite == "overhead":
        return overhead.main()
    if given.suite == "table":
        show(rows.load(given.results))
        return 0
    if given.suite == "check":
        bad = rows.unproven(given.results)
        print("\n".join(bad) or "every row belongs to its commit")
        return 1 if bad else 0
    run, cases = SUITES[given.suite]
    wanted = [c for c in given.cases.split(",") if c]
    peers = [p for p in given.peers.split(",") if p]
    for names, known, what in ((wanted, cases, "case"), (peers, [*PEERS, *VARIANTS], "peer")):
        for name in names:
            if name not in known:
                parser.error(f"unknown {what} {name!r}; known: {', '.join(known)}")
    try:
        found = []
        for row in run(peers, wanted, given.commit or rows.current_commit()):
            scale, unit = RATES[row["unit"]]
            rate = row["work"] / row["ms"] / scale
            print(
                f"{row['case']:22} {row['impl']:17} {row['ms']:9.4f} ms {rate:7.1f} {unit} "
                f"error {row['error']:.5f}",
                flush=True,
            )
            rows.append([row], given.results, row["gpu"].replace(" ", "-"), given.suite)
            found.append(row)
    except KdslError as error:
        print(error, file=sys.stderr)
        return 2
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
