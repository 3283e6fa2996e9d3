"""The pre-pass spec: round trips, the two hashes, its attention, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from kdsl import Grid, layouts, masks, orders, specs
from kdsl.errors import SpecError
from kdsl.expr import table
from kdsl.layouts import AttentionLayout, Layout
from kdsl.layouts.groups import Lanes
from kdsl.specs import Attention, Prepass
from tests.preparing import prepasses

VIDEO = Grid(frames=3, height=4, width=5, text=7)
SPEC = Prepass(tokens=VIDEO, heads=4, kv_heads=2, head_dim=64, layout=layouts.int8_qk_fp8_pv())
NAMES: dict[str, Any] = {
    m.__name__: m for m in (Prepass, Grid, AttentionLayout, Layout, Lanes)
} | {"orders": orders}  # fmt: skip


@given(prepasses(specs.DTYPES))
def test_json_and_repr_read_back_equal(spec: Prepass) -> None:
    """Both forms give the same spec, with the same hashes."""
    again = specs.from_json(spec.to_json())
    assert again == spec
    assert specs.canonical(again.to_json()) == specs.canonical(spec.to_json())
    assert (again.fingerprint, again.program) == (spec.fingerprint, spec.program)
    if all(
        isinstance(o, (orders.closed.Axes, orders.closed.Cubes)) for o in spec.stored_order.parts
    ):
        assert eval(repr(spec), dict(NAMES)) == spec


def test_the_program_has_no_sizes() -> None:
    """Tokens, heads, eps and which order it is leave the program alone; all else makes another."""
    turned = replace(SPEC, order=orders.axes(VIDEO, "HWF"))
    for a, b in (
        (SPEC, replace(SPEC, tokens=replace(VIDEO, frames=9))),
        (SPEC, replace(SPEC, heads=8)),
        (SPEC, replace(SPEC, eps=1e-5)),
        (SPEC, replace(SPEC, order=orders.identity(VIDEO))),
        (turned, replace(SPEC, order=orders.cubes(VIDEO, (2, 2, 2)))),
    ):
        assert a.program == b.program
        assert a.fingerprint != b.fingerprint
    changes: list[dict[str, Any]] = [
        {}, {"dtype": "float16"}, {"head_dim": 128}, {"layout": layouts.int8_qk()},
        {"norm": "rms"}, {"norm": "rms_token"}, {"rope": "half"}, {"rope": "interleaved"},
        {"smooth": True}, {"pool": (64, 64)}, {"order": orders.axes(VIDEO, "HWF")},
    ]  # fmt: skip
    assert len({replace(SPEC, **change).program for change in changes}) == len(changes)


def test_inputs_and_outputs() -> None:
    """Names and shapes follow from what is asked for."""
    assert list(SPEC.inputs) == ["q", "k", "v"]
    full = replace(SPEC, norm="layer", rope="half", smooth=True, pool=(16, 64))
    assert full.inputs == {
        "q": (4, 67, 64), "k": (2, 67, 64), "v": (2, 67, 64),
        "q_weight": (64,), "k_weight": (64,), "q_bias": (64,), "k_bias": (64,),
        "cos": (60, 32), "sin": (60, 32),
    }  # fmt: skip
    wan = replace(SPEC, norm="rms_token")
    assert (wan.inputs["q_weight"], wan.inputs["k_weight"]) == ((256,), (128,))
    assert full.outputs == (
        "q", "q_scale", "k", "k_scale", "v", "v_scale", "k_mean", "q_pool", "k_pool",
    )  # fmt: skip
    shapes = full.shapes(3)
    assert shapes["v"] == ((3, 2, 64, 128), "float8_e4m3fn")
    assert shapes["q_pool"] == ((3, 4, 5, 64), "float32")
    assert shapes["k_mean"] == ((3, 2, 64), "float32")


def test_its_attention() -> None:
    """The same tokens, heads, order and layout; stored only where a token moves."""
    order = orders.axes(VIDEO, "HWF")
    took = replace(SPEC, order=order).attention(mask=masks.causal(), return_lse=True)
    assert took == Attention(
        tokens=VIDEO, heads=4, kv_heads=2, head_dim=64, layout=SPEC.layout, order=order,
        stored=True, mask=masks.causal(), return_lse=True,
    )  # fmt: skip
    assert not SPEC.attention().stored
    wide = replace(SPEC, dtype="float32")
    with pytest.raises(SpecError, match="float32"):
        wide.attention()
    assert wide.attention(dtype="float16").dtype == "float16"


def test_key_heads_have_the_orders_of_their_groups() -> None:
    """Each group one; tables of the orders are the spec's."""
    a, b = orders.axes(VIDEO, "HWF"), orders.table(table("late", 67), VIDEO)
    spec = replace(SPEC, order=[a, a, b, b])
    assert spec.key_orders == (a, b)
    assert [t.name for t in spec.open_tables] == ["late"]
    assert replace(SPEC, order=a).key_orders == (a,)
    with pytest.raises(SpecError, match="groups of 2 query heads share keys"):
        replace(SPEC, order=[a, b, b, b])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads=0"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"head_dim": 72}, "no attention kernel has head_dim=72"),
        ({"dtype": "float64"}, "dtype='float64'"),
        ({"norm": "group"}, "norm='group'"),
        ({"rope": "axial"}, "rope='axial'"),
        ({"eps": 0}, "eps=0"),
        ({"eps": True}, "eps=True"),
        ({"smooth": 1}, "smooth=1"),
        ({"pool": (64,)}, r"pool=\(64,\)"),
        ({"pool": (64, 48)}, r"pool=\(64, 48\)"),
        ({"layout": layouts.int8()}, "layout=Layout"),
        ({"layout": layouts.int8_qk(), "dtype": "float32"}, "quantized attention has none of"),
        ({"order": "HWF"}, "order='HWF'"),
        ({"order": orders.identity(Grid(9))}, "over 9 tokens, the spec has 67"),
        ({"order": [orders.identity(VIDEO)] * 3}, "for 3 heads of 4"),
    ],
)
def test_what_is_refused_where_it_is_written(change: dict[str, Any], message: str) -> None:
    """Each names what is wrong."""
    with pytest.raises(SpecError, match=message):
        replace(SPEC, **change)


def test_malformed_json_is_refused() -> None:
    """A missing and an unknown field are named."""
    held = SPEC.to_json()
    with pytest.raises(SpecError, match="no field 'eps'"):
        specs.from_json({n: v for n, v in held.items() if n != "eps"})
    with pytest.raises(SpecError, match="unknown field 'epsilon'"):
        specs.from_json({**held, "epsilon": 1})
