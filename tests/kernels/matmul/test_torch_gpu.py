"""Quantize and Matmul as torch operations on a GPU: the interpreter's suite, inductor, graphs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import kdsl
from kdsl import layouts, nn
from kdsl.layouts import Outline
from kdsl.nn.fitting import fit
from kdsl.runtime import build
from kdsl.specs import Quantize
from tests.devices import DEVICE, no_synchronisation
from tests.interpreter.products.test_linear import *  # noqa: F403
from tests.interpreter.products.test_torch import *  # noqa: F403
from tests.matrices import operands, spec_of
from tests.quantizing import inputs, values

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
    pytest.mark.filterwarnings("ignore:no CUDA GPU here"),
]
TURN = Outline((("signs", 0), ("hadamard", 128)))


def layer(code: str) -> tuple[Any, Any]:
    """A rotation with codes and a product, bound, in bfloat16; and an input."""
    spec = spec_of(code, rows=300, inner=512, columns=256, dtype="bfloat16", bias=True,
                   activation="gelu_tanh")  # fmt: skip
    coded = Quantize(
        rows=300, columns=512, format=layouts.activations(code), recipe=TURN, dtype="bfloat16"
    )
    given = {n: torch.from_numpy(v).cuda() for n, v in operands(spec).items()}
    given["bias"] = given["bias"].bfloat16()
    turn = build(coded, tables=values(coded))
    op = build(spec, tables={n: t for n, t in given.items() if n.startswith(("weight", "bias"))})
    return (lambda x: op(*turn(x))), inputs(coded, None, 0, "cuda")[0]


@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_inductor(code: str) -> None:
    """Compiled by inductor without a graph break, also into CUDA graphs: eager bits."""
    run, x = layer(code)
    wanted = run(x)
    for mode in ("default", "reduce-overhead"):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: run(x) + 1, fullgraph=True, mode=mode)
        for _ in range(3):
            found = compiled(x)
        assert torch.equal(found, wanted + 1), mode


def test_graphs() -> None:
    """The operations captured in a CUDA graph, replayed on other numbers, without waiting."""
    run, x = layer("int8")
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    compiled(x)
    torch.cuda.synchronize()
    with no_synchronisation():
        compiled(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compiled(x)
    x.copy_(x.flip(0).clone())
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, run(x))


@pytest.mark.parametrize("fmt", [layouts.slog(4), layouts.slog(3), layouts.w8()])
def test_weights_are_fitted_on_the_device(fmt: Any) -> None:
    """The patterns that NumPy finds, bit for bit."""
    w = torch.randn(70, 256, generator=torch.Generator().manual_seed(0))
    w[::7, :128] = 0
    found, wanted = fit(fmt, w.cuda()), layouts.quantize(fmt, w.numpy())
    for name, patterns in wanted.items():
        np.testing.assert_array_equal(found[name], patterns)


@pytest.mark.parametrize("scheme", [nn.w8a8(), nn.w8a8("fp8"), nn.w4a8(4), nn.w4a8(3, "fp8")])
def test_a_model_on_the_device(scheme: Any) -> None:
    """Quantized where it is, compiled whole without a break into CUDA graphs, near the model; its
    plan gives the same bits."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 512), torch.nn.Linear(512, 256)]
    model = torch.nn.Sequential(*layers).to("cuda", torch.bfloat16)
    batches = [torch.randn(2, 70, 256, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    exact = model(batches[0]).float()
    fresh = copy.deepcopy(model)
    plan = kdsl.quantize(model, scheme, batches, progress=False)
    with torch.no_grad():
        eager = model(batches[0])
        # Random weights pass errors on as they pass on numbers: those of both layers add up.
        errors = sum(layer.report["output_error"] for layer in plan.layers.values())
        assert (eager.float() - exact).norm() < 1.5 * errors * exact.norm()
        torch._dynamo.reset()
        run = torch.compile(model, fullgraph=True, mode="reduce-overhead")
        for _ in range(3):
            found = run(batches[0]).clone()
        assert torch.equal(found, eager)
        assert torch.equal(nn.apply(plan, fresh)(batches[0]), eager)
        for count in (1, 3, 8, 33):
            x = torch.randn(count, 256, device="cuda", dtype=torch.bfloat16)
            assert torch.isfinite(model(x)).all()
