"""What may stand behind the commands that work on measured rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMANDS = ("replay", "calibrate", "evaluate", "ablate", "distil", "report")
DISTILLED = ("attention",)
"""Operations whose default asks for distilled rules."""
SEEDS, BUDGET, WITHIN = 20, 40, 0.05
Storage = Callable[[argparse.ArgumentParser], None]


def add(commands: Any, storage: Storage) -> None:
    """The parsers of these commands."""
    for name, about in (
        ("replay", "run the tuner on recordings as if they were GPUs, and judge its choices"),
        ("calibrate", "fit the cost model to measured rows"),
        ("evaluate", "predict workloads from all others, and compare with what was measured"),
        ("distil", "write a small readable rule that becomes the built-in default"),
        ("report", "write one HTML file about what was measured"),
        ("ablate", "what mask statistics in the key are worth: equal sizes, different masks"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument(
            "files",
            metavar="FILE",
            nargs="*",
            type=Path,
            help=".jsonl files or databases (default: the shipped rows"
            + (")" if name == "distil" else " and the user's database)"),
        )
        command.add_argument("--gpu", metavar="NAME", help="rows of one GPU")
        storage(command)
        if name in _OPTIONS:
            _OPTIONS[name](command)


def _replay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"default {SEEDS}")
    parser.add_argument(
        "--budget", type=int, default=BUDGET, metavar="N", help=f"measurements, default {BUDGET}"
    )
    parser.add_argument(
        "--within", type=float, default=WITHIN, metavar="X", help=f"of the best, default {WITHIN}"
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="start from the other workloads, as a new one does: their winners, and a calibration "
        "fitted to them (default: from nothing but the data sheet)",
    )
    parser.add_argument(
        "--require", type=float, metavar="SHARE", help="exit with 1 if fewer pairs are within"
    )


def _calibrate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        type=Path,
        help="where to (default: calibration.json beside the user's database)",
    )


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train", metavar="GPU", help="predict every recording of --gpu from this GPU's"
    )


def _distil_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", default="attention", choices=DISTILLED, help="default attention")
    parser.add_argument(
        "--output",
        metavar="FILE.py",
        type=Path,
        help="where to (default: kernels/OP/distilled.py of this checkout)",
    )


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", metavar="NAME", help="one workload, as `show` names it")
    parser.add_argument(
        "--output",
        metavar="FILE.html",
        type=Path,
        default=Path("autotune.html"),
        help="default autotune.html",
    )


_OPTIONS: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "replay": _replay_options,
    "calibrate": _calibrate_options,
    "evaluate": _evaluate_options,
    "distil": _distil_options,
    "report": _report_options,
}
