"""Gradients: random specs and edges equal the reference.

In the interpreter here; `tests/kernels/attention/test_gpu_backward.py` runs the same on a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.grid import Grid
from kdsl.kernels.attention import launch as forward
from kdsl.kernels.attention.backward import launch
from kdsl.kernels.attention.backward.tunable import PARTS, BackwardTunable
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import build, codecache
from kdsl.runtime.attention import AttentionOperator
from kdsl.specs import Attention
from tests.devices import DEVICE, GPU
from tests.interpreter.calls import STRIDES, configs, tensors
from tests.interpreter.strategies import Case, cases
from tests.tolerance import expected_gradients

SMALL = {"block_m": 32, "block_n": 32, "num_warps": 4, "num_stages": 2}
LOADS = pytest.mark.parametrize("loads", ["pointer", "descriptor"])


def attention(tokens: int = 64, **fields: Any) -> Attention:
    """A small spec: one head of 64 channels in blocks of 32."""
    plain: dict[str, Any] = {"heads": 1, "head_dim": 64, "dtype": "float16", "block": (32, 32)}
    if "queries" not in fields:
        plain["tokens"] = tokens
    return Attention(**{**plain, **fields})


def operator(spec: Attention, loads: str = "pointer") -> AttentionOperator:
    """Forward and backward in small tiles."""
    config = {**SMALL, "loads": loads}
    parts = dict.fromkeys(PARTS, config)
    op = build(spec, gpu=GPU, backend="triton", config=config, backward=parts)
    assert isinstance(op, AttentionOperator)
    return op


def gradients(op: AttentionOperator, tensors: Any, dout: Any, dlse: Any = None, **call: Any) -> Any:
    """dQ, dK and dV of a call, through autograd."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = op(*leaves, **call)
    if op.spec.return_lse:
        given = ((out[0], dout), (out[1], dlse))
        outputs, grads = zip(*(pair for pair in given if pair[1] is not None), strict=True)
    else:
        outputs, grads = (out,), (dout,)
    return torch.autograd.grad(outputs, leaves, grads)


def inputs(spec: Attention, batch: int = 1, seed: int = 0) -> Any:
    """q, k, v, and a gradient of the output."""
    q, k, v = tensors(Case(spec, {}, batch, seed), "contiguous")
    generator = torch.Generator().manual_seed(seed + 1)
    return q, k, v, torch.randn(q.shape, generator=generator).to(DEVICE, q.dtype)


def check(case: Case, chosen: Mapping[str, Config], strides: str) -> None:
    """dQ, dK, dV are within the derived bound; the gradient of the log-sum-exp counts where the
    spec returns it."""
    spec = case.spec
    note(f"{spec!r}\n{chosen}\n{strides}")
    parts = {part: config.to_json() for part, config in chosen.items()}
    op = build(spec, gpu=GPU, backend="triton", backward=parts)
    q, k, v = tensors(case, strides)
    generator = torch.Generator().manual_seed(case.seed + 1)
    dout = torch.randn(q.shape, generator=generator).to(DEVICE, q.dtype)
    dlse = None
    if spec.return_lse:
        dlse = torch.randn(q.shape[:3], generator=generator).to(DEVICE)
    found = gradients(op, (q, k, v), dout, dlse, tables=case.tables)
    for gradient, x in zip(found, (q, k, v), strict=True):
        assert gradient.dtype == x.dtype
        assert gradient.shape == x.shape
    expected_gradients(spec, q, k, v, dout, case.tables, dlse=dlse).check(*found)


