"""Products of 16-bit x with stored weights on a GPU: both templates, graphs, the layer itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdsl
from kdsl.kernels.matmul.weight_only import stream
from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.rule import problem
from kdsl.kernels.matmul.weight_only.runner import WeightOnlyRunner
from kdsl.kernels.matmul.weight_only.tunable import WeightOnlyTunable
from kdsl.runtime import codecache
from kdsl.runtime.builder import device_target
from kdsl.specs import Matmul
from tests.devices import DEVICE, examples, no_synchronisation, poisoned_memory
from tests.interpreter.matmul.test_weight_only import *  # noqa: F403
from tests.matrices import KINDS, check_weight_only, few_bits, weight_only, weight_only_operands

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    with poisoned_memory():
        yield


def moved(spec: Matmul, held: dict[str, Any]) -> list[Any]:
    """Operands on the GPU, in order."""
    return [
        torch.from_numpy(np.ascontiguousarray(held[n])).to("cuda", getattr(torch, dtype))
        for n, (_, dtype) in spec.operands.items()
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@settings(max_examples=examples(20), deadline=None)
@given(spec=weight_only(("float16",), (128, 256)), seed=st.integers(0, 99))
def test_any_product_of_few_rows(dtype: str, spec: Matmul, seed: int) -> None:
    """Kinds of codes, ragged sizes, epilogues: within the bound, and twice the same bits."""
    spec = replace(spec, dtype=dtype, rows=min(spec.rows, 32))
    held = weight_only_operands(spec, seed)
    op = kdsl.build(spec, backend="cuda", mode="off")
    tensors = moved(spec, held)
    first = op(*tensors)
    check_weight_only(spec, first, held)
    assert torch.equal(op(*tensors), first)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 8, 16, 32])
def test_the_layer_in_both_templates(rows: int, kind: str, bits: int) -> None:
    """The benchmark's layer and its transpose, both kinds of inputs, defaults."""
    target = device_target()
    assert target is not None
    for inner, columns in ((3584, 18944), (18944, 3584)):
        spec = Matmul(rows=rows, inner=inner, columns=columns, weight=few_bits(kind, bits))
        for template in ("stream", "portable"):
            tunable = WeightOnlyTunable(spec, (template,))
            one = WeightOnlyRunner(tunable, "cuda", codecache.load)
            for family in one.families:
                one.prepare(family, 0)
                one.poison()
                one.run(tunable.default(target))
                assert one.check().right, (template, family, one.check())


@pytest.mark.parametrize("rows", [1, 20])
def test_settings_of_the_stream_template(rows: int) -> None:
    """Clusters, shared x, tables, depth: every legal one of a few dozen is right."""
    target = device_target()
    assert target is not None
    spec = Matmul(rows=rows, inner=2048, columns=1000, weight=few_bits("signed", 4), bias=True)
    one = WeightOnlyRunner(WeightOnlyTunable(spec), "cuda", codecache.load)
    one.prepare("random", 1)
    tried = 0
    for split in (1, 2, 4, 8):
        for warps, block_n, stages in ((4, 16, 2), (8, 16, 1), (2 + 2, 32, 1), (16, 16, 3)):
            for hold, table in ((0, 0), (1, 0), (0, 1)):
                padded = stream.rows_padded(spec)
                config = Config(
                    "stream", padded, block_n, 128, warps, stages, 1, split, hold, 1, table
                )
                if problem(spec, config, target) is None:
                    one.poison()
                    one.run(config.to_json())
                    assert one.check().right, (config, one.check())
                    tried += 1
    assert tried > 3


def test_in_a_graph_without_waiting() -> None:
    """Captured after a first call; a replay reads what stands in the operands then."""
    spec = Matmul(rows=4, inner=512, columns=300, weight=few_bits("zeros", 4))
    op = kdsl.build(spec, mode="off")
    tensors = moved(spec, weight_only_operands(spec))
    op(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(*tensors)
    tensors[0].mul_(2)
    with no_synchronisation():
        graph.replay()
        again = op(*tensors)
    assert torch.equal(out, again)
