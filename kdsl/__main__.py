"""``python -m kdsl doctor``: what works here and on a named GPU; ``cache``: generated code.

Exit codes: 0, or 1 on a known error and where something that ran here is wrong.
"""

from __future__ import annotations

import argparse
import sys

from kdsl.errors import KdslError

WIDTH = 120
"""Columns where the output is no terminal."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see above for exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m kdsl",
        description="What works here and on other GPUs, and where generated code is kept.",
        epilog="exit codes: 0 done, 1 a known error, or something that ran here is wrong",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="try every operation here, or compile it for a GPU that is not here",
        description="Tries every operation x dtype x head_dim. On the GPU at hand each one runs "
        "against a plain computation and must be within a derived bound; for another "
        "--gpu each one is compiled, and its registers, shared memory and spills are read from the "
        "binary.",
    )
    doctor.add_argument("--gpu", help="a GPU by name, such as a100 or h100; it may be absent")
    cache = commands.add_parser("cache", help="where generated code is kept, and how much of it")
    cache.add_argument("action", choices=("info", "clear"), nargs="?", default="info")
    given = parser.parse_args(arguments)
    try:
        return _doctor(given.gpu) if given.command == "doctor" else _cache(given.action)
    except KdslError as error:
        print(error, file=sys.stderr)
        return 1


def _doctor(gpu: str | None) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from kdsl.runtime import doctor
    from kdsl.runtime.builder import device_target
    from kdsl.targets import get

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, WIDTH))
    target = get(gpu) if gpu else None
    for name, value in doctor.environment().items():
        console.print(f"{name:8} {value}", highlight=False)
    table = Table(title=f"on {target.name}" if target else "here")
    for column in ("operation", "direction", "dtype", "head_dim", "", "how it is known"):
        table.add_column(column)
    colours = {doctor.MEASURED: "green", doctor.COMPILED: "cyan", doctor.NO: "yellow"}
    failed = 0
    with console.status("trying") as status:
        for f in doctor.examine(target, status.update):
            failed += f.status == doctor.FAILS
            mark = f"[{colours.get(f.status, 'red')}]{f.status}[/]"
            table.add_row(f.operation, f.direction, f.dtype, f.head_dim, mark, escape(f.note))
    console.print(table)
    if target is None and device_target() is None:
        console.print("--gpu NAME compiles every kernel for a GPU that is not here")
    if failed:
        print(f"{failed} of these ran here and failed", file=sys.stderr)
    return 1 if failed else 0


def _cache(action: str) -> int:
    from kdsl.runtime.codecache import code_folder

    folder = code_folder()
    files = [p for p in folder.iterdir() if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    if action == "clear":
        for path in files:
            path.unlink()
    print(f"{folder}: {len(files)} files, {size / 1024:.0f} KiB{', removed' * (action == 'clear')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
