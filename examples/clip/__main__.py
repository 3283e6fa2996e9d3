"""``python -m examples.clip --gpu h100``: the whole job on a real clip, that GPU here or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from examples.clip import job, report
from examples.clip.facts import Check
from examples.clip.tables import order_table, summary
from kdsl import targets
from kdsl.errors import KdslError


def main(arguments: list[str] | None = None) -> int:
    """Describe, tune, build, run, check; writes the page; exit code 1 where a check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.clip",
        description="The whole job on a real clip: calibrate, tune, build, run, check.",
    )
    parser.add_argument("--gpu", help="the GPU to tune and compile for; it may be absent")
    parser.add_argument(
        "--budget", default="6", help="candidates or time (1m) for the tuner (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/clip"), help="folder (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    console = Console(width=100)
    try:
        return _run(console, given.gpu, given.budget, given.out)
    except KdslError as error:
        console.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False)
        return 1


def _run(console: Console, gpu: str | None, budget: str, out: Path) -> int:
    from kdsl.runtime.builder import device_target

    present = device_target()
    gpu = targets.get(gpu).name if gpu else present.name if present else "h100"
    here = present is not None and present.name == gpu

    console.rule("1. describe: a real clip, eight heads, six orders a head")
    what = job.describe()
    console.print(order_table(what.found), summary(what.found))

    console.rule(f"2. tune for {gpu}{'' if here else ', which is not here'}")
    code = job.tune(what, gpu, budget, out)
    if code:
        console.print(f"the tuner ended with exit code {code}")
        return 1

    console.rule("3. build")
    op = job.build(what, gpu)
    console.print(op.explain(), highlight=False, markup=False, soft_wrap=True)
    console.print(op.show(head=3), highlight=False, markup=False)

    console.rule("4. run and check")
    piece = job.run_piece()
    checks = [
        Check(
            f"a piece of {piece.tokens} tokens, {piece.heads} heads, density {piece.density:.2f}",
            "Triton's interpreter",
            piece.error,
            piece.bound,
        )
    ]
    costs = [job.predicted(op)]
    if here:
        check, cost = job.run_on_gpu(op, what)
        checks.append(check)
        costs.append(cost)
    compiled = job.compile_kernel(op)
    for c in checks:
        mark = "[green]right[/]" if c.passed else "[red]WRONG[/]"
        console.print(
            f"{mark}  {c.what}, {c.where}: error {c.error:.1e}, allowed {c.bound:.1e}",
            soft_wrap=True,
        )
    console.print(
        f"compiled for {compiled.arch}: {compiled.registers} registers, {compiled.spills} bytes "
        f"spilled, {compiled.shared / 1024:.0f} KiB shared"
    )
    for k in costs:
        console.print(
            f"{k.kind} {k.ms:.3f} ms on {k.source}, {k.rate or 0:.0f} TFLOP/s of kept blocks"
        )

    console.rule("5. the page")
    notes = () if here else (f"There was no {gpu} here: its time is predicted, not measured.",)
    facts = job.facts(
        what,
        op,
        f"python -m examples.clip --gpu {gpu}",
        checks=tuple(checks),
        compiled=(compiled,),
        costs=tuple(costs),
        notes=notes,
    )
    for name, error in zip(what.found.names, facts.errors, strict=True):
        console.print(f"{name:10} block-sparse against dense attention: error {error:.3f}")
    page = report.write(out / "index.html", facts)
    console.print(f"[bold]{page.resolve()}[/]")
    return 0 if all(c.passed for c in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
