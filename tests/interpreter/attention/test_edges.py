"""Attention at its edges: nothing to see, nothing there, NaN and infinity.

In the interpreter here; `tests/kernels/attention/test_gpu.py` runs the same on a GPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdsl import masks, orders
from kdsl.errors import InputError
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.attention import launch
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.fallback import fitting
from kdsl.runtime import build
from kdsl.runtime.attention import AttentionOperator
from kdsl.specs import Attention, as_array
from tests.devices import DEVICE, GPU
from tests.tolerance import expected

CONFIG = {"block_m": 32, "block_n": 32, "num_warps": 4, "num_stages": 2}
LOADS = pytest.mark.parametrize("loads", ["pointer", "descriptor"])
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def operator(spec: Attention, loads: str = "pointer", **settings: Any) -> AttentionOperator:
    """The spec's kernel in small tiles."""
    config = {**CONFIG, **settings, "loads": loads}
    op = build(spec, gpu=GPU, backend="triton", config=config)
    assert isinstance(op, AttentionOperator)
    return op


def inputs(spec: Attention, batch: int = 1, seed: int = 0) -> Tensors:
    """Gaussian q, k, v."""
    generator = torch.Generator().manual_seed(seed)

    def made(heads: int, tokens: int) -> torch.Tensor:
        x = torch.randn((batch, heads, tokens, spec.head_dim), generator=generator)
        return x.to(DEVICE, getattr(torch, spec.dtype))

    keys = (spec.group_heads, spec.key_grid.tokens)
    return made(spec.heads, spec.query_grid.tokens), made(*keys), made(*keys)


def attention(tokens: int = 64, **fields: Any) -> Attention:
    """A small spec: one head of 64 channels, blocks of 32, the log-sum-exp too."""
    plain: dict[str, Any] = {"heads": 1, "head_dim": 64, "dtype": "float16", "block": (32, 32)}
    if "queries" not in fields:
        plain["tokens"] = tokens
    return Attention(**{**plain, "return_lse": True, **fields})


@LOADS
def test_rows_that_see_nothing(loads: str) -> None:
    """They give exactly 0 and minus infinity: in kept blocks, and in rows of blocks without any."""
    spec = attention(96, mask=masks.causal(-40))
    out, lse = operator(spec, loads)(*(tensors := inputs(spec)))
    assert bool((out[0, 0, :40] == 0).all())
    assert bool(lse[0, 0, :40].isneginf().all())
    assert bool(lse[0, 0, 40:].isfinite().all())
    expected(spec, *tensors, block_n=32).check(out, lse)


def test_nothing_at_all() -> None:
    """A mask without a pair writes every output all the same."""
    spec = attention(70, heads=2, mask=masks.nothing())
    out, lse = operator(spec)(*inputs(spec, batch=2))
    assert bool((out == 0).all())
    assert bool(lse.isneginf().all())


@pytest.mark.parametrize(
    ("queries", "keys", "batch"), [(0, 0, 1), (0, 40, 1), (40, 0, 1), (40, 33, 0)]
)
def test_empty_sequences(queries: int, keys: int, batch: int) -> None:
    """Without queries, keys or batch items the result is empty, or all zeros and minus infinity."""
    spec = attention(queries=queries, keys=keys, heads=2)
    out, lse = operator(spec)(*(tensors := inputs(spec, batch)))
    assert out.shape == (batch, 2, queries, 64)
    assert lse.shape == (batch, 2, queries)
    assert bool((out == 0).all())
    assert bool(lse.isneginf().all())
    expected(spec, *tensors).check(out, lse)


@pytest.mark.parametrize(
    ("loads", "dtype"),
    [("pointer", "float16"), ("descriptor", "float16"), ("pointer", "float32")],
)
def test_one_token(loads: str, dtype: str) -> None:
    """One query and one key: the output is the value itself, the log-sum-exp the score."""
    spec = attention(1, dtype=dtype)
    q, k, v = inputs(spec)
    out, lse = operator(spec, loads)(q, k, v)
    assert torch.equal(out, v)
    score = float((q.double() * k.double()).sum() * spec.softmax_scale)
    assert abs(float(lse) - score) < 1e-5


