"""Specs: equality, round trips, the two hashes, and validation where the spec is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdsl.expr as kx
from kdsl import masks, orders, specs
from kdsl.errors import InputError, KdslError, SpecError
from kdsl.expr import table
from kdsl.grid import Grid
from kdsl.layouts import Layout, int8
from kdsl.masks import Mask
from kdsl.orders import Order
from kdsl.specs import Attention, Partition, Permute
from tests.strategies import Scope, grids, order_of, scopes, token_counts, truth

VIDEO = Grid(frames=4, height=5, width=6)
CUBES = orders.cubes(VIDEO, (2, 2, 3))
NAMES: dict[str, Any] = {
    "masks": masks,
    "orders": orders,
    "Grid": Grid,
    "Layout": Layout,
    "BlockMap": masks.BlockMap,
    "Attention": Attention,
    "Partition": Partition,
    "Permute": Permute,
    **{n: getattr(kx, n) for n in ("Table", "minimum", "maximum", "where")},
}


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Any valid attention spec: masks, orders, grouped heads, ragged lengths, dtypes."""
    scope: Scope = draw(scopes())
    heads, group = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((1, 2)))
    scope.heads = heads * group
    count = draw(st.sampled_from((1, heads * group)))
    variants = tuple(truth(draw, scope, 2) for _ in range(count))
    stored: list[Order | None] = [None, None]
    for i, grid in enumerate((scope.queries, scope.keys)):
        if draw(st.booleans()):
            stored[i] = draw(order_of(grid))
        elif draw(st.booleans()):
            stored[i] = orders.per_head([draw(order_of(grid, False)) for _ in range(heads * group)])
    return Attention(
        queries=scope.queries,
        keys=scope.keys,
        heads=heads * group,
        kv_heads=heads,
        head_dim=draw(st.sampled_from(specs.HEAD_DIMS)),
        dtype=draw(st.sampled_from(specs.DTYPES)),
        mask=Mask(variants, scope.queries, scope.keys),
        order=stored[0],
        key_order=stored[1],
        scale=draw(st.one_of(st.none(), st.floats(1e-3, 10))),
        return_lse=draw(st.booleans()),
        block=draw(st.sampled_from(((128, 128), (64, 32)))),
    )


@st.composite
def permutes(draw: st.DrawFn) -> Permute:
    """Any valid permute spec."""
    grid = draw(grids())
    return Permute(
        tokens=grid,
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from((64, 80))),
        order=draw(order_of(grid)),
        dtype=draw(st.sampled_from(specs.DTYPES)),
        layout=draw(st.sampled_from((None, int8(), int8("block", 16), int8("channel")))),
    )


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """Any valid partition spec."""
    node, nodes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    inner = draw(attentions())
    return Partition(
        attention=inner,
        world=node * nodes,
        node=node,
        link=draw(st.sampled_from(specs.LINKS)),
        replicated_text=inner.query_grid == inner.key_grid and draw(st.booleans()),
    )


@given(st.one_of(attentions(), permutes(), partitions()))
def test_round_trips(spec: specs.Spec) -> None:
    """A spec comes back equal from canonical JSON and from its repr, with both hashes."""
    text = specs.canonical(spec.to_json())
    for back in (specs.from_json(json.loads(text)), eval(repr(spec), NAMES)):
        assert back == spec
        assert hash(back) == hash(spec)
        assert specs.canonical(back.to_json()) == text
        assert (back.fingerprint, back.program) == (spec.fingerprint, spec.program)


def attention(**changes: Any) -> Attention:
    """A plain spec with some fields changed."""
    fields: dict[str, Any] = {"tokens": VIDEO, "heads": 4, "head_dim": 64, **changes}
    return Attention(**fields)


def test_fingerprints_tell_every_field_apart() -> None:
    """Changing any field changes the fingerprint."""
    different = [
        attention(),
        attention(tokens=120),
        attention(tokens=None, queries=VIDEO, keys=121),
        attention(heads=8),
        attention(kv_heads=2),
        attention(head_dim=128),
        attention(dtype="float16"),
        attention(mask=masks.causal()),
        attention(mask=masks.causal(1)),
        attention(mask=masks.window(VIDEO, (3, 3, 3))),
        attention(order=CUBES),
        attention(order=CUBES, key_order=orders.identity(VIDEO)),
        attention(key_order=CUBES),
        attention(order=orders.per_head([CUBES] * 4)),
        attention(scale=0.5),
        attention(return_lse=True),
        attention(block=(128, 64)),
    ]
    assert len({s.fingerprint for s in different}) == len(different)
    assert len(set(different)) == len(different)


