"""Costs, timelines, the choice of a plan, and keeping it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import targets
from kdsl.errors import InputError
from kdsl.parallel import families, gantt
from kdsl.parallel.chooser import ByGain, ByRatio, Planner, choose, ranked
from kdsl.parallel.cost import Costs, Counts, KernelModel, fit_kernel, most_chunks, simulate
from kdsl.parallel.dbsp import dbsp
from kdsl.parallel.drift import Drift, replay
from kdsl.parallel.mesh import Mesh, meshes
from kdsl.parallel.split import split
from kdsl.parallel.timeline import ring_end
from kdsl.parallel.topology import Link, Topology, fit_link, presets
from kdsl.parallel.work import BlockWork, Shape
from kdsl.specs import Attention
from tests.parallel.worlds import made, works

PLAIN = KernelModel(0.0, 1.0, 0.0)
FREE = Link(0.0, 1e12)


def costs(world: int, kernel: KernelModel = PLAIN, link: Link = FREE) -> Costs:
    """One node."""
    return Costs(kernel, Topology(world, world, link), 100.0)


def test_even_work_without_traffic_takes_its_share() -> None:
    """With free links a dense mask takes blocks / ranks, in every family."""
    work = made("dense", 8, 128, kv_heads=8)
    mean = work.total / 4
    for plan in (
        families.ulysses(work, 4),
        families.rows(work, Mesh(2, 2)),
        families.ring(work, Mesh(1, 4)),
        split(work, 4),
    ):
        assert simulate(plan, work, costs(4)).us == pytest.approx(mean, rel=1e-6)


def test_delays_reach_one_neighbour_a_step() -> None:
    """One slow cell in the first step delays a rank four places away by nothing in a ring of eight
    that has four steps, where a barrier would delay it at once."""
    cells = np.ones((8, 4))
    cells[0, 0] = 10.0
    end = ring_end(cells, Mesh(1, 8), np.zeros((8, 3)))
    assert end[0] == 13
    assert end[1] == end[7] == 12
    assert end[4] == 4
    assert end.max() <= cells.max(axis=0).sum()


def test_a_ring_hides_what_fits_behind_kernels() -> None:
    """Passes shorter than the kernels cost nothing; longer ones set the pace."""
    cells = np.full((4, 4), 5.0)
    assert ring_end(cells, Mesh(1, 4), np.full((4, 3), 4.0)).max() == 20
    assert ring_end(cells, Mesh(1, 4), np.full((4, 3), 7.0)).max() == 26


def test_an_all_to_all_by_hand() -> None:
    """Two nodes of two: rank 0 sends 100 bytes inside and 60 outside; the slower link decides."""
    topology = Topology(4, 2, Link(1.0, 10.0), Link(2.0, 2.0))
    sizes = np.zeros((4, 4))
    sizes[0, 1], sizes[0, 2] = 100, 60
    took = topology.all_to_all_us(sizes)
    assert took.tolist() == [32.0, 11.0, 32.0, 0.0]


def test_timelines_hold_together() -> None:
    """No rank runs two kernels at once, nothing starts before its input, the end is the last
    event's, and the picture shows every event."""
    work = made("random", 8, 300, kv_heads=8)
    model = costs(4, KernelModel(2.0, 1.0, 0.5), Link(3.0, 2000.0))
    for plan, chunks in ((families.plain(work, Mesh(4)), 2), (families.ring(work, Mesh(1, 4)), 1)):
        line = simulate(plan, work, model, chunks=chunks)
        assert max(e.end_us for e in line.events) == pytest.approx(line.us)
        for rank in range(4):
            own = [e for e in line.events if e.rank == rank and e.kind == "compute"]
            first = min(e.end_us for e in line.events if e.rank == rank and e.kind == "input")
            assert own[0].start_us >= first
            for a, b in itertools.pairwise(own):
                assert b.start_us >= a.end_us - 1e-9
        assert gantt.svg(line, "a < b").count("<rect") == len(line.events) + len(gantt.COLOURS)


