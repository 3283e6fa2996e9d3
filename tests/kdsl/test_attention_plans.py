"""Plans of attention: what a loop reads is what was written, and bad ones are refused in time."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.errors import InputError, SpecError, StoreError
from kdsl.grid import Grid
from kdsl.plans import AttentionPlan, Payload, Plan, attention_plan
from kdsl.plans.attention import shared_steps
from kdsl.runtime import build
from tests.strategies import grids

pytest.importorskip("safetensors")
GRID = Grid(frames=3, height=5, width=7, text=9)
STEPS = ((0, 0), (1, 2), (3, 9))
LIST = np.random.default_rng(3).permutation(GRID.tokens)


def maps(count: int, heads: int = 2, seed: int = 0, shape: tuple[int, int] = (8, 8)) -> list[Any]:
    """Random maps without an empty row."""
    kept = np.random.default_rng(seed).random((count, heads, *shape)) < 0.4
    kept[..., 0] = True
    return list(kept)


def example(**changes: Any) -> AttentionPlan:
    """Two layers of two heads: axis orders, cubes and a list."""
    order = [
        [orders.axes(GRID, "HWF"), orders.cubes(GRID, (2, 2, 4))],
        [orders.table(LIST, GRID), orders.axes(GRID, "HWF")],
    ]
    fields: dict[str, Any] = {"steps": STEPS, "thresholds": {"density": 0.4}, **changes}
    return attention_plan("m", GRID, (16, 16), order, maps(6), **fields)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data(), grid=grids(90), seed=st.integers(0, 99))
def test_what_is_read_is_what_was_written(
    data: st.DataObject, grid: Grid, seed: int, tmp_path: Path
) -> None:
    """Orders and maps of every layer and step come back from the file, bit by bit."""
    block = data.draw(st.sampled_from(((16, 16), (16, 32), (64, 16))))
    shape = (-(-grid.tokens // block[0]), -(-grid.tokens // block[1]))
    names = ["".join(p) for p in {tuple(grid.letters), tuple(grid.letters[::-1])}]
    order = [
        [orders.axes(grid, data.draw(st.sampled_from(names))) for _ in range(3)] for _ in range(2)
    ]
    steps = data.draw(st.sampled_from((((0, 0),), STEPS, shared_steps(6))))
    kept = maps(2 * len(steps), 3, seed, shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        attention_plan("m", grid, block, order, kept, steps=steps).save(tmp_path / "p")
    back = AttentionPlan.load(tmp_path / "p", model="m", grid=grid, layers=2, heads=3)
    for layer in range(2):
        assert list(back.order(layer).parts) in (order[layer], order[layer][:1])
        for number, (first, last) in enumerate(steps):
            for step in {first, last}:
                np.testing.assert_array_equal(back.kept(layer, step), kept[2 * number + layer])
    spans = [b - a + 1 for a, b in steps]
    each = np.array(kept).reshape(len(steps), -1).mean(1)
    assert back.density() == pytest.approx(np.average(each, weights=spans))


def test_a_loop_builds_and_runs_it() -> None:
    """`kdsl.build` takes each layer's spec and tables, and computes attention over its blocks."""
    plan = example()
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, GRID.tokens, 64))
    for layer, (spec, tables) in enumerate(plan.at(4, head_dim=64, dtype="float16")):
        op = build(spec, backend="reference")
        kept = plan.kept(layer, 4)
        density = np.mean([h.mean() for h in kept])
        assert op.blocks(tables).density == pytest.approx(density)  # type: ignore[attr-defined]
        out = op.reference(q, k, v, tables=tables)
        for head in range(2):
            at = np.argsort(plan.order(layer).parts[head].index()) // 16
            seen = kept[head][at[:, None], at[None, :]]
            s = np.where(seen, q[0, head] @ k[0, head].T / 8, -np.inf)
            p = np.exp(s - s.max(1, keepdims=True))
            wanted = p / p.sum(1, keepdims=True) @ v[0, head]
            np.testing.assert_allclose(out[0, head], wanted, atol=1e-12)


