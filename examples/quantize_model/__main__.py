"""``python -m examples.quantize_model``: train a small model, quantize it, judge it.

No GPU is needed; with one the quantized layers run by kernels.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import kdsl
from examples.quantize_model.model import SmallDiT
from examples.quantize_model.train import batches, judged, train
from kdsl import nn
from kdsl.errors import KdslError
from kdsl.nn import Scheme
from kdsl.plans import QuantizationPlan

SKIP = ("patch_*",)
"""48 pixels are no group of 128 columns, and first and last layers are what quantizing hurts."""
SCHEMES = {
    "W8A8 int8": nn.w8a8(skip=SKIP),
    "W4A8 int8": nn.w4a8(4, skip=SKIP),
    "W3A8 int8": nn.w4a8(3, skip=SKIP),
    "W4A16": nn.w4a16(4, skip=SKIP),
}


def main(arguments: list[str] | None = None) -> int:
    """Train, quantize, save, load, compare."""
    parser = argparse.ArgumentParser(prog="python -m examples.quantize_model", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps (default: 60)")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the model (default: 2)")
    parser.add_argument(
        "--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES), metavar="SCHEME",
        help=f"of {', '.join(SCHEMES)}; default: all",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/quantized"), help="folder of plans")
    given = parser.parse_args(arguments)
    try:
        run(given.steps, given.depth, given.schemes, given.out)
    except (KdslError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(steps: int, depth: int, schemes: Sequence[str], out: Path) -> None:
    """The whole job."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    with Progress() as bar:
        task = bar.add_task("training", total=steps)
        model = train(steps, lambda step, loss: bar.update(task, completed=step + 1), depth)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Judged in 16 bits where kernels run, as models are; the reference is exact in any.
    model = model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    table = Table(title=f"SmallDiT after {steps} steps, frames that nothing has seen")
    for title in ("", "bits a weight", "loss", "off the float model"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("float", "32" if device == "cpu" else "16", f"{judged(model, 1, device):.5f}", "")
    for name in schemes:
        plan, changed = quantized(model, SCHEMES[name], device)
        path = out / f"{name.replace(' ', '-').lower()}.safetensors"
        plan.save(path)
        again = nn.apply(QuantizationPlan.load(path, model="SmallDiT"), copy.deepcopy(model))
        if not same(changed, again, device):
            raise AssertionError("a loaded plan computes something else")
        nn.show(plan)
        bits = 8 * plan.nbytes / sum(n.shape[0] * n.shape[1] for n in plan.layers.values())
        off = apart(changed, model, device)
        loss = judged(changed, 1, device)
        table.add_row(name, f"{bits:.2f}", f"{loss:.5f}", f"{100 * off:.2f} %")
    console.print(table)
    console.print(f"plans in {out}")


def quantized(
    model: SmallDiT, scheme: Scheme, device: str
) -> tuple[QuantizationPlan, torch.nn.Module]:
    """A quantized copy of a model and its plan; calibrated on frames it was trained on."""
    changed = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    given = ((x.to(device, dtype), t.to(device)) for x, t in batches(2))
    plan = kdsl.quantize(changed, scheme, given, name="SmallDiT", progress=False)
    return plan, changed


@torch.no_grad()
def apart(model: torch.nn.Module, exact: SmallDiT, device: str) -> float:
    """Relative difference of two models' results on unseen frames."""
    dtype = next(exact.parameters()).dtype
    x, t = next(batches(1, judged=True, size=4))
    given = x.to(device, dtype), t.to(device)
    wanted = exact(*given).float()
    return float((model(*given).float() - wanted).norm() / wanted.norm())


@torch.no_grad()
def same(model: torch.nn.Module, other: torch.nn.Module, device: str) -> bool:
    """Whether two models compute the same bits."""
    dtype = next(model.parameters()).dtype
    x, t = next(batches(1, judged=True, size=1))
    given = x.to(device, dtype), t.to(device)
    return torch.equal(model(*given), other(*given))


if __name__ == "__main__":
    sys.exit(main())
