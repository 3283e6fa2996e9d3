"""Layouts of attention: what goes together, canonical form, storage of v, sizes."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import layouts, masks, orders
from kdsl.errors import SpecError
from kdsl.grid import Grid
from kdsl.layouts import AttentionLayout, Layout
from kdsl.layouts.attention import lane_order, padded
from kdsl.layouts.groups import Lanes
from kdsl.specs import Attention, Permute

BLOCK, THREAD = Layout("int8", (64, None)), Layout("int8", Lanes(32, 8, 1))
CHANNEL = Layout("int8", (None, 1))
PRESETS = [
    layouts.int8_qk(),
    layouts.int8_qk("thread"),
    layouts.int8_qk_fp8_pv(),
    layouts.int8_qk_int8_pv("thread"),
    layouts.int4_qk(),
    layouts.int4_qk("int4", "thread"),
]


@pytest.mark.parametrize("layout", PRESETS, ids=repr)
def test_json_and_repr_go_there_and_back(layout: AttentionLayout) -> None:
    """The canonical form and repr give an equal layout; another one gives another spec's hashes."""
    text = json.dumps(layout.to_json())
    assert AttentionLayout.from_json(json.loads(text)) == layout
    names = {"AttentionLayout": AttentionLayout, "Layout": Layout, "Lanes": Lanes}
    assert _evaluated(repr(layout), names) == layout
    spec = Attention(tokens=200, heads=2, head_dim=64, layout=layout)
    assert Attention.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    others = [Attention(tokens=200, heads=2, head_dim=64, layout=x) for x in (None, *PRESETS)]
    assert sum(o.fingerprint == spec.fingerprint for o in others) == 1
    assert sum(o.program == spec.program for o in others) == 1


def _evaluated(text: str, names: dict[str, type]) -> object:
    """What a repr of nested calls says, without evaluating anything else."""
    import ast

    def made(node: ast.expr) -> object:
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            return names[node.func.id](**{str(k.arg): made(k.value) for k in node.keywords})
        return ast.literal_eval(node)

    return made(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AttentionLayout(CHANNEL, BLOCK), "scales of q by 1 channels"),
        (lambda: AttentionLayout(BLOCK, Layout("e4m3", (64, None))), 'codes "int8" or "int4"'),
        (lambda: AttentionLayout(BLOCK, BLOCK, BLOCK, "uint8", "channels"), "one a channel"),
        (lambda: AttentionLayout(BLOCK, BLOCK, CHANNEL, "e4m3", "channels"), "v as int8"),
        (lambda: AttentionLayout(BLOCK, BLOCK, CHANNEL, "uint8"), "read v transposed"),
        (lambda: AttentionLayout(BLOCK, BLOCK, None, "uint8"), "v in the spec's dtype"),
        (lambda: AttentionLayout(BLOCK, BLOCK, None, None, "lanes"), "read as it is"),
        (lambda: layouts.int8_qk("warp"), "'block' or 'thread'"),
        (lambda: layouts.int4_qk("fp8"), "int4_qk(pv='fp8')"),
        (lambda: Attention(tokens=9, heads=1, head_dim=64, layout=BLOCK), "int8_qk_fp8_pv"),
        (lambda: _spec(dtype="float32"), "dtype='float32'"),
        (lambda: _spec(order=orders.axes(GRID, "WH")), "stored=True"),
        (lambda: _spec(mask=masks.topk(2)), "16-bit q and k"),
        (lambda: Permute(tokens=GRID, heads=1, head_dim=64, order=ORDER, layout=THREAD),
         "no kernel"),
        (lambda: AttentionLayout.from_json({**PRESETS[0].to_json(), "p": 1}), "unknown field 'p'"),
        (lambda: Layout.from_json({"code": "int8", "group": {"kind": "flat", "size": 4},
                                   "scale_dtype": "float32"}), "or Lanes"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(make: Callable[[], object], said: str) -> None:
    """Each rule refuses with its reason and what would work, when it is written."""
    with pytest.raises(SpecError) as error:
        make()
    assert said in str(error.value)


GRID = Grid(height=10, width=20)
ORDER = orders.axes(GRID, "WH")


def _spec(**fields: object) -> Attention:
    plain = {"tokens": GRID, "heads": 1, "head_dim": 64, "layout": layouts.int8_qk()}
    return Attention(**{**plain, **fields})  # type: ignore[arg-type]


@given(tokens=st.integers(0, 300), lanes=st.booleans(), seed=st.integers(0, 99))
def test_v_is_stored_and_restored(tokens: int, lanes: bool, seed: int) -> None:
    """Transposed codes come back, padding is zero, and each code is where `lane_order` says."""
    layout = layouts.int8_qk_int8_pv(v_stored="lanes" if lanes else "channels")
    codes = np.random.default_rng(seed).integers(-127, 128, (2, tokens, 8)).astype(np.int8)
    stored = layout.transposed(codes)
    assert stored.shape == (2, 8, padded(tokens))
    np.testing.assert_array_equal(layout.restored(stored, tokens), codes)
    token = lane_order(padded(tokens)) if lanes else np.arange(padded(tokens))
    for at in range(padded(tokens)):
        wanted = codes[:, token[at]] if token[at] < tokens else 0
        np.testing.assert_array_equal(stored[:, :, at], wanted)


def test_lanes_are_what_a_thread_holds() -> None:
    """Four neighbours of the operand are the accumulator columns of one thread: 2t, 2t + 1, 2t + 8,
    2t + 9 of each sixteen; and the order is a bijection within them."""
    order = lane_order(64)
    for at in range(0, 64, 4):
        t = at // 4 % 4
        assert (order[at : at + 4] - at // 16 * 16).tolist() == [
            2 * t,
            2 * t + 1,
            2 * t + 8,
            2 * t + 9,
        ]
    assert sorted(order[:16]) == list(range(16))


def test_operands_and_bytes() -> None:
    """Names, shapes and bytes of a call: sums only where weights are unsigned."""
    shape = (2, 3, 200, 64)
    by = {layout.weights: layout for layout in PRESETS}
    assert by[None].operands == ("q", "q_scale", "k", "k_scale", "v")
    assert by["e4m3"].operands[-1] == "v_scale"
    held = by["uint8"].shapes(shape, shape, "bfloat16")
    assert held["v"] == ((2, 3, 64, 256), "int8")
    assert held["v_sum"] == ((2, 3, 8, 64), "int16")
    assert held["q_scale"] == ((2, 3, 7 * 8, 1), "float32")
    plain = layouts.int8_qk().nbytes(shape, shape)
    assert plain == 6 * (2 * 200 * 64 + 2 * 200 * 64 + 4 * (4 + 2))


def test_groups_of_lanes_quantize_as_the_stored_format() -> None:
    """Rows that one thread holds share a scale, the largest of them over 127: those of the stored
    format `layouts.sage` has groups for."""
    x = np.random.default_rng(3).standard_normal((100, 64)).astype(np.float32)
    for side, lanes in (("query", Lanes(32, 8, 1)), ("key", Lanes(64, 8, 2))):
        codes, scale = Layout("int8", lanes).quantize(x)
        assert layouts.sage(side).level.scale.field.groups == lanes
        assert np.abs(x - Layout("int8", lanes).dequantize(codes, scale)).max() <= scale.max() / 2
        for row in range(100):
            group = lanes.rows(100) == lanes.rows(100)[row]
            assert scale[lanes.rows(100)[row], 0] == np.abs(x[group]).max() / np.float32(127)
