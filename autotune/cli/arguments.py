"""What may stand on the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from kdsl import targets, workloads
from kdsl.autotune.cli import evidence_options
from kdsl.autotune.session.budget import EXAMPLES
from kdsl.autotune.store import mask_passwords
from kdsl.errors import KdslError
from kdsl.runtime.records import Place
from kdsl.runtime.records.link import is_server
from kdsl.specs import LINKS

COMMANDS = ("show", "export", "merge", "diff", "doctor", "prune", *evidence_options.COMMANDS)
_FORM = argparse.RawDescriptionHelpFormatter

_ABOUT = """\
Find fast configurations of kernels for a GPU, and keep every result in a database.

The GPU may be absent. Where it is here, candidates are run, checked and timed in a process of
their own, the built-in default first; every GPU of that model is used, unless CUDA_VISIBLE_DEVICES
picks some, or with --ray those of a cluster. Where it is not, they are compiled for it, and their
times are predicted from the compiler's figures; such rows are marked "predicted" and never mixed
with measured ones. Results that are in the database already are not made again, so running the
same command a second time goes on where the first one stopped."""

_EXAMPLES = """\
examples:
  python -m autotune --gpu a100                     the whole catalogue, smallest workload first
  python -m autotune --gpu h100 --workload wan2.1-1.3b-480p --budget 2m
  python -m autotune --gpu h100 --workload wan2.1-1.3b-480p --direction backward
  python -m autotune --gpu l40s --spec my.json --tables my.npz --budget 40
  python -m autotune --gpu h100 --record --workload wan2.1-1.3b-480p --density 0.1 --density 0.3
  python -m autotune --gpu h100 --world 8 --workload wan2.1-14b-720p
  python -m autotune --resume                       go on with the last run that was cut off
  python -m autotune show --gpu a100                what is known
  python -m autotune export a100.jsonl --gpu a100   rows to share: no host names, no serial numbers

  python -m autotune --gpu h100 --storage postgresql://tuner@db/kdsl --ray auto

commands:
  show    the best of every workload in the database, with its default
  export  write rows to a JSONL file
  merge   add the rows of JSONL files and other databases; adding twice is adding once
  diff    what two databases or files have that the other one has not, and where their bests differ
  doctor  is the database sound, and what is the GPU like?
  prune   remove old losers; says what it would remove, unless --yes
  replay, evaluate, ablate   judge the search, the cost model, the key on recorded rows
  calibrate, distil, report  fit the cost model, write the built-in rule, draw a page from them

exit codes:
  0 done   1 a fault   2 a wrong command line   3 the GPU is not here and was required
  130 interrupted
"""


def tune_parser() -> argparse.ArgumentParser:
    """Of ``python -m autotune --gpu ...``."""
    parser = _Parser(
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
        "--direction",
        choices=("forward", "backward", "both"),
        help="forward kernels, those of the gradients, or both (default: forward)",
    )
    parser.add_argument(
        "--world",
        type=int,
        metavar="N",
        help="tune how each workload is divided over N such GPUs, which need not be here: families "
        "and degrees of sequence parallelism, by simulated time",
    )
    parser.add_argument(
        "--node", type=int, metavar="N", help="GPUs of a node, with --world (default: all of them)"
    )
    parser.add_argument(
        "--drift",
        type=float,
        metavar="SHARE",
        help="with --world: such a share of the mask's rows changes from step to step, times are "
        "means over steps, and the threshold to plan anew is tuned too",
    )
    parser.add_argument(
        "--link", choices=LINKS, help="what joins the GPUs of a node (default: nvlink)"
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
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="measure on the GPUs of a Ray cluster (auto: the one this machine is in); needs "
        "--storage postgresql://...",
    )
    parser.add_argument(
        "--study",
        metavar="PLACE",
        help="where Optuna keeps the search, for several drivers and for its dashboard: a file, "
        "sqlite:///file or postgresql://... (default: in memory, or the server of --storage); it "
        "may be deleted at any time",
    )
    _storage(parser)
    return parser


def command_parser() -> argparse.ArgumentParser:
    """Of ``python -m autotune COMMAND``."""
    parser = _Parser("python -m autotune")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="the best of every workload, with its default")
    show.add_argument("--workload", metavar="NAME", help="one workload, and its fastest candidates")
    export = commands.add_parser("export", help="write rows to a JSONL file")
    export.add_argument("file", metavar="FILE.jsonl", type=Path)
    evidence_options.add(commands, _storage, storage_place)
    for command in (show, export):
        command.add_argument("--gpu", metavar="NAME", help="rows of one GPU")
    merge = commands.add_parser("merge", help="add the rows of other databases and JSONL files")
    merge.add_argument("sources", metavar="SOURCE", nargs="+", type=storage_place)
    diff = commands.add_parser("diff", help="what A and B have, and where their bests differ")
    for name in ("a", "b"):
        diff.add_argument(name, metavar=name.upper(), type=storage_place)
    doctor = commands.add_parser("doctor", help="is the database sound, and what is the GPU like?")
    prune = commands.add_parser("prune", help="remove old losers; without --yes only say which")
    prune.add_argument(
        "--older", metavar="DAYS", type=float, default=180.0, help="age of what goes (default 180)"
    )
    prune.add_argument(
        "--keep", metavar="N", type=int, default=10, help="places of each ranking that stay (10)"
    )
    prune.add_argument("--yes", action="store_true", help="do it")
    for command in (show, export, merge, doctor, prune):
        _storage(command)
    return parser


class _Parser(argparse.ArgumentParser):
    """Its complaints repeat no password that stands in a wrong place."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        super().error(mask_passwords(message))


def _storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="PLACE",
        type=storage_place,
        help="the database: a path, or postgresql://user@host/name (default: KDSL_DB, or "
        "kdsl/tuning.db in the user's data folder)",
    )


def storage_place(text: str) -> Place:
    """A path, ``sqlite:///path``, or ``postgresql://...``."""
    if text.startswith("sqlite:///"):
        return Path(text.removeprefix("sqlite:///"))
    if is_server(text):
        return text
    if "://" in text:
        scheme = text.partition("://")[0]
        raise argparse.ArgumentTypeError(
            f"no database of kind {scheme!r} can be used; a path, or postgresql://user@host/name"
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