def test_chunks_overlap_and_are_bounded() -> None:
    """Chunks hide traffic behind kernels; more of them than a rank has heads are refused."""
    work = made("dense", 8, 256, kv_heads=8)
    model = costs(2, PLAIN, Link(0.0, 1000.0))
    plan = families.ulysses(work, 2)
    whole, cut = (simulate(plan, work, model, chunks=n).us for n in (1, 4))
    assert cut < whole
    assert most_chunks(plan) == 4
    assert most_chunks(families.ring(work, Mesh(1, 2))) == 1
    with pytest.raises(InputError, match="at most 4"):
        simulate(plan, work, model, chunks=5)


@settings(max_examples=25, deadline=None)
@given(
    works(),
    st.sampled_from((1, 2, 3, 4, 6)),
    st.floats(0, 50),
    st.floats(10, 1e6),
    st.floats(0, 20),
)
def test_never_worse_than_the_others(
    work: BlockWork, world: int, alpha: float, rate: float, launch: float
) -> None:
    """Under the same costs the choice is never slower than db-SP at any degree or bonus 2, nor than
    plain Ulysses x ring at any degree, and its plan computes everything once."""
    model = costs(world, KernelModel(launch, 1.0, 0.1), Link(alpha, rate))
    found = choose(work, model)
    found.plan.check(work)
    for mesh in meshes(world):
        for plan in (families.plain(work, mesh), dbsp(work, mesh)):
            assert found.us <= simulate(plan, work, model).us


def test_choices_are_the_same_everywhere() -> None:
    """Counts in another dtype, or another order of making, give the same hash."""
    work = made("random", 6, 200, kv_heads=3)
    again = BlockWork(work.shape, np.asfortranarray(work.rows.astype(np.int32)), work.blocks)
    assert choose(work, costs(4)).plan.hash == choose(again, costs(4)).plan.hash


def test_kernel_model_is_found_again() -> None:
    """Weights of made-up shards come back, with the error of the noise put in."""
    rng = np.random.default_rng(0)
    model = KernelModel(7.0, 0.8, 0.3)
    done = [Counts(int(p), int(b), int(r)) for p, b, r in rng.integers(1, 500, (40, 3))]
    found = fit_kernel([(c, model.us(c)) for c in done])
    assert found.error < 1e-9
    assert found.model.block_us == pytest.approx(0.8)
    noisy = fit_kernel([(c, model.us(c) * rng.uniform(0.95, 1.05)) for c in done])
    assert 0.01 < noisy.error < 0.05
    # No cost is below nothing, whatever the samples say.
    odd = fit_kernel([(Counts(1, n, n), 10.0 - n) for n in (1, 2, 3, 4)])
    assert min(odd.model.panel_us, odd.model.block_us, odd.model.row_us) >= 0
    with pytest.raises(InputError):
        fit_kernel([(done[0], 1.0)])


def test_link_is_found_again() -> None:
    """Latency and rate from a sweep of sizes."""
    link = Link(12.0, 250e3)
    found = fit_link([(2.0**n, link.us(2.0**n)) for n in range(16, 28)])
    assert found.alpha_us == pytest.approx(12.0)
    assert found.bytes_per_us == pytest.approx(250e3)
    with pytest.raises(InputError):
        fit_link([(64.0, 1.0), (64.0, 2.0)])


def test_costs_are_stored_whole() -> None:
    """Costs come back equal from JSON, and each figure counts for their id."""
    spec = Attention(tokens=4096, heads=8, head_dim=128)
    whole = Costs.of(spec, targets.get("h100"), presets(16)["nodes of 8"], replicated=(0, 64))
    assert Costs.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert replace(whole, slowdown=1.5).id != whole.id
    assert Costs.from_json(whole.to_json()).id == whole.id


