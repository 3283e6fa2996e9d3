"""The pre-pass operator without a GPU: by the reference, explained, costed, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kdsl
from kdsl import Grid, layouts, masks, orders, targets
from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.expr import table
from kdsl.runtime.prepass import Prepared
from kdsl.specs import Prepass
from tests.preparing import inputs

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here:UserWarning")
VIDEO = Grid(frames=3, height=4, width=5, text=7)
SPEC = Prepass(
    tokens=VIDEO, heads=4, kv_heads=2, head_dim=64, dtype="float16", norm="rms", rope="half",
    layout=layouts.int8_qk_fp8_pv(), order=orders.axes(VIDEO, "HWF"), smooth=True, pool=(64, 64),
)  # fmt: skip


def reference(spec: Prepass = SPEC) -> Any:
    """The operator that computes with NumPy."""
    return kdsl.build(spec, backend="reference")


def test_arrays_and_tensors_come_back_as_they_came() -> None:
    """Codes of e4m3 as float8 tensors, or as bytes where there is NumPy alone."""
    given = inputs(SPEC, 2, 0)
    made = reference()(*given.values())
    assert isinstance(made, Prepared)
    assert made.operands[4].dtype == torch.float8_e4m3fn
    assert made.q_pool.shape == (2, 4, 2, 64)
    arrays = reference()(*(x.numpy() for x in given.values()))
    assert arrays.operands[4].dtype == np.uint8
    for a, b in zip(made.operands, arrays.operands, strict=True):
        a = a.view(torch.uint8) if a.dtype == torch.float8_e4m3fn else a
        np.testing.assert_array_equal(a.numpy(), b)
    np.testing.assert_array_equal(made.k_mean, arrays.k_mean)
    again = reference().reference(*given.values())
    np.testing.assert_array_equal(again.operands[0], arrays.operands[0])
    q, k = reference().stored(*given.values())
    assert (q.shape, k.shape, q.dtype) == ((2, 4, 67, 64), (2, 2, 67, 64), np.float64)
    plain = reference(replace(SPEC, smooth=False, pool=None))(*given.values())
    assert plain[1:] == (None, None, None)


def test_its_operands_go_into_attention() -> None:
    """Built from the pre-pass's own attention, with arrays and with tensors."""
    given = inputs(SPEC, 1, 0)
    op = kdsl.build(SPEC.attention(mask=masks.causal()), backend="reference")
    out = op(*reference()(*given.values()).operands)
    arrays = op(*reference()(*(x.numpy() for x in given.values())).operands)
    assert out.shape == (1, 4, 67, 64)
    # One of the two is rounded to float16 by way of float32.
    np.testing.assert_allclose(out.numpy(), arrays, 2.0**-10, 2.0**-24)


def test_late_orders_need_values() -> None:
    """Named when they are missing, checked when they are there, and bound for later calls."""
    spec = replace(SPEC, order=orders.table(table("late", 67)))
    given = inputs(spec, 1, 0)
    op, right = reference(spec), np.arange(67)[::-1].astype(np.int32)
    with pytest.raises(InputError, match="'late' has no values"):
        op(*given.values())
    one = op(*given.values(), tables={"late": right})
    two = op.bind({"late": right})(*given.values())
    np.testing.assert_array_equal(one.operands[0], two.operands[0])
    with pytest.raises(kdsl.KdslError, match="late"):
        op(*given.values(), tables={"late": np.zeros(67, np.int32)}, check=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("sin"), "takes q, k, v, q_weight, k_weight, cos, sin, got 6"),
        (lambda t: t.update(q=t["q"].transpose(1, 2)), r"q.transpose\(1, 2\)"),
        (lambda t: t.update(k=t["k"].float()), "k is float32, the spec says float16"),
        (lambda t: t.update(k=t["q"]), "k has shape"),
        (lambda t: t.update(q_weight=torch.ones(32)), "q_weight has shape"),
        (lambda t: t.update(q_weight=torch.ones(64, dtype=torch.int32)), "q_weight is int32"),
        (lambda t: t.update(cos=torch.ones(67, 32)), r"cos\[7:\]: rows of the visual tokens"),
        (lambda t: t.update(cos=torch.ones(60, 16)), "cos has shape"),
        (lambda t: t.update(v=t["v"].numpy()), "v is a NumPy array, q a torch tensor"),
        (lambda t: t.update(v=None), "v is a NoneType"),
    ],
)
def test_what_a_call_refuses(spoil: Any, message: str) -> None:
    """Each names the tensor, and what would fit."""
    given = dict(inputs(SPEC, 1, 0))
    spoil(given)
    with pytest.raises(InputError, match=message):
        reference()(*given.values())


def test_checks_of_values() -> None:
    """NaN, and wide tables whose two numbers differ: only where it is asked for."""
    given = inputs(SPEC, 1, 0, wide=True)
    reference()(*given.values(), check=True)
    given["cos"] = given["cos"].clone()
    given["cos"][5, 40] += 1
    reference()(*given.values())
    with pytest.raises(InputError, match="cos differs between channels"):
        reference()(*given.values(), check=True)
    given = inputs(SPEC, 1, 0)
    given["k"] = given["k"].clone()
    given["k"][0, 1, 3, 2] = torch.nan
    with pytest.raises(InputError, match=r"k holds NaN or infinity, first at \[0, 1, 3, 2\]"):
        reference()(*given.values(), check=True)


def test_a_gpu_that_is_not_here() -> None:
    """Source, configuration, cost and words; a call says that it cannot."""
    op = kdsl.build(SPEC, gpu="h100", mode="off")
    text = op.explain()
    for line in ("norm rms, rope half, order, k less its mean", "prepass_tiles, prepass_settle"):
        assert line in text
    assert "v to e4m3 by lanes" in text
    assert "read again" in text
    assert "def prepass_codes(" in op.source
    assert op.cost()["bytes"] > 0
    assert op.cost()["predicted_us"] > 0
    assert op.predicted.us > 3
    assert "0" in op.show(1)
    with pytest.raises(InputError, match="head=4"):
        op.show(4)
    if targets.get("h100").name != getattr(kdsl.runtime.builder.device_target(), "name", ""):
        with pytest.raises(UnsupportedError, match="not here"):
            op(*inputs(SPEC, 1, 0).values())


def test_what_build_refuses() -> None:
    """Other back ends, gradients, settings that are none, layouts that no kernel has."""
    with pytest.raises(UnsupportedError, match="no 'gluon' backend"):
        kdsl.build(SPEC, gpu="h100", backend="gluon")
    with pytest.raises(ConfigError, match="no backward"):
        kdsl.build(SPEC, gpu="h100", backward={"keys": {}})
    with pytest.raises(ConfigError, match="tile"):
        kdsl.build(SPEC, backend="reference", config={"tile": 3})
    whole = layouts.AttentionLayout(
        layouts.Layout("int8", (None, None)), layouts.Layout("int8", (64, None))
    )
    assert reference(replace(SPEC, layout=whole))(*inputs(SPEC, 1, 0).values())
    with pytest.raises(ConfigError, match="scales of q over all tokens"):
        kdsl.build(replace(SPEC, layout=whole), gpu="h100")