def test_dynamic_blocks_come_on_top() -> None:
    """A mask chosen at run time adds pairs to the static blocks."""
    plan = example()
    order = plan.order(0)
    spec = plan.spec(0, head_dim=64, dynamic=masks.blocks("more", order=order, block=(16, 16)))
    more = np.zeros((2, 8, 8), np.uint8)
    more[:, 2, 5] = 1
    found = spec.rows({**plan.tables(0, 0), "more": more}).kept()[0]
    np.testing.assert_array_equal(found, plan.kept(0, 0) | more.astype(bool))
    assert plan.spec(1, head_dim=128, kv_heads=1, return_lse=True).group == 2


def test_steps_find_their_range() -> None:
    """Steps lie in their range; another number of steps goes the same share of the way."""
    plan = example()
    assert [plan.range_of(s) for s in range(10)] == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert [plan.range_of(s, 5) for s in range(5)] == [0, 1, 2, 2, 2]
    assert [plan.range_of(s, 20) for s in range(8)] == [0, 0, 1, 1, 1, 1, 2, 2]
    for step, steps in ((10, None), (-1, None), (5, 5), (1.5, None)):
        with pytest.raises(InputError, match="sampling step"):
            plan.range_of(step, steps)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="layer 2"):
        plan.kept(2, 0)
    assert shared_steps(30) == (*((i, i) for i in range(15)), (15, 29))
    assert shared_steps(3, 1.0) == ((0, 0), (1, 1), (2, 2))
    assert shared_steps(3, 0.0) == ((0, 2),)
    with pytest.raises(SpecError, match="0 steps"):
        shared_steps(0)


