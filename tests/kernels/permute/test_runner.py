"""What the tuner drives, on the CPU: the torch truth, the check, compilation ahead of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdsl import layouts, orders, targets
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.kernels.permute.config import Sizes, default
from kdsl.kernels.permute.tunable import PermuteTunable
from kdsl.layouts import Layout
from kdsl.reference.permute import permute
from kdsl.runtime.aot import compile_for
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import DTYPES, Permute

torch: Any = pytest.importorskip("torch")

GRID = Grid(frames=3, height=5, width=7, text=4)
LAYOUTS = {
    "none": None,
    "token": layouts.int8("token"),
    "block": layouts.int8("block", 32),
    "channel": layouts.int8("channel"),
    "tensor": layouts.int8("tensor"),
    "blocks of 50 x 8": Layout("int8", (50, 8)),
}
H100 = targets.get("h100")


def tunable_of(layout: str, dtype: str = "bfloat16") -> PermuteTunable:
    order = orders.per_head(
        [orders.cubes(GRID, (2, 3, 4)), orders.table(Table("plan", GRID.tokens), GRID)]
    )
    spec = Permute(
        tokens=GRID, heads=2, head_dim=32, order=order, dtype=dtype, layout=LAYOUTS[layout]
    )
    plan = np.random.default_rng(0).permutation(GRID.tokens)
    found = tunable_for(spec, {"plan": plan}, 2)
    assert isinstance(found, PermuteTunable)
    return found


def write_truth(tunable: PermuteTunable, runner: Any) -> None:
    """The reference's results into the runner's."""
    want = permute(tunable.spec, runner.x, tunable.tables)
    for out, values in zip(runner.outs, want if tunable.spec.layout else (want,), strict=True):
        out.copy_(torch.from_numpy(np.ascontiguousarray(values)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_check_knows_the_reference(layout: str, dtype: str) -> None:
    """Plain torch gives the reference's results bit for bit, NaN, infinities and all."""
    tunable = tunable_of(layout, dtype)
    runner = tunable.make_runner(torch.device("cpu"), lambda text: text)
    for family in runner.families:
        runner.prepare(family, 3)
        assert bool(runner.x.isnan().any()) == (family == "special")
        write_truth(tunable, runner)
        assert runner.check().right


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_check_sees_single_numbers(layout: str) -> None:
    """What was not written is wrong, and so is one number that differs anywhere."""
    tunable = tunable_of(layout)
    runner = tunable.make_runner(torch.device("cpu"), lambda text: text)
    runner.prepare("random", 0)
    runner.poison()
    assert not runner.check().right
    write_truth(tunable, runner)
    for out in runner.outs:
        flat = out.view(-1)
        kept = flat[-1].clone()
        flat[-1] = -flat[-1] - 1
        found = runner.check()
        assert not found.right
        assert found.reason.startswith("1 of ")
        flat[-1] = kept
    assert runner.check().right


def test_inputs_follow_their_seed() -> None:
    """The same seed gives the same inputs, another one others."""
    runner = tunable_of("none").make_runner(torch.device("cpu"), lambda text: text)
    drawn = []
    for seed in (1, 1, 2):
        runner.prepare("random", seed)
        drawn.append(runner.x.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("layout", ["none", "tensor"])
def test_compiled_ahead_of_time(layout: str) -> None:
    """The tunable's description is enough for the compiler; its estimate of memory is exact."""
    pytest.importorskip("cupy")
    tunable = tunable_of(layout)
    params = tunable.default(H100)
    made = compile_for(tunable, params, H100)
    sizes = Sizes(tunable.spec, default(tunable.spec))
    assert made.spill_bytes == 0
    assert made.shared_bytes == tunable.work(params, H100).shared_bytes == sizes.shared_bytes


def test_identities() -> None:
    """Sizes by name, and a hash of the template that is stable."""
    tunable = tunable_of("none")
    assert tunable.sizes() == {"batch": 2, "heads": 2, "tokens": GRID.tokens, "head_dim": 32}
    assert tunable.template_hash == tunable_of("token").template_hash
    assert tunable.statistics() == {}
