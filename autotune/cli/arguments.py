"""What may stand on the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from kdsl import targets, workloads
from kdsl.autotune.cli import evidence_options
from kdsl.autotune.session.budget import EXAMPLES
from kdsl.errors import KdslError

COMMANDS = ("show", "export", *evidence_options.COMMANDS)
_FORM = argparse.RawDescriptionHelpFormatter

_ABOUT = """\
Find fast configurations of kernels for a GPU, and keep every result in a database.

The GPU may be absent. Where it is here, candidates are run, checked and timed in a process of
their own, the built-in default first. Where it is not, they are compiled for it, and their times
are predicted from the compiler's figures; such rows are marked "predicted" and never mixed with
measured ones. Results that are in the database already are not made again, so running the same
command a second time goes on where the first one stopped."""

_EXAMPLES = """\
examples:
  python -m autotune --gpu a100                     the whole catalogue, smallest workload first
  python -m autotune --gpu h100 --workload wan2.1-1.3b-480p --budget 2m
  python -m autotune --gpu l40s --spec my.json --tables my.npz --budget 40
  python -m autotune --gpu h100 --record --workload wan2.1-1.3b-480p --density 0.1 --density 0.3
  python -m autotune --resume                       go on with the last run that was cut off
  python -m autotune show --gpu a100                what is known
  python -m autotune export a100.jsonl --gpu a100   rows to share: no host names, no serial numbers

commands:
  show    the best of every workload in the database, with its default
  export  write rows to a JSONL file
  replay, evaluate, ablate   judge the search, the cost model, the key on recorded rows
  calibrate                  fit the cost model to them

exit codes:
  0 done   1 a fault   2 a wrong command line   3 the GPU is not here and was required
  130 interrupted
"""


def tune_parser() -> argparse.ArgumentParser:
    """Of ``python -m autotune --gpu ...``."""
    parser = argparse.ArgumentParser(
        "python -m autotune", description=_ABOUT, epilog=_epilog(), formatter_class=_FORM
    )
    parser.add_argument("--gpu", metavar="NAME", help="the GPU to tune for, such as a100 or h100")
    parser.add_argument(
        "--workload",
        metavar="NAME",
        action="append",
        help="a workload of the catalogue; may be given several times (default: all of them)",
    )
    parser.add_argument(
        "--density",
        metavar="D",
        type=float,
        action="append",
        help="share of kept blocks, for workloads with a block plan; may be given several times, "
        "and each workload is tuned at each (default: the catalogue's)",
    )
    parser.add_argument(
        "--spec", metavar="FILE.json", type=Path, help="a spec of yours: json.dumps(spec.to_json())"
    )
    parser.add_argument(
        "--tables", metavar="FILE.npz", type=Path, help="values of that spec's tables, by name"
    )
    parser.add_argument(
        "--budget",
        metavar="N|TIME",
        help=f"{EXAMPLES}; compilation counts (default: 40 a workload, and 9m where the GPU is "
        "absent)",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="measure every legal configuration, or with --budget N a random N of them, instead of "
        "searching: for replay, calibrate and distil",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the last run that was cut off; other options override its own",
    )
    parser.add_argument(
        "--require-device",
        action="store_true",
        help="exit with 3, before doing anything, if the GPU is not here",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the search and inputs (default 0)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"compiling processes (default here: {default_jobs()})",
    )
    _storage(parser)
    return parser


def command_parser() -> argparse.ArgumentParser:
    """Of ``python -m autotune COMMAND``."""
    parser = argparse.ArgumentParser("python -m autotune")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="the best of every workload, with its default")
    show.add_argument("--workload", metavar="NAME", help="one workload, and its fastest candidates")
    export = commands.add_parser("export", help="write rows to a JSONL file")
    export.add_argument("file", metavar="FILE.jsonl", type=Path)
    evidence_options.add(commands, _storage)
    for command in (show, export):
        command.add_argument("--gpu", metavar="NAME", help="rows of one GPU")
        _storage(command)
    return parser


def _storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="PATH",
        type=storage_path,
        help="the database (default: KDSL_DB, or kdsl/tuning.db in the user's cache folder)",
    )


def storage_path(text: str) -> Path:
    """A path, or ``sqlite:///path``."""
    if text.startswith("sqlite:///"):
        return Path(text.removeprefix("sqlite:///"))
    if "://" in text:
        scheme = text.partition("://")[0]
        raise argparse.ArgumentTypeError(
            f"no database of kind {scheme!r} can be used yet; give the path of an SQLite file"
        )
    return Path(text)


def default_jobs() -> int:
    """As many as there are processors for this process, 16 at most."""
    usable = getattr(os, "sched_getaffinity", None)
    return min(len(usable(0)) if usable else os.cpu_count() or 1, 16)


def _epilog() -> str:
    gpus = ", ".join(t.name for t in targets.known())
    catalogue = "\n".join(f"  {w.name:20} {w.about}" for w in workloads.CATALOGUE)
    return f"{_EXAMPLES}\nworkloads, smallest first:\n{catalogue}\n\nGPUs:\n  {gpus}\n"


class Usage(KdslError):
    """A command line that cannot be followed."""