SAME_PROGRAM = [
    (attention(mask=masks.causal()), attention(mask=masks.causal(7), tokens=4096)),
    (
        attention(mask=masks.window(VIDEO, (3, 3, 3)), order=orders.axes(VIDEO, "HWF")),
        attention(
            tokens=Grid(frames=21, height=30, width=52),
            heads=12,
            mask=masks.window(Grid(frames=21, height=30, width=52), (5, 9, 9)),
            order=orders.axes(Grid(frames=21, height=30, width=52), "HWF"),
        ),
    ),
    (
        attention(mask=masks.same(table("doc", 120))),
        attention(tokens=999, mask=masks.same(table("ids", 999, low=0, high=7))),
    ),
    (attention(heads=4, kv_heads=2), attention(heads=16, kv_heads=8, scale=0.25)),
]


@pytest.mark.parametrize(("a", "b"), SAME_PROGRAM)
def test_program_forgets_sizes_constants_and_tables(a: Attention, b: Attention) -> None:
    """Sizes, constants, table names and scale share one program: tuning carries over."""
    assert a.program == b.program
    assert a.fingerprint != b.fingerprint


def test_program_tells_structures_apart() -> None:
    """What makes other code makes another program."""
    different = [
        attention(),
        attention(mask=masks.causal()),
        attention(mask=masks.window(9)),
        attention(mask=~masks.causal()),
        attention(mask=masks.same(table("doc", 120))),
        attention(mask=masks.same(table("doc", 120, "int16"))),
        attention(mask=masks.blocks("plan")),
        attention(order=orders.axes(VIDEO, "HWF")),
        attention(order=CUBES),
        attention(order=CUBES, key_order=orders.identity(VIDEO)),
        attention(order=orders.table(table("late", 120), VIDEO)),
        attention(order=orders.per_head([CUBES, CUBES, CUBES, orders.axes(VIDEO, "WHF")])),
        attention(kv_heads=2),
        attention(head_dim=80),
        attention(dtype="float16"),
        attention(return_lse=True),
        attention(block=(64, 64)),
    ]
    assert len({s.program for s in different}) == len(different)


@given(token_counts(), token_counts())
def test_rows_of_a_spec(queries: int, keys: int) -> None:
    """`rows` cuts ragged sequences into the spec's blocks and keeps exactly what the mask keeps."""
    spec = Attention(
        queries=queries, keys=keys, heads=1, head_dim=64, mask=masks.causal(9), block=(32, 64)
    )
    rows = spec.rows()
    q, k = np.arange(queries)[:, None], np.arange(keys)[None, :]
    kept = np.zeros((rows.rows * 32, rows.columns * 64), bool)
    kept[:queries, :keys] = k <= q + 9
    tiles = kept.reshape(rows.rows, 32, rows.columns, 64).any((1, 3))
    np.testing.assert_array_equal(rows.kept()[0, 0], tiles)


def test_block_maps_become_tables_of_the_spec() -> None:
    """A block map is an open table of the spec's size, resolved in its mask, read by `rows`."""
    spec = attention(mask=masks.blocks("plan", CUBES, (16, 16)), order=CUBES, block=(16, 16))
    assert [(t.name, t.shape, t.dtype) for t in spec.open_tables] == [("plan", (4, 8, 8), "uint8")]
    plan = np.random.default_rng(0).integers(0, 2, (4, 8, 8))
    rows = spec.rows({"plan": plan})
    np.testing.assert_array_equal(rows.kept()[0], plan == 1)
    assert not rows.partial.any()


def test_open_and_held_tables() -> None:
    """Tables with values are not asked for at the call; order lists are tables too."""
    held = orders.table(np.arange(120)[::-1].copy(), VIDEO)
    spec = attention(mask=masks.same(table("doc", (3, 120))), order=held)
    assert [t.name for t in spec.open_tables] == ["doc"]
    assert len(spec.tables) == 2
    assert spec.batch_limit == 3


