"""Gradients' launches that are made again, on a made-up driver: what would the kernels read?"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from benchmarks import made_up
from kdsl import masks, orders
from kdsl.grid import Grid
from kdsl.kernels.attention import launch
from kdsl.kernels.attention.backward.launch import inverted
from kdsl.kernels.attention.backward.tunable import source
from kdsl.kernels.attention.config import Config
from kdsl.kernels.launching import direct
from kdsl.runtime import codecache
from kdsl.runtime.program import Program
from kdsl.specs import Attention
from tests.recording import Driver, addresses

GRID = Grid(frames=2, height=8, width=12)


@pytest.mark.parametrize("loads", ["pointer", "descriptor"])
@pytest.mark.parametrize("dlse", [True, False])
def test_gradients_launch_again(loads: Any, dlse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second backward of a kind launches its three kernels with its own tensors, gradients and
    lists, and none of the first one's; without a gradient of the log-sum-exp, and for keys alone,
    other ones."""
    order = orders.cubes(GRID, (2, 4, 4)) if loads == "pointer" else None
    spec = Attention(
        tokens=GRID, heads=4, kv_heads=2, head_dim=80, order=order, block=(64, 64),
        mask=masks.window(GRID, (3, 5, 5)),
    )  # fmt: skip
    driver = Driver()
    monkeypatch.setattr(direct, "driver", lambda: driver)
    config = Config(64, 64, 4, 2, loads)
    program = Program(spec, dict.fromkeys(("forward", "keys", "queries"), config))
    file = codecache.load(source(spec, "portable"))

    class Module:
        """The generated file on the made-up driver."""

        attention_backward_rows, attention_backward_keys, attention_backward_queries = (
            made_up.Kernel(getattr(file, f"attention_backward_{name}").arg_names, driver)
            for name in ("rows", "keys", "queries")
        )

    program._modules["backward", "portable"] = Module

    def call(wanted: tuple[bool, bool] = (True, True)) -> tuple[Any, list[Any]]:
        q, k, v = (torch.randn(2, h, GRID.tokens, 80).bfloat16() for h in (4, 2, 2))
        out, lse, do = q.clone(), torch.zeros(2, 4, GRID.tokens), q.clone()
        of_lse = lse.clone() if dlse else None
        blocks = spec.rows()
        lists = launch.lists(blocks, 4, "cpu").tensors + inverted(blocks, spec, "cpu").tensors
        tables = launch.table_tensors(spec, {}, "cpu")
        grads = program.backward((do, of_lse), (q, k, v), (out, lse), lists, tables, wanted)
        return (q, k, v, out, lse, do, of_lse, lists, tables, grads), driver.read

    first, read = call()
    assert not read
    (q, k, v, out, lse, do, of_lse, lists, tables, (dq, dk, dv)), read = call()
    assert len(read) == 3
    rows, queries, keys = (words for _, words in read)
    assert addresses(out, lse, do, *([of_lse] if dlse else [])) <= rows
    assert addresses(q, k, v, do, dq, *lists[:5], *tables) <= queries
    assert addresses(q, k, v, do, dk, dv, *lists[5:], *tables) <= keys
    old = addresses(*first[:6], *first[7], *first[8], *first[9])
    assert not old & (rows | queries | keys)
    read.clear()
    _, read = call((False, True))
    assert [number for number, _ in read] == [0, 2]
    assert not Module.attention_backward_keys.launches
