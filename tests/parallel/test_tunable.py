"""Partition as a `Tunable`: its space makes plans, and its rows are told apart."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from kdsl import Grid, masks, targets
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.parallel.chooser import choose
from kdsl.parallel.cost import Costs, KernelModel
from kdsl.parallel.topology import Topology
from kdsl.parallel.tunable import Config, PartitionTunable
from kdsl.runtime import keying
from kdsl.specs import Attention, Partition

GPU = targets.get("h100")


def tunable(world: int = 4, **changes: object) -> PartitionTunable:
    """Six heads of a small video behind text, over some ranks."""
    grid = Grid(frames=4, height=8, width=16, text=40)
    mask = masks.window(grid, (3, 5, 5)) | masks.text(grid)
    inner = Attention(tokens=grid, heads=6, head_dim=64, mask=mask, block=(32, 32))
    return PartitionTunable(Partition(attention=inner, world=world, **changes))  # type: ignore[arg-type]


def legal(subject: PartitionTunable) -> list[dict[str, object]]:
    """Every legal configuration."""
    space = subject.space(GPU)
    every = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
    return [params for params in every if subject.legal(params, GPU) is None]


@pytest.mark.parametrize("world", [1, 4, 6])
def test_the_space_makes_plans(world: int) -> None:
    """Every legal configuration gives a checked plan for the ranks, every family has some where
    there is more than one rank, the default is legal, and the best is within 1 % of what the
    chooser finds, which looks at the same families."""
    subject = tunable(world)
    found = legal(subject)
    assert dict(subject.default(GPU)) in found
    times = []
    for params in found:
        plan = subject.plan(params)
        plan.check(subject.block_work)
        assert plan.world == world
        if params["chunks"] == 1:
            times.append(subject.simulate(params, GPU).us)
    if world > 1:
        # One node: nothing to split inside of.
        assert {p["family"] for p in found} == set(subject.space(GPU)["family"]) - {"nodes"}
    best = choose(subject.block_work, subject.costs_on(GPU))
    assert min(times) <= best.us * 1.01 or best.chunks > 1


def test_settings_that_say_nothing_are_fixed() -> None:
    """No two legal configurations of one family differ only in what that family ignores."""
    subject = tunable(4)
    base = Config("ulysses", 4).to_json()
    for name, value in (("tolerance", 0.05), ("byte_weight", 8.0), ("more", 1), ("bonus", 0.0)):
        assert name in (subject.legal({**base, name: value}, GPU) or "")
    for wrong in ({"ulysses": 3}, {"family": "rows"}, {"delivery": "ring"}, {"delivery": "needed"}):
        assert subject.legal({**base, **wrong}, GPU)
    assert subject.legal({**base, "colour": 1}, GPU)
    with pytest.raises(ConfigError, match="family"):
        subject.plan({**base, "family": "other"})


def test_drifting_masks_tune_the_threshold() -> None:
    """With a drift the threshold is among the choices, every legal one has a mean time; changes
    that cost nothing are made as often as they help, dear ones never; the rows' key knows."""
    still = tunable(4)
    assert "replan" not in still.space(GPU)
    mask = masks.blocks("plan", block=(32, 32))
    inner = Attention(tokens=640, heads=6, head_dim=64, mask=mask, block=(32, 32))
    rng = np.random.default_rng(0)
    tables = {
        "plan": (rng.random((6, 20, 20)) < rng.uniform(0.05, 0.9, (6, 1, 1))).astype(np.uint8)
    }
    spec = Partition(attention=inner, world=4)
    blocks_alone = Costs(KernelModel(0.0, 1.0, 0.0), Topology(4, 4), 64.0)
    drifting = PartitionTunable(spec, tables, 1, blocks_alone, drift=0.4, change_us=0.0)
    assert len({step.heads.tobytes() for step in drifting.steps}) > 1
    assert [s.total for s in drifting.steps] == [drifting.block_work.total] * len(drifting.steps)
    base = dict(drifting.default(GPU))
    assert drifting.legal(base, GPU) is None
    assert still.legal({**base, "family": "split"}, GPU)
    times = {t: drifting.predicted_us({**base, "replan": t}, GPU) for t in (1.02, 1.5)}
    assert times[1.02] < times[1.5]
    dear = PartitionTunable(spec, tables, 1, blocks_alone, drift=0.4, change_us=1e6)
    assert dear.predicted_us({**base, "replan": 1.02}, GPU) > 1e5
    assert keying.workload(drifting).dims["drift_permille"] == 400


def test_nodes_are_for_several() -> None:
    """Splitting inside nodes is legal where there are several of several ranks."""
    base = {**Config("nodes", 4).to_json()}
    assert tunable(4, node=2).legal(base, GPU) is None
    assert tunable(4).legal(base, GPU)
    assert tunable(4, node=1).legal(base, GPU)


def test_rows_of_other_groups_are_others() -> None:
    """Ranks, nodes and links are hard parts of the key; the planner's source is in it too."""
    seen = {
        keying.workload(t.__class__(t.spec)).program
        for t in (tunable(4), tunable(2), tunable(4, node=2), tunable(4, link="pcie"))
    }
    assert len(seen) == 4
    assert keying.workload(tunable(4)).dims["world_size"] == 4
    assert len(tunable().template_hash) == 16


def test_replicated_text_moves_less_in() -> None:
    """Text that every rank holds is not sent to it, but its output goes to all."""
    apart, here = tunable(4), tunable(4, replicated_text=True)
    assert here.costs_on(GPU).replicated == (0, 40)
    params = Config("ulysses", 4).to_json()
    moved = [t.costs_on(GPU).traffic(t.plan(params), t.block_work) for t in (apart, here)]
    assert moved[1].inputs.sum() < moved[0].inputs.sum()
    assert moved[1].outputs.sum() > moved[0].outputs.sum()


def test_given_costs_count() -> None:
    """Fitted costs take the place of data sheets."""
    spec = tunable(4).spec
    plain = tunable(4).costs_on(GPU)
    slow = replace(plain, kernel=replace(plain.kernel, block_us=plain.kernel.block_us * 1000))
    params = Config("ulysses", 4).to_json()
    assert (
        PartitionTunable(spec, costs=slow).simulate(params, GPU).us
        > 2 * tunable(4).simulate(params, GPU).us
    )


def test_one_device_runs_no_group() -> None:
    """Asking for a runner says how times are had instead."""
    with pytest.raises(UnsupportedError, match="--world"):
        tunable().make_runner(None, np.copy)