def test_a_row_of_minus_infinities_and_scores_that_grow() -> None:
    """Maxima that rise with every tile, and tiles hidden before anything was seen."""
    spec = attention(160, mask=masks.predicate(lambda q, k: (k >= 64) & (k <= q + 64)))
    q, k, v = inputs(spec)
    k = k * torch.linspace(0.1, 6, 160)[:, None].to(k)
    out, lse = operator(spec)(q, k, v)
    expected(spec, q, k, v, block_n=32).check(out, lse)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@LOADS
def test_not_finite(where: str, value: float, loads: str) -> None:
    """NaN and infinity travel as in the reference, and no farther.

    A key that its block of queries never sees is not read; a bad value in a visited block reaches
    every query of the block that sees anything; a row that sees nothing stays 0.
    """
    mask = masks.predicate(lambda q, k: (k // 32 <= q // 32) & (k % 5 != 0) & (q != 3))
    spec = attention(96, mask=mask)
    q, k, v = inputs(spec)
    tensors = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
    # Tokens 35 (hidden from all) and 41 (seen) of the second block, tokens 3 (a row that sees
    # nothing) and 70 among the queries.
    for token in (3, 70) if where == "q" else (35, 41):
        tensors[where][0, 0, token, 7] = value
    bad = tuple(tensors.values())
    out, lse = operator(spec, loads)(*bad)
    wanted = expected(spec, *bad, block_n=32)
    assert not np.isfinite(wanted.out).all()
    wanted.check(out, lse)
    first = as_array(out[0, 0, :32])
    if where != "q":
        assert np.isfinite(first).all(), "the first block of queries never visits the second"
    assert bool((out[0, 0, 3] == 0).all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_check_raises_on_what_is_not_finite() -> None:
    """``check=True`` names the tensor and the place, also of an overflow inside."""
    spec = attention(40, return_lse=False)
    op = operator(spec)
    q, k, v = inputs(spec)
    assert bool(op(q, k, v, check=True).isfinite().all())
    bad = k.clone()
    bad[0, 0, 5, 2] = float("nan")
    with pytest.raises(InputError, match=r"k holds NaN or infinity, first at \[0, 0, 5, 2\]"):
        op(q, bad, v, check=True)
    single = operator(attention(40, return_lse=False, dtype="float32", scale=1e30))
    huge = torch.full((1, 1, 40, 64), 1e10, device=DEVICE)
    with pytest.raises(InputError, match="the output holds NaN or infinity"):
        single(huge, huge, huge, check=True)


@LOADS
def test_given_outputs(loads: str) -> None:
    """Outputs that the caller gives are filled to the last element, and nothing around them."""
    spec = attention(70, heads=2)
    op = operator(spec, loads)
    q, k, v = inputs(spec, batch=2)
    around = torch.full((2, 72, 2, 64), 7.0, dtype=torch.float16, device=DEVICE)
    out = around[:, 1:71].transpose(1, 2)
    out.fill_(float("nan"))
    lse = torch.full((2, 2, 70), float("nan"), device=DEVICE)
    lists, tables = op._bound_for(None, 2).upload(q.device)
    config = Config.from_json(dict(op.config))
    launch.launch(op.module("portable"), spec, config, lists, (q, k, v), tables, out=out, lse=lse)
    expected(spec, q, k, v, block_n=32).check(out, lse)
    assert bool((around[:, 0] == 7).all())
    assert bool((around[:, 71] == 7).all())


def test_tensors_that_no_descriptor_describes() -> None:
    """Odd strides, reversed batches and expanded heads fall back to pointers: the same result."""
    spec = attention(50, heads=2, kv_heads=2)
    op = operator(spec, "descriptor")
    q, k, v = inputs(spec, batch=2)
    odd = torch.zeros((2, 2, 50, 67), dtype=q.dtype, device=DEVICE)[..., 2:66].copy_(q)
    spread = k[:, :1].expand(-1, 2, -1, -1)
    for tensors, loads in (
        ((odd, k, v), "pointer"), ((q, spread, v), "pointer"), ((q, k, v), "descriptor")
    ):  # fmt: skip
        config = Config.from_json(dict(op.config))
        assert fitting(config, tensors, op.tunable.legal).loads == loads
    out, lse = op(odd, spread, v)
    expected(spec, q, spread, v, block_n=32).check(out, lse)


def test_bound_tables_and_tables_of_the_call() -> None:
    """A table bound before, given with the call, or given anew after a bind counts as it says."""
    spec = attention(64, mask=masks.same(Table("doc", 64, "uint8", 0, 3)))
    op = operator(spec)
    q, k, v = inputs(spec)
    one, two = np.zeros(64, np.uint8), np.repeat([0, 1], 32).astype(np.uint8)
    wanted = {name: expected(spec, q, k, v, {"doc": t}) for name, t in (("1", one), ("2", two))}
    bound = op.bind({"doc": one})
    wanted["1"].check(*bound(q, k, v))
    wanted["2"].check(*op(q, k, v, tables={"doc": two}))
    wanted["2"].check(*bound(q, k, v, tables={"doc": torch.from_numpy(two)}))
    wanted["1"].check(*bound(q, k, v))


@pytest.mark.parametrize("made", ["list", "inverse", "outer", "inner", "undone", "heads"])
def test_orders_that_come_with_the_call(made: str) -> None:
    """A list given with the call is an order, and so is what is made of it."""
    grid = Grid(height=9, width=7, text=3)
    listed = orders.table(Table("sequence", grid.tokens), grid)
    axes, known = orders.axes(grid, "WH"), orders.table(np.roll(np.arange(66), 5), grid)
    order = {
        "list": listed,
        "inverse": ~listed,
        "outer": listed @ axes,
        "inner": known @ listed,
        "undone": axes @ ~listed,
        "heads": orders.per_head([listed, ~listed]),
    }[made]
    spec = attention(queries=grid, keys=grid, heads=2, order=order, mask=masks.window(grid, (5, 3)))
    q, k, v = inputs(spec)
    tables = {"sequence": np.random.default_rng(4).permutation(grid.tokens)}
    expected(spec, q, k, v, tables).check(*operator(spec)(q, k, v, tables=tables))


def test_block_rows_as_a_table() -> None:
    """A block map comes as a boolean map or as rows of blocks."""
    grid = Grid(height=8, width=12)
    order = orders.axes(grid, "WH")
    mask = masks.blocks("plan", order=order, block=(32, 32))
    spec = attention(queries=grid, keys=grid, heads=2, mask=mask, order=order)
    op = operator(spec)
    q, k, v = inputs(spec)
    kept = np.random.default_rng(1).random((2, 3, 3)) < 0.5
    rows = op.blocks({"plan": kept})
    wanted = expected(spec, q, k, v, {"plan": kept.astype(np.uint8)})
    wanted.check(*op(q, k, v, tables={"plan": kept}))
    wanted.check(*op(q, k, v, tables={"plan": rows}))


def test_source_stands_alone(tmp_path: Path) -> None:
    """The generated file imports nothing of the house and runs from any place."""
    spec = attention(40, mask=masks.causal())
    op = operator(spec)
    assert "kdsl" not in op.source
    path = tmp_path / "alone.py"
    path.write_text(op.source)
    found = importlib.util.spec_from_file_location("alone", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    q, k, v = inputs(spec)
    lists, tables = op._bound_for(None, 1).upload(q.device)
    out, lse = launch.launch(module, spec, Config(**CONFIG), lists, (q, k, v), tables)
    expected(spec, q, k, v, block_n=32).check(out, lse)


def test_template_stands_alone() -> None:
    """The template itself, with identity leaves, computes dense attention."""
    from kdsl.kernels.attention import forward

    spec = attention(70)
    op = operator(spec)
    q, k, v = inputs(spec)
    lists, _ = op._bound_for(None, 1).upload(q.device)
    out, lse = launch.launch(forward, spec, Config(**CONFIG), lists, (q, k, v))
    expected(spec, q, k, v, block_n=32).check(out, lse)