def test_a_bit_a_block() -> None:
    """A Wan-14B plan takes one bit a block and range: 40 x 40 x 1,182 x 1,182 blocks, 30 steps.

    75,600 tokens in blocks of 64; the second half of the steps shares its blocks.
    """
    grid = Grid(frames=21, height=45, width=80)
    blocks = -(-grid.tokens // 64)
    assert blocks == 1182
    bits = 40 * blocks**2
    assert bits % 8 == 0
    ranges = len(shared_steps(30))
    stored = ranges * 40 * bits // 8
    assert stored * 8 <= 30 * 40 * bits
    assert stored == 4_470_796_800  # 16 ranges x 40 layers x 6,985,620 bytes


def test_files_are_that_small(tmp_path: Path) -> None:
    """One of those layers, two ranges over 30 steps: the whole file is below a bit a block."""
    grid = Grid(frames=21, height=45, width=80)
    kept = np.zeros((40, 1182, 1182), bool)
    kept[..., ::3] = True
    order = [[orders.axes(grid, "HWF")] * 40]
    steps = shared_steps(30, 1 / 30)
    plan = attention_plan("Wan2.1-T2V-14B", grid, (64, 64), order, [kept] * 2, steps=steps)
    plan.save(tmp_path / "wan")
    size = (tmp_path / "wan").stat().st_size
    # Two ranges of exactly a bit a block, and a header of a few hundred bytes.
    assert 2 * kept.size // 8 < size < 2 * kept.size // 8 + 4096
    assert size * 8 <= 30 * kept.size
    back = AttentionPlan.load(tmp_path / "wan")
    np.testing.assert_array_equal(back.kept(0, 29), kept)
    assert back.density() == pytest.approx(1 / 3, abs=1e-3)


def changed(**changes: Any) -> Plan:
    """The example's container with other fields."""
    plan = example().plan
    fields = {
        "kind": plan.kind,
        "model": plan.model,
        "payload": dict(plan.payload),
        "grid": plan.grid,
        "orders": plan.orders,
        "steps": plan.steps,
    }
    return Plan(**{**fields, **changes})


def with_array(name: str, change: Any, axes: tuple[str, ...] | None = None) -> Plan:
    """The example's container with one array changed."""
    held = example().plan.payload
    values = change(held[name].values.copy())
    return changed(payload={**held, name: Payload(axes or held[name].axes, values)})


def twice(values: np.ndarray) -> np.ndarray:
    """The list with one token in two places."""
    values[0, 5] = values[0, 6]
    return values


BAD: dict[str, tuple[Any, str]] = {
    "kind": (lambda: changed(kind="quantization"), "a plan for 'quantization'"),
    "no grid": (lambda: changed(grid=None), "grid None"),
    "no steps": (
        lambda: changed(
            steps=(),
            payload={
                n: Payload(("ranges", *p.axes[1:]) if n == "blocks" else p.axes, p.values)
                for n, p in example().plan.payload.items()
            },
        ),
        "0 ranges",
    ),
    "gap": (lambda: changed(steps=((0, 0), (2, 2), (3, 9))), "gaps or overlap"),
    "late": (lambda: changed(steps=((1, 1), (2, 2), (3, 9))), "begin with step 0"),
    "number": (lambda: with_array("order", lambda x: x + 2), "order 4, the plan names 3"),
    "bytes": (lambda: with_array("blocks", lambda x: x[..., :-1]), "15 bytes of blocks"),
    "other grid": (lambda: changed(grid=Grid(frames=3, height=6, width=7)), "the grid has 126"),
    "block": (lambda: with_array("block", lambda x: x * 0), "blocks of [0, 0] tokens"),
    "dtype": (lambda: with_array("order", lambda x: x.astype(np.int32)), "no 'order' of int16"),
    "list": (lambda: with_array("tables", twice), "no bijection"),
    "no list": (
        lambda: changed(
            payload={n: p for n, p in example().plan.payload.items() if n != "tables"}
        ),
        "no list for order 'table(0)'",
    ),
    "order": (lambda: changed(orders=("HWF", "cubes(2, 2, 4)", "HHF")), "each axis once"),
    "name": (lambda: changed(orders=("HWF", "hilbert", "FHW")), "order name 'hilbert'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_plans_are_refused_when_read(case: str, tmp_path: Path) -> None:
    """Each is named by what is wrong with it, and with its file, before anything is built."""
    make, message = BAD[case]
    make().save(tmp_path / "bad")
    with pytest.raises(StoreError) as caught:
        AttentionPlan.load(tmp_path / "bad")
    assert message in str(caught.value)
    assert str(tmp_path / "bad") in str(caught.value)


def test_plans_for_something_else(tmp_path: Path) -> None:
    """Another model, grid, number of layers or heads than asked for."""
    example().save(tmp_path / "p")
    for asked in (
        {"model": "n"},
        {"grid": Grid(frames=3, height=5, width=8, text=9)},
        {"layers": 3},
        {"heads": 4},
    ):
        with pytest.raises(StoreError, match=f"a plan for {next(iter(asked))} "):
            AttentionPlan.load(tmp_path / "p", **asked)


def test_truncated_files(tmp_path: Path) -> None:
    """A file cut anywhere is an error, never a plan."""
    example().save(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for size in sorted({0, 7, 8, 100, len(data) // 2, len(data) - 17, len(data) - 1}):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(StoreError, match=r"cannot be read|no kdsl header"):
            AttentionPlan.load(tmp_path / "cut")


def test_empty_rows_are_refused_before_a_launch() -> None:
    """A row that keeps nothing is named by layer, steps, head and row, however it is asked for."""
    kept = maps(6)
    kept[5][1, 3] = False
    order = [[orders.axes(GRID, "HWF")] * 2] * 2
    plan = attention_plan("m", GRID, (16, 16), order, kept, steps=STEPS)
    message = r"1 rows of blocks keep nothing, first row 3 of head 1\n.*layer 1, steps \(3, 9\)"
    for act in (
        lambda: plan.kept(1, 5),
        lambda: plan.bits(1, 5),
        lambda: plan.tables(1, 5),
        plan.check,
        lambda: list(plan.at(9, head_dim=64)),
    ):
        with pytest.raises(InputError, match=message):
            act()
    assert plan.kept(1, 2).any()


def test_maps_that_do_not_fit() -> None:
    """Too few maps, and maps of another shape, are named by layer and steps."""
    order = [[orders.axes(GRID, "HWF")] * 2] * 2
    with pytest.raises(SpecError, match=r"layer 1, steps \(0, 0\): missing"):
        attention_plan("m", GRID, (16, 16), order, maps(1))
    with pytest.raises(SpecError, match=r"layer 0, steps \(0, 0\): \(3, 8, 8\)"):
        attention_plan("m", GRID, (16, 16), order, maps(2, heads=3))


def drawn() -> AttentionPlan:
    """A plan with pictures of three candidates."""
    six = [orders.axes(GRID, name) for name in ("FHW", "HWF", "WFH")]
    cells = np.zeros((1, 1, 3, 2, 3), np.uint8)
    cells[0, 0, 1] = [[255, 1, 0], [200, 100, 255]]
    axes = ("layers", "heads", "candidates")
    scores = np.array([[[0.25, 0.5, 0.75]]], np.float32)
    extra = {
        "preview": Payload((*axes, "cell_rows", "cell_columns"), cells),
        "score.sparse": Payload(axes, scores),
        "score.incoherence": Payload(axes, 100 * scores),
    }
    return attention_plan(
        "m<1>", GRID, (16, 16), [[six[1]]], maps(1, 1), extra=extra, candidates=six
    )


def test_the_picture_in_characters() -> None:
    """Candidates side by side with their metrics, darker where more is kept, the chosen marked."""
    assert drawn().show(0, 0) == (
        "m<1>, layer 0, head 0: 114 tokens in blocks of 16 x 16\n"
        "FHW             HWF <           WFH\n"
        "M_sparse 25.0%  M_sparse 50.0%  M_sparse 75.0%\n"
        "M_quant 25.0    M_quant 50.0    M_quant 75.0\n"
        "···             █░·             ···\n"
        "···             ▓▒█             ···"
    )
    plain = drawn().show(0, 0, ascii=True)
    assert "#-." in plain
    assert "*+#" in plain
    assert len(drawn().show(0, 0, columns=1).splitlines()) == 1 + 3 * 6 - 1


def test_the_picture_as_svg() -> None:
    """Well-formed SVG with a panel for each candidate, its numbers, and the chosen one marked."""
    root = ElementTree.fromstring(drawn().svg(0, 0))
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("}text")]
    assert [t for t in texts if t.split()[0] in ("FHW", "HWF", "WFH")] == ["FHW", "HWF <", "WFH"]
    assert "M_quant 50.0" in texts
    frames = [e for e in root.iter() if e.get("class") == "kdsl-frame"]
    assert [e.get("stroke-width") for e in frames] == ["0.5", "2", "0.5"]
    assert sum(bool(e.get("d")) for e in root.iter()) == 4


def test_pictures_that_are_not_there() -> None:
    """A plan without candidates, and layers and heads out of range, say so."""
    with pytest.raises(InputError, match="no pictures of candidate orders"):
        example().show(0, 0)
    with pytest.raises(InputError, match="below 1 and 1"):
        drawn().svg(0, 1)
    with pytest.raises(SpecError, match="columns=0"):
        drawn().show(0, 0, columns=0)


def test_orders_have_names() -> None:
    """Axis orders and cubes go by name and back; other kinds, and other words, do not."""
    for order in (orders.axes(GRID, "WFH"), orders.cubes(GRID, (2, 2, 4))):
        assert orders.by_name(orders.name_of(order), GRID) == order
    with pytest.raises(SpecError, match="has no name"):
        orders.name_of(orders.table(LIST, GRID))
    for name in ("cubes(2,2)", "cubes()", "hwf", "", "HW"):
        with pytest.raises(SpecError):
            orders.by_name(name, GRID)


def test_the_header_is_plain_json() -> None:
    """What a plan says of itself can be read without this library."""
    header = json.loads(json.dumps(example().plan.header))
    assert header["orders"] == ["HWF", "cubes(2, 2, 4)", "table(0)"]
    assert header["steps"] == [list(s) for s in STEPS]