@pytest.mark.parametrize("mode", ["static", "lagged", "exact"])
def test_modes(mode: str) -> None:
    """Static plans once; exact plans on the step at hand, lagged on the one before: with masks that
    alternate, lagged is always a step behind."""
    a, b = made("one dense head", 6, 400, seed=1), made("one dense head", 6, 400, seed=2)
    assert a.heads.argmax() != b.heads.argmax()
    eager = ByGain(reuse=10**9, change_us=0.0)
    planner = Planner(costs(3), mode, eager)  # type: ignore[arg-type]
    used = [planner.plan(0, work).plan.hash for work in (a, b, a, b)]
    best = [choose(work, costs(3)).plan.hash for work in (a, b)]
    expected = {
        "static": [best[0]] * 4,
        "exact": best * 2,
        "lagged": [best[0], best[0], best[1], best[0]],
    }
    assert used == expected[mode]


def test_a_change_must_pay() -> None:
    """A plan stays where the gain over its reuse is below the price, and goes where it is above."""
    a, b = made("one dense head", 6, 400, seed=1), made("one dense head", 6, 400, seed=2)
    for change, plans in ((1e12, 1), (0.0, 2)):
        planner = Planner(costs(3), "exact", ByGain(reuse=10, change_us=change))
        planner.plan(0, a)
        planner.plan(0, b)
        assert planner.plans_made == plans


def test_drift_and_replanning() -> None:
    """A mask that stands still is planned once by every rule; one that drifts is planned anew by
    both, and planning by gain takes no more time in sum than keeping the first plan."""
    shape = Shape(6, 6, 640, 640, (16, 16))
    model = costs(4)
    for policy in (ByRatio(), ByGain(change_us=50.0)):
        assert replay(Drift(shape, 5, rate=0.0), Planner(model, policy=policy)).plans == 1
    drift = Drift(shape, 12, rate=0.4, spread=0.9)
    still = replay(drift, Planner(model, "static"))
    gain = replay(drift, Planner(model, policy=ByGain(change_us=50.0)))
    assert gain.plans > 1 == still.plans
    assert gain.mean_us <= still.mean_us


def test_drift_has_the_density_asked_for() -> None:
    """Over many heads and steps the mean density is what was asked for, within sampling error, and
    neighbouring steps are alike."""
    drift = Drift(Shape(64, 64, 640, 640, (16, 16)), 6, density=0.2, spread=0.3, rate=0.02)
    works = list(drift.works())
    density = np.mean([w.total / (64 * 40 * 40) for w in works])
    # One standard error of the head factors is 0.3 / 8 of the mean; rounding up adds half a block.
    assert abs(density - 0.2) < 3 * 0.2 * 0.3 / 8 + 0.5 / 40
    kept = [w.bits for w in works]
    flipped = np.unpackbits(kept[0] ^ kept[1]).sum() / np.unpackbits(kept[0]).sum()
    assert 0 < flipped < 0.5


def test_unknown_blocks_leave_out_rings() -> None:
    """Row counts alone give plans without rings and needed keys."""
    work = BlockWork.dense(Shape(5, 5, 300, 300, (16, 16)))
    assert {c.plan.delivery for c in ranked(work, costs(4))} == {"all"}
    with pytest.raises(InputError, match="which key blocks"):
        families.ring(work, Mesh(1, 4)).cells(work)


def test_pictures_are_of_this_code() -> None:
    """The timelines in docs/ are well-formed, drawn by the code as it is, and the plan chosen ends
    before the plain one."""
    from xml.etree import ElementTree

    from examples.partition_pictures import DOCS, pictures

    ends = []
    for name, drawn in pictures().items():
        assert (DOCS / name).read_text() == drawn
        root = ElementTree.fromstring(drawn)
        (said,) = (e.text for e in root if e.text and "without a kernel" in e.text)
        ends.append(float(said.split()[0]))
    assert ends[1] < ends[0]
