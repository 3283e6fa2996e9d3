"""The command line of the tuner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from kdsl.autotune.cli.arguments import COMMANDS, Usage, command_parser, tune_parser
from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.store import mask_passwords
from kdsl.errors import KdslError, UnsupportedError

__all__ = ["main"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(
    arguments: Sequence[str] | None = None, *, hardware: Callable[[], Hardware] = Hardware
) -> int:
    """Entry point. Exit codes: 0 done, 1 a fault with its reason, 2 a wrong command line, 3 the GPU
    is not here and was required, 130 interrupted.

    ``hardware`` says which GPUs are here and how they are measured; tests put a made-up one.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in COMMANDS:
            from kdsl.autotune.cli import evidence, evidence_options, show, upkeep

            parsed = command_parser().parse_args(given)
            if parsed.command in evidence_options.COMMANDS:
                return evidence.run(parsed)
            if parsed.command in show.COMMANDS:
                return show.run(parsed)
            return upkeep.run(parsed, hardware())
        if find_spec("optuna") is None:
            raise UnsupportedError(
                "the tuner needs optuna, which is not installed",
                hint='pip install "kdsl-kernels[tune]"',
            )
        from kdsl.autotune.cli.tune import tune

        return tune(tune_parser().parse_args(given), hardware())
    except KdslError as error:
        print(mask_passwords(str(error)), file=sys.stderr)
        return USAGE if isinstance(error, Usage) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
