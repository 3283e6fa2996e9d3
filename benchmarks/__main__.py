"""``python -m benchmarks SUITE``: check, time side by side with peers, append rows to the results.

``attention``, ``shapes``, ``lists``, ``prepass``, ``quantize``, ``matmul`` and ``weight_only`` need
a GPU.  ``overhead``, ``partition``, ``quality`` and ``memory`` do not: the host's part of a call,
plans for many ranks, errors of codes and rotations, bytes of blocks.  ``table`` prints the results,
``check`` says whether each row belongs to its commit.  ``sequence_parallel`` is run by torchrun, on
GPUs or CPUs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import overhead, partition, quality, rows, sequence_parallel
from benchmarks.attention import VARIANTS
from benchmarks.attention import suite as attention
from benchmarks.cases import ATTENTION, LISTS, MATMUL, PREPASS, QUANTIZE, WEIGHT_ONLY
from benchmarks.lists import suite as lists
from benchmarks.matmul import suite as matmul
from benchmarks.peers import PEERS
from benchmarks.prepass import suite as prepass
from benchmarks.quantize import suite as quantize
from benchmarks.shapes import SHAPES
from benchmarks.shapes import suite as shapes
from benchmarks.table import show
from benchmarks.virtual.cases import MODELS
from benchmarks.virtual.suite import Asked
from benchmarks.virtual.suite import suite as virtual
from benchmarks.weight_only import suite as weight_only
from kdsl.errors import KdslError

TIMED = {
    "attention": (attention, ATTENTION),
    "shapes": (shapes, SHAPES),
    "lists": (lists, LISTS),
    "prepass": (prepass, PREPASS),
    "quantize": (quantize, QUANTIZE),
    "matmul": (matmul, MATMUL),
    "weight_only": (weight_only, WEIGHT_ONLY),
}
"""Suites of timed cases: what yields rows, and the cases by id."""
RATES = {"flop": (1e9, "TFLOP/s"), "byte": (1e6, "GB/s")}


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 1 where a check fails, 2 where a suite cannot run here."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except (KdslError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="SUITE")
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument(
        "--results",
        type=Path,
        default=rows.ROOT / "benchmarks" / "results",
        help="folder of rows (default: benchmarks/results)",
    )
    written = argparse.ArgumentParser(add_help=False, parents=[results])
    written.add_argument(
        "--commit", default="", help="the commit of these sources, where Git is not"
    )
    for name, (suite, cases) in TIMED.items():
        timed = commands.add_parser(name, parents=[written], help=_first_line(suite.__doc__))
        timed.add_argument(
            "--cases", default=[], type=_names(cases), help="case ids by comma; default: all"
        )
        timed.add_argument(
            "--peers",
            default=list(PEERS),
            type=_names([*PEERS, *VARIANTS]),
            help=f"names by comma, also {' and '.join(VARIANTS)}; default: {','.join(PEERS)}",
        )
        timed.set_defaults(run=_timed, suite=name)
    plain = commands.add_parser("overhead", help="the host's part of a call, launch left out")
    plain.set_defaults(run=lambda _: overhead.main())
    plain = commands.add_parser("partition", help="balance, planning time and simulated ranks")
    plain.set_defaults(run=lambda _: _lines(partition.suite()))
    ranks = commands.add_parser(
        "sequence_parallel",
        parents=[written],
        help="plans carried out by processes that torchrun started, or rank by rank on one GPU",
    )
    which = ranks.add_mutually_exclusive_group(required=True)
    which.add_argument("--world", type=int, help="how many processes there are")
    which.add_argument(
        "--virtual", type=_numbers, metavar="2,4,8", help="ranks that are run one by one, one GPU"
    )
    ranks.add_argument(
        "--cases",
        default=[],
        type=_names([*{**sequence_parallel.CASES, **MODELS}]),
        help="models by comma",
    )
    ranks.add_argument(
        "--budget", type=float, default=300.0, help="seconds, with --virtual (default: 300)"
    )
    ranks.add_argument(
        "--fit", action="store_true", help="keep fitted costs beside the tuning database"
    )
    ranks.set_defaults(run=_on_ranks)
    codes = commands.add_parser(
        "quality", parents=[written], help="errors of codes and rotations, with NumPy alone"
    )
    codes.add_argument("--weights", type=Path, help="trained weights: .safetensors or .npz")
    codes.add_argument(
        "--trained",
        type=int,
        metavar="STEPS",
        help="weights and inputs of the example's model after so many training steps",
    )
    codes.set_defaults(run=_quality)
    sizes = commands.add_parser(
        "memory", parents=[written], help="bytes of blocks at several bits; with a GPU their peaks"
    )
    sizes.set_defaults(run=_memory)
    plain = commands.add_parser("table", parents=[results], help="print the results")
    plain.set_defaults(run=lambda given: show(rows.load(given.results)) or 0)
    plain = commands.add_parser("check", parents=[results], help="rows belong to their commits")
    plain.set_defaults(run=_check)
    return parser


def _on_ranks(given: argparse.Namespace) -> int:
    if given.virtual:
        commit = given.commit or rows.current_commit()
        asked = Asked(given.virtual, given.cases, given.results, commit, given.budget, given.fit)
        return _lines(virtual(asked))
    for line in sequence_parallel.suite(given.world, given.cases, given.fit):
        if os.environ["RANK"] == "0":
            print(line, flush=True)
    return 0


def _numbers(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers by comma, as 2,4,8") from None
    if found[0] < 2:
        raise argparse.ArgumentTypeError(f"{found[0]} ranks: 2 or more")
    return found


def _first_line(text: str | None) -> str:
    line = (text or "").splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _names(known: Mapping[str, Any] | list[str]) -> Any:
    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known: {', '.join(known)}")
        return names

    return read


def _timed(given: argparse.Namespace) -> int:
    run, _ = TIMED[given.suite]
    found = []
    for row in run(given.peers, given.cases, given.commit or rows.current_commit()):
        scale, unit = RATES[row["unit"]]
        rate = row["work"] / row["ms"] / scale
        print(
            f"{row['case']:22} {row['impl']:17} {row['ms']:9.4f} ms {rate:7.1f} {unit} "
            f"error {row['error']:.5f}",
            flush=True,
        )
        rows.append([row], given.results, row["gpu"].replace(" ", "-"), given.suite)
        found.append(row)
    show(found)
    return 0


def _lines(lines: Iterator[str]) -> int:
    for line in lines:
        print(line, flush=True)
    return 0


def _quality(given: argparse.Namespace) -> int:
    commit = given.commit or rows.current_commit()
    quality.write(given.results, commit, given.weights, given.trained)
    return 0


def _memory(given: argparse.Namespace) -> int:
    from benchmarks import memory

    memory.write(given.results, given.commit or rows.current_commit())
    return 0


def _check(given: argparse.Namespace) -> int:
    bad = rows.unproven(given.results)
    print("\n".join(bad) or "every row belongs to its commit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