@settings(max_examples=settings.default.max_examples // 2)
@given(case=cases().filter(lambda case: not case.spec.stored), data=st.data())
def test_gradients_equal_the_reference(case: Case, data: Any) -> None:
    """Any mask, order, ragged size, grouping, head dimension, tile and strides."""
    tunable = AttentionTunable(case.spec)
    chosen = {p: data.draw(st.sampled_from(configs(BackwardTunable(tunable, p)))) for p in PARTS}
    check(case, chosen, data.draw(st.sampled_from(STRIDES)))


@LOADS
def test_rows_and_columns_without_a_pair(loads: str) -> None:
    """Queries that see nothing and keys that nobody sees have gradients of exactly 0, in kept
    blocks and in rows and columns without any; everything was written."""
    mask = masks.predicate(lambda q, k: (q >= 40) & (k < 50) & (k <= q))
    spec = attention(96, mask=mask, return_lse=True)
    q, k, v, dout = inputs(spec)
    dlse = torch.ones((1, 1, 96), device=DEVICE)
    found = gradients(operator(spec, loads), (q, k, v), dout, dlse)
    expected_gradients(spec, q, k, v, dout, dlse=dlse).check(*found)
    assert bool((found[0][0, 0, :40] == 0).all())
    assert bool((found[1][0, 0, 50:] == 0).all())
    assert bool((found[2][0, 0, 50:] == 0).all())


@pytest.mark.parametrize(
    ("queries", "keys", "batch"), [(0, 0, 1), (0, 40, 1), (40, 0, 1), (40, 33, 0)]
)
def test_empty_sequences(queries: int, keys: int, batch: int) -> None:
    """Without queries, keys or batch items gradients are empty or 0."""
    spec = attention(queries=queries, keys=keys, heads=2)
    q, k, v, dout = inputs(spec, batch)
    for gradient, x in zip(gradients(operator(spec), (q, k, v), dout), (q, k, v), strict=True):
        assert gradient.shape == x.shape
        assert bool((gradient == 0).all())


def test_one_token() -> None:
    """With one query and one key the output is the value: dV is dout, and dQ and dK are 0."""
    spec = attention(1, dtype="float32")
    q, k, v, dout = inputs(spec)
    dq, dk, dv = gradients(operator(spec), (q, k, v), dout)
    assert torch.allclose(dv, dout, rtol=1e-5)
    expected_gradients(spec, q, k, v, dout).check(dq, dk, dv)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where", ["q", "k", "v", "dout"])
@LOADS
def test_not_finite(where: str, loads: str) -> None:
    """NaN travels as in the reference, and no farther: through visited blocks alone, and never to
    dQ of a query that sees nothing."""
    near = masks.predicate(lambda q, k: (k // 32 == q // 32) | ((q // 32 == 1) & (k // 32 == 0)))
    spec = attention(110, mask=near & masks.predicate(lambda q, k: (k % 5 != 0) & (q != 70)))
    named = dict(zip(("q", "k", "v", "dout"), inputs(spec), strict=True))
    for token in (40, 70) if where in ("q", "dout") else (35, 41):
        named[where][0, 0, token, 7] = float("nan")
    *given, dout = named.values()
    found = gradients(operator(spec, loads), given, dout)
    wanted = expected_gradients(spec, *given, dout)
    assert any(np.isnan(x).any() for x in wanted.wanted)
    assert all(np.isfinite(x).any() for x in wanted.wanted)
    wanted.check(*found)
    assert bool((found[0][0, 0, 70] == 0).all())


def test_heads_of_a_group_with_different_orders() -> None:
    """Their tiles of keys hold different tokens: parts are summed afterwards, to the same bound."""
    grid = Grid(height=7, width=9, text=4)
    order = orders.per_head([orders.axes(grid, name) for name in ("HW", "WH", "HW", "HW")])
    spec = attention(queries=grid, keys=grid, heads=4, kv_heads=2, order=order,
                     mask=masks.window(grid, (3, 5)) | masks.text(grid))  # fmt: skip
    assert launch.summed(spec) == 1
    same = attention(queries=grid, keys=grid, heads=4, kv_heads=2, order=orders.axes(grid, "WH"))
    assert launch.summed(same) == 2
    q, k, v, dout = inputs(spec, batch=2)
    found = gradients(operator(spec), (q, k, v), dout)
    expected_gradients(spec, q, k, v, dout).check(*found)


def test_gradients_that_are_not_wanted() -> None:
    """Where only some inputs need a gradient the others get none, and the values are the same."""
    spec = attention(70, heads=2)
    op, (q, k, v, dout) = operator(spec), inputs(spec)
    whole = gradients(op, (q, k, v), dout)
    for i in range(3):
        leaves = [x.detach().requires_grad_(j == i) for j, x in enumerate((q, k, v))]
        (found,) = torch.autograd.grad(op(*leaves), leaves[i], dout)
        assert torch.equal(found, whole[i])


def test_gradients_in_odd_strides() -> None:
    """A gradient that was expanded, transposed or reversed in memory counts as its values do."""
    spec = attention(50, heads=2)
    op, (q, k, v, dout) = operator(spec, "descriptor"), inputs(spec)
    spread = torch.ones((1, 1, 1, 1), dtype=dout.dtype, device=DEVICE).expand(dout.shape)
    turned = dout.transpose(1, 2).contiguous().transpose(1, 2)
    for grad in (spread, turned):
        found = gradients(op, (q, k, v), grad)
        expected_gradients(spec, q, k, v, grad).check(*found)


def test_same_bits_every_time() -> None:
    """Gradients do not depend on what else ran, or how often."""
    spec = attention(100, heads=2, kv_heads=1, mask=masks.causal())
    op, (q, k, v, dout) = operator(spec), inputs(spec)
    first = gradients(op, (q, k, v), dout)
    for _ in range(3):
        assert all(map(torch.equal, first, gradients(op, (q, k, v), dout)))


def test_source_stands_alone(tmp_path: Path) -> None:
    """The generated file imports nothing of the house; the template computes dense gradients."""
    from kdsl.kernels.attention.backward import template

    spec = attention(40)
    op, (q, k, v, dout) = operator(spec), inputs(spec)
    assert "kdsl" not in op.backward_source
    path = tmp_path / "alone.py"
    path.write_text(op.backward_source)
    found = importlib.util.spec_from_file_location("alone", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    blocks, config = op.blocks(), Config(**SMALL)
    held, turned = forward.lists(blocks, 1, DEVICE), launch.inverted(blocks, spec, DEVICE)
    whole = attention(40, return_lse=True)
    out, lse = forward.launch(codecache.load(op.source), whole, config, held, (q, k, v))
    for one in (module, template):
        level, delta = launch.rows(one, spec, out, lse, dout)
        given = launch.Given(q, k, v, dout, level, delta)
        dk, dv = launch.key_outputs(spec, k, v)
        launch.keys_into(one, spec, config, turned, given, dk, dv)
        launch.queries_into(one, spec, config, held, given, dq := torch.empty_like(q))
        expected_gradients(spec, q, k, v, dout).check(dq, dk, dv)


def test_bound_notices_a_missing_pair() -> None:
    """The bound is tight enough to see one key too few among 130, in any gradient and dtype."""
    for dtype in ("float16", "float32"):
        spec = attention(130, dtype=dtype)
        q, k, v, dout = inputs(spec)
        right = expected_gradients(spec, q, k, v, dout)
        right.check(*right.wanted)
        fewer = attention(130, dtype=dtype, mask=masks.predicate(lambda k: k != 100))
        wrong = expected_gradients(fewer, q, k, v, dout).wanted
        for a, b, allowed in zip(wrong, right.wanted, right.errors, strict=True):
            beyond = np.abs(a - b) > allowed
            assert beyond[:, :, 100].any() or beyond.any(-1).mean() > 0.5
