"""The command line of the tuner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from kdsl.autotune.cli.arguments import COMMANDS, Usage, command_parser, tune_parser
from kdsl.autotune.cli.hardware import Hardware
from kdsl.errors import KdslError

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
            from kdsl.autotune.cli import evidence, evidence_options, show

            parsed = command_parser().parse_args(given)
            if parsed.command in evidence_options.COMMANDS:
                return evidence.run(parsed)
            return show.run(parsed)
        from kdsl.autotune.cli.tune import tune

        return tune(tune_parser().parse_args(given), hardware())
    except KdslError as error:
        print(error, file=sys.stderr)
        return USAGE if isinstance(error, Usage) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
