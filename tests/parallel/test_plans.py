"""Plans of every family: what they hold, what they refuse, and that their exchanges carry it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.blocks import from_maps
from kdsl.errors import InputError
from kdsl.parallel import families
from kdsl.parallel.dbsp import dbsp
from kdsl.parallel.exchange import Exchanges
from kdsl.parallel.home import Home
from kdsl.parallel.mesh import Mesh, meshes
from kdsl.parallel.plan import Panel, Plan, indices, runs_of
from kdsl.parallel.split import chopped, in_nodes, split, wrapped
from kdsl.parallel.work import BlockWork, Shape
from kdsl.specs import canonical
from tests.parallel.emulated import carried_out, truth
from tests.parallel.worlds import made, works

FAMILIES: dict[str, Callable[[BlockWork, Mesh], Plan]] = {
    "ulysses": lambda work, mesh: families.ulysses(work, mesh.world),
    "split": lambda work, mesh: split(work, mesh.world),
    "split needed": lambda work, mesh: split(work, mesh.world, byte_weight=1, delivery="needed"),
    "chopped": lambda work, mesh: chopped(work, mesh.world, delivery="needed"),
    "chopped more": lambda work, mesh: chopped(
        work, mesh.world, each=-(-work.shape.heads // mesh.world) + 1, byte_weight=2.0
    ),
    "in nodes": lambda work, mesh: in_nodes(work, mesh.world, mesh.ulysses),
    "wrapped": lambda work, mesh: wrapped(work, mesh.world),
    "rows": lambda work, mesh: families.rows(work, mesh),
    "rows needed": lambda work, mesh: families.rows(work, mesh, delivery="needed"),
    "ring": lambda work, mesh: families.ring(work, mesh),
    "plain": families.plain,
    "dbsp": dbsp,
}


@st.composite
def grids(draw: st.DrawFn) -> Mesh:
    """Any mesh of up to 12 ranks."""
    near = draw(st.sampled_from(("ulysses", "ring")))
    return Mesh(draw(st.integers(1, 4)), draw(st.integers(1, 3)), near)


@settings(max_examples=60)
@given(works(), grids(), st.sampled_from(sorted(FAMILIES)))
def test_every_tile_once(work: BlockWork, mesh: Mesh, family: str) -> None:
    """Every (head, row block) is computed exactly once, loads and ring steps add up to the work,
    and the plan comes back from JSON with its hash."""
    plan = FAMILIES[family](work, mesh)
    plan.check(work)
    tiles = sum(panel.tiles for panels in plan.ranks for panel in panels)
    assert tiles == work.shape.heads * work.shape.rows
    assert plan.loads(work).sum() == work.total
    assert (plan.cells(work).sum(axis=1) == plan.loads(work)).all()
    back = Plan.from_json(json.loads(canonical(plan.to_json())))
    assert back == plan
    assert back.hash == plan.hash


@settings(max_examples=50, deadline=None)
@given(works(), grids(), st.sampled_from(sorted(FAMILIES)), st.data())
def test_exchanges_carry_the_plan(
    work: BlockWork, mesh: Mesh, family: str, data: st.DataObject
) -> None:
    """Lines sent by the splits and indices give each rank its q, k and v in the order promised, and
    its results come back to where tokens live: the outcome is attention in one place.  Text on all
    ranks, ragged shards, grouped heads, stored orders by head, needed keys alone, and rings."""
    shape = work.shape
    plan = FAMILIES[family](work, mesh)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    text = data.draw(st.integers(0, min(shape.queries, 20)))
    at = data.draw(st.sampled_from(("start", "end")))
    span = (0, text) if at == "start" else (shape.queries - text, shape.queries)
    home, key_home = Home.even(shape.queries, mesh.world, span), Home.even(shape.keys, mesh.world)
    q, k, v = (
        rng.standard_normal((heads, n, 4))
        for heads, n in (
            (shape.heads, shape.queries),
            (shape.kv_heads, shape.keys),
            (shape.kv_heads, shape.keys),
        )
    )
    orders: list[np.ndarray | None] = [None, None]
    if data.draw(st.booleans()):
        many = data.draw(st.booleans())
        orders = [
            np.stack([rng.permutation(n) for _ in range(heads if many else 1)])
            for heads, n in ((shape.heads, shape.queries), (shape.kv_heads, shape.keys))
        ]
    got = carried_out(plan, work, home, key_home, q, k, v, *orders)
    np.testing.assert_allclose(got, truth(work, q, k, v, *orders), atol=1e-12)


def test_hash_of_a_plan_is_frozen() -> None:
    """Ranks on other machines and releases compare hashes: the canonical form does not move."""
    plan = families.plain(BlockWork.dense(Shape(6, 3, 200, 200, (16, 16))), Mesh(2, 2))
    assert plan.hash == replace(plan, predicted_us=3.0).hash
    assert replace(plan, predicted_us=3.0) == plan
    assert plan.hash == "89391fb5bef3db92ac3e7c25801ad2ce"


@pytest.mark.parametrize("world", [8, 12, 16])
def test_places_of_ranks(world: int) -> None:
    """In every mesh and both numberings places and ranks are each other's inverse, groups cut the
    ranks, and in the usual numbering the ring rank is ``rank // ulysses`` (db-SP's plans are read
    with ``rank % ring``, which is another rank wherever both degrees exceed 1)."""
    for plain in meshes(world):
        for mesh in (plain, Mesh(plain.ulysses, plain.ring, "ring")):
            places = [(mesh.u_of(p), mesh.r_of(p)) for p in range(world)]
            assert [mesh.rank_of(u, r) for u, r in places] == list(range(world))
            assert sorted({p for q in range(world) for p in mesh.ring_group(q)}) == list(
                range(world)
            )
            for p in range(world):
                assert mesh.ring_group(p)[mesh.r_of(p)] == p
                assert mesh.ulysses_group(p)[mesh.u_of(p)] == p
                assert len({mesh.source(p, s) for s in range(mesh.ring)}) == mesh.ring
        assert [plain.r_of(p) for p in range(world)] == [p // plain.ulysses for p in range(world)]
        if plain.ulysses > 1 and plain.ring > 1:
            assert any(plain.r_of(p) != p % plain.ring for p in range(world))


@pytest.mark.parametrize("ring", [3, 5])
def test_ring_steps_meet_the_right_chunk(ring: int) -> None:
    """Fault 1: with one kept block in a cell (row chunk, column chunk) its work shows in the step
    in which that chunk arrives from below, ``(r - c) mod R``, never ``(c - r) mod R``."""
    size = 4
    for r in range(ring):
        for c in range(ring):
            kept = np.zeros((1, ring * size, ring * size), bool)
            kept[0, r * size, c * size] = True
            work = made_of(kept)
            plan = families.plain(work, Mesh(1, ring))
            cells = plan.cells(work)
            assert cells[r, (r - c) % ring] == 1
            assert cells.sum() == 1
            assert plan.mesh.source(r, (r - c) % ring) == c


def made_of(kept: np.ndarray, block: int = 16) -> BlockWork:
    """Work of a map of kept blocks."""
    heads, rows, columns = kept.shape
    blocks = from_maps(kept, None, (block, block), rows * block, columns * block)
    return BlockWork.of(blocks, heads)


def test_strided_masks_count_the_same() -> None:
    """Fault 2: a mask that is a strided view gives the work and the plan of its copy."""
    rng = np.random.default_rng(0)
    wide = rng.random((4, 16, 64)) < 0.3
    view = wide[:, :, 16:32]
    a, b = made_of(view), made_of(view.copy())
    assert (a.rows == b.rows).all()
    assert dbsp(a, Mesh(2, 2)).hash == dbsp(b, Mesh(2, 2)).hash


def test_send_and_receive_are_apart() -> None:
    """Fault 3: what is sent and where it arrives are two index arrays of their own lengths, so no
    buffer can serve as both; splits of all ranks agree pairwise."""
    work = made("random", 5, 150, kv_heads=5)
    everyone = Exchanges(families.rows(work, Mesh(1, 3)), Home.even(150, 3), work=work)
    parts = [everyone.of(p).inputs for p in range(3)]
    for p, part in enumerate(parts):
        assert len(part.send_index) == sum(part.send_splits)
        assert len(part.recv_index) == sum(part.recv_splits)
        assert all(isinstance(n, int) for n in (*part.send_splits, *part.recv_splits))
        assert [q.send_splits[p] for q in parts] == list(part.recv_splits)


PANEL = Panel((0, 1), ((0, 4),))
BROKEN = {
    "twice": (Plan("split", made("dense", 2, 64).shape, Mesh(2), ((PANEL,), (PANEL,))), "2 times"),
    "never": (Plan("split", made("dense", 2, 64).shape, Mesh(2), ((), ())), "0 times"),
    "ranks": (Plan("split", made("dense", 2, 64).shape, Mesh(2), ((PANEL,),)), "of 1 ranks"),
    "heads": (
        Plan("split", made("dense", 2, 64).shape, Mesh(1), ((Panel((1, 0), ((0, 4),)),),)),
        "heads (1, 0)",
    ),
    "runs": (
        Plan("split", made("dense", 2, 64).shape, Mesh(1), ((Panel((0, 1), ((0, 5),)),),)),
        "run [0, 5)",
    ),
    "chunk": (
        Plan(
            "mesh",
            made("dense", 2, 64).shape,
            Mesh(1, 2),
            ((PANEL,), ()),
            "ring",
            (((0, 2),), ((1, 4),)),
        ),
        "key block 1 is held 2 times",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plans_are_refused(name: str) -> None:
    """A plan that computes something twice or never, or whose ring loses keys, names the place."""
    plan, said = BROKEN[name]
    with pytest.raises(InputError) as caught:
        plan.check()
    assert said in str(caught.value)


@given(st.lists(st.integers(0, 40), unique=True))
def test_runs_hold_their_blocks(blocks: list[int]) -> None:
    """Blocks to runs and back lose nothing."""
    assert indices(runs_of(sorted(blocks))).tolist() == sorted(blocks)


def test_homes() -> None:
    """Shards and replicated text hold each token once; gaps and overlaps are refused."""
    home = Home.even(100, 3, (0, 7))
    assert [len(home.tokens_of(p)) for p in range(3)] == [38, 38, 38]
    assert home.tokens_of(2).tolist()[:8] == [0, 1, 2, 3, 4, 5, 6, 69]
    assert (home.owner[:7] == -1).all()
    for shards in (((0, 5), (6, 10)), ((0, 6), (5, 10)), ((5, 10), (0, 5)), ((0, 5), (5, 9))):
        with pytest.raises(InputError):
            Home(10, shards)
    with pytest.raises(InputError):
        Home.even(10, 2, (3, 5))