def test_batch_is_bounded_by_the_tables_it_indexes() -> None:
    """Tables of two axes that no batch item indexes do not bound the batch."""
    wide, narrow = table("wide", (100, 120)), table("narrow", (4, 120))
    mask = masks.predicate(lambda q, k, batch: wide[k % 100, q] < narrow[batch, k])
    spec = attention(mask=mask)
    assert spec.batch_limit == 4
    with pytest.raises(InputError, match="a batch of 5\n  try 4, as the tables hold"):
        spec.rows(batch=5)
    assert attention().batch_limit == 2**15


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "no tokens": (
        lambda: Attention(heads=1, head_dim=64),
        "attention takes tokens, or queries and keys\n"
        "  in  tokens=None, queries=None, keys=None\n"
        "  try tokens=grid, or queries=grid, keys=other_grid",
    ),
    "half": (
        lambda: Attention(queries=4, heads=1, head_dim=64),
        "queries and keys come together\n  try both, or tokens=",
    ),
    "heads": (lambda: attention(heads=0), "heads=0\n  try heads of at least 1"),
    "kv_heads": (
        lambda: attention(heads=12, kv_heads=5),
        "kv_heads=5 does not divide heads=12\n  try kv_heads in [1, 2, 3, 4, 6, 12]",
    ),
    "head_dim": (
        lambda: attention(head_dim=72),
        "no attention kernel has head_dim=72\n"
        "  try one of 64, 80, 96, 128, 192, 256; zero-pad the last axis up to one",
    ),
    "dtype": (
        lambda: attention(dtype="int8"),
        "dtype='int8'\n  try 'bfloat16' or 'float16' or 'float32'",
    ),
    "scale": (
        lambda: attention(scale=float("nan")),
        "scale=nan\n  try a positive number, or None",
    ),
    "block": (
        lambda: attention(block=(100, 128)),
        "block=(100, 128)\n  try block=(128, 128), sizes of 16, 32, 64, 128 or 256",
    ),
    "one block": (
        lambda: attention(block=128),
        "block=128\n  try block=(128, 128), sizes of 16, 32, 64, 128 or 256",
    ),
    "layout": (
        lambda: attention(layout=int8()),
        "layout=Layout(code='int8', group=(1, None), scale_dtype='float32')\n"
        "  try kdsl.layouts.int8_qk_fp8_pv(), or None",
    ),
    "order": (
        lambda: attention(order="HWF"),
        "order='HWF'\n  try kdsl.orders.axes(grid, \"HWF\")",
    ),
    "order length": (
        lambda: attention(order=orders.identity(Grid(9))),
        "order is over 9 tokens, the spec has 120\n  in  orders.axes(Grid(length=9), 'L')\n"
        "  try an order over Grid(frames=4, height=5, width=6)",
    ),
    "order heads": (
        lambda: attention(order=[CUBES, CUBES]),
        "order is for 2 heads of 4",
    ),
    "late inverse": (
        lambda: Permute(
            tokens=VIDEO, heads=1, head_dim=64, order=~orders.table(table("late", 120), VIDEO)
        ),
        "order 'late' is known only at the call\n"
        "  try inverse_index(tables), or an order from values",
    ),
    "mask": (
        lambda: attention(mask=lambda q, k: q >= k),
        None,
    ),
    "mask grid": (
        lambda: attention(tokens=120, mask=masks.window(VIDEO, (1, 3, 3))),
        "the mask speaks of Grid(frames=4, height=5, width=6), the queries are Grid(length=120)\n"
        "  in  (abs(q.frames - k.frames) <= 0) & (abs(q.height - k.height) <= 1)"
        " & (abs(q.width - k.width) <= 1)\n"
        "  try a mask over Grid(length=120)",
    ),
    "text": (
        lambda: attention(
            tokens=Grid(frames=4, height=5, width=6, text=2), mask=masks.text(VIDEO) | True
        ),
        "the mask speaks of Grid(frames=4, height=5, width=6), the queries are"
        " Grid(frames=4, height=5, width=6, text=2, text_at='start')\n"
        "  in  True\n"
        "  try a mask over Grid(frames=4, height=5, width=6, text=2, text_at='start')",
    ),
    "mask heads": (
        lambda: attention(mask=[masks.causal(), masks.window(3)]),
        "masks for 2 heads, the spec has 4\n  try one mask, or one for each query head",
    ),
    "short table": (
        lambda: attention(mask=masks.same(table("doc", 100))),
        "index q of table 'doc' runs from 0 to 119, the table from 0 to 99\n"
        "  in  doc[q]\n"
        "  try a table as long as its index, or minimum(maximum(index, 0), 99)",
    ),
    "overflow": (
        lambda: attention(tokens=2**20, mask=masks.predicate(lambda q, k: q * k < 5)),
        "q * k may reach 1099509530625, beyond 32 bits\n  in  (q * k) < 5\n"
        "  try smaller constants, or low= and high= on its tables",
    ),
    "one name, two tables": (
        lambda: attention(
            mask=masks.same(table("late", 120, "int16")),
            order=orders.table(table("late", 120), VIDEO),
        ),
        "two tables are named 'late'\n"
        "  in  Table('late', (120,), 'int16', -32768, 32767) and"
        " Table('late', (120,), 'int32', 0, 119)\n"
        "  try another name for one of them",
    ),
    "map block": (
        lambda: attention(mask=masks.blocks("plan", block=(64, 64))),
        "block map 'plan' has blocks of (64, 64), the spec (128, 128)\n  try block=(64, 64)",
    ),
    "map order": (
        lambda: attention(mask=masks.blocks("plan"), order=CUBES),
        "the mask speaks of another stored order of the queries than the spec\n"
        "  in  None in the mask, orders.cubes(Grid(frames=4, height=5, width=6), (2, 2, 3))"
        " in the spec\n  try masks.blocks(name, order=...) with the spec's order",
    ),
    "map key order": (
        lambda: attention(
            mask=masks.blocks("plan", CUBES), order=CUBES, key_order=orders.identity(VIDEO)
        ),
        "the mask speaks of another stored order of the keys than the spec\n"
        "  in  orders.cubes(Grid(frames=4, height=5, width=6), (2, 2, 3)) in the mask,"
        " orders.axes(Grid(frames=4, height=5, width=6), 'FHW') in the spec\n"
        "  try masks.blocks(name, order=...) with the spec's order",
    ),
    "permute order": (
        lambda: Permute(tokens=119, heads=1, head_dim=64, order=CUBES),
        "the order is over 120 tokens, the spec has 119\n"
        "  in  orders.cubes(Grid(frames=4, height=5, width=6), (2, 2, 3))",
    ),
    "permute heads": (
        lambda: Permute(tokens=VIDEO, heads=3, head_dim=64, order=[CUBES] * 2),
        "the order is for 2 heads of 3",
    ),
    "permute groups": (
        lambda: Permute(
            tokens=VIDEO, heads=1, head_dim=80, order=CUBES, layout=Layout("int8", (1, 64))
        ),
        "groups of 64 channels do not divide 80\n"
        "  in  Layout(code='int8', group=(1, 64), scale_dtype='float32')\n  try 16",
    ),
    "partition nodes": (
        lambda: Partition(attention=attention(), world=6, node=4),
        "6 ranks on nodes of 4\n  try nodes of equally many ranks",
    ),
    "partition link": (
        lambda: Partition(attention=attention(), world=6, link="ring"),
        "link='ring'\n  try 'nvlink' or 'pcie'",
    ),
    "op": (
        lambda: specs.from_json({"op": "conv"}),
        "unknown op 'conv'\n  try 'attention' or 'permute' or 'partition' or 'quantize' "
        "or 'matmul' or 'prepass'",
    ),
    "fields": (
        lambda: specs.from_json({"op": "permute", "tokens": {"length": 4}}),
        "malformed permute spec: no field 'dtype'\n"
        "  try dtype, head_dim, heads, layout, op, order, tokens",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    """What specs refuse when they are written, word for word."""
    act, wanted = MESSAGES[case]
    with pytest.raises(SpecError) as caught:
        act()
    if wanted is None:
        assert str(caught.value).startswith("<function")
    else:
        assert str(caught.value) == wanted


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_short_sequences_are_specs(tokens: int) -> None:
    """Sequences of no and of few tokens are valid."""
    spec = Attention(tokens=tokens, heads=1, head_dim=64, mask=masks.causal())
    assert spec.rows().start.shape == (1, 1, -(-tokens // 128))
    assert issubclass(SpecError, KdslError)
