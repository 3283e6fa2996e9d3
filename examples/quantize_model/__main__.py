"""``python -m examples.quantize_model``: train a small model, quantize it, judge it.

No GPU is needed; with one the quantized layers run by kernels.
"""

from __future__ import annotations

import argparse
import copy
import sys
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
    parser.add_argument(
        "--scheme", choices=SCHEMES, default="W4A8 int8", help="which table to show"
    )
    parser.add_argument("--out", type=Path, default=Path("out/quantized"), help="folder of plans")
    given = parser.parse_args(arguments)
    try:
        run(given.steps, given.scheme, given.out)
    except (KdslError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(steps: int, shown: str, out: Path) -> None:
    """The whole job."""
    console = Console()
    with Progress() as bar:
        task = bar.add_task("training", total=steps)
        model = train(steps, lambda step, loss: bar.update(task, completed=step + 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Judged in 16 bits where kernels run, as models are; the reference is exact in any.
    model = model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    table = Table(title=f"SmallDiT after {steps} steps, frames that nothing has seen")
    for title in ("", "bits a weight", "loss", "off the float model"):
        table.add_column(title, justify="left" if not title else "right")
    table.add_row("float", "32" if device == "cpu" else "16", f"{on(model, device):.5f}", "")
    for name, scheme in SCHEMES.items():
        plan, changed = quantized(model, scheme, device)
        path = out / f"{name.replace(' ', '-').lower()}.safetensors"
        out.mkdir(parents=True, exist_ok=True)
        plan.save(path)
        again = nn.apply(QuantizationPlan.load(path, model="SmallDiT"), copy.deepcopy(model))
        assert same(changed, again, device), "a loaded plan computes something else"
        weights = sum(n.shape[0] * n.shape[1] for n in plan.layers.values())
        off = apart(changed, model, device)
        table.add_row(name, f"{8 * plan.nbytes / weights:.2f}", f"{on(changed, device):.5f}",
                      f"{100 * off:.2f} %")  # fmt: skip
        if name == shown:
            nn.show(plan)
    console.print(table)
    console.print(f"plans in {out}")


def quantized(
    model: SmallDiT, scheme: Scheme, device: str
) -> tuple[QuantizationPlan, torch.nn.Module]:
    """A quantized copy of a model and its plan; calibrated on frames it was trained on."""
    changed = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    given = ((x.to(device, dtype), t.to(device)) for x, t in batches(4))
    plan = kdsl.quantize(changed, scheme, given, name="SmallDiT", progress=False)
    return plan, changed


def on(model: torch.nn.Module, device: str) -> float:
    """The loss on unseen frames."""
    return judged(model, 2, device)


@torch.no_grad()
def apart(model: torch.nn.Module, exact: SmallDiT, device: str) -> float:
    """Relative difference of two models' results on unseen frames."""
    dtype = next(exact.parameters()).dtype
    x, t = next(batches(1, judged=True))
    given = x.to(device, dtype), t.to(device)
    wanted = exact(*given).float()
    return float((model(*given).float() - wanted).norm() / wanted.norm())


@torch.no_grad()
def same(model: torch.nn.Module, other: torch.nn.Module, device: str) -> bool:
    """Whether two models compute the same bits."""
    dtype = next(model.parameters()).dtype
    x, t = next(batches(1, judged=True, size=2))
    given = x.to(device, dtype), t.to(device)
    return torch.equal(model(*given), other(*given))


if __name__ == "__main__":
    sys.exit(main())
