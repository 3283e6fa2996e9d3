"""Attention inside torch: autograd, torch.compile, fake tensors, the operations by themselves.

By the reference and by the kernels in the interpreter; on a GPU the same runs from
`tests/kernels/attention/test_gpu_backward.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kdsl import masks, orders
from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.attention.config import Config
from kdsl.reference.attention_backward import attention_backward
from kdsl.runtime import build, torch_ops
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.program import FORWARD, Program
from kdsl.specs import Attention, Permute
from tests.devices import DEVICE, GPU
from tests.tolerance import expected

GRID = Grid(height=4, width=5, text=3)
TILES = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 1, "loads": "pointer"}
BACKENDS = pytest.mark.parametrize("backend", ["reference", "triton"])
pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")


def attention(**fields: Any) -> Attention:
    """Two query heads on one key head, an order, and a mask that leaves blocks out."""
    plain: dict[str, Any] = {
        "tokens": GRID,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 64,
        "dtype": "float32",
        "mask": masks.window(GRID, (3, 3)) | masks.text(GRID),
        "order": orders.axes(GRID, "WH"),
        "block": (16, 16),
    }
    return Attention(**{**plain, **fields})


def operator(backend: str, spec: Attention | None = None) -> AttentionOperator:
    """The spec's kernels in the smallest tiles, or the reference."""
    spec = spec or attention()
    if backend == "reference":
        op = build(spec, backend=backend)
    else:
        parts = {"keys": TILES, "queries": TILES}
        op = build(spec, gpu=GPU, backend=backend, config=TILES, backward=parts)
    assert isinstance(op, AttentionOperator)
    return op


def leaves(spec: Attention, batch: int = 1) -> list[torch.Tensor]:
    """q, k, v that want gradients."""
    g = torch.Generator().manual_seed(batch)
    sizes = ((spec.heads, spec.query_grid.tokens), *[(spec.group_heads, spec.key_grid.tokens)] * 2)
    shapes = ((batch, heads, tokens, spec.head_dim) for heads, tokens in sizes)
    made = (torch.randn(s, generator=g).to(DEVICE, getattr(torch, spec.dtype)) for s in shapes)
    return [x.requires_grad_() for x in made]


def numbers(x: torch.Tensor) -> Any:
    """Values in float64."""
    return x.detach().double().cpu().numpy()


@BACKENDS
def test_gradients(backend: str) -> None:
    """Gradients through torch are those of the reference, also where a mean and another operation
    stand around the call, and where the log-sum-exp alone is used."""
    op = operator(backend, attention(return_lse=True))
    tensors = leaves(op.spec)
    dout, dlse = (torch.randn(s, device=DEVICE) for s in ((1, 2, 23, 64), (1, 2, 23)))
    for use in ((dout, dlse), (dout, None), (None, dlse)):
        out, lse = op(*tensors)
        value = sum((x * w).sum() for x, w in zip((out, lse), use, strict=True) if w is not None)
        assert isinstance(value, torch.Tensor)
        found = torch.autograd.grad(value, tensors)
        given = torch.zeros_like(dout) if use[0] is None else use[0]
        wanted = attention_backward(
            op.spec, *map(numbers, tensors), numbers(given),
            dlse=None if use[1] is None else numbers(use[1]),
        )  # fmt: skip
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(numbers(x), y, atol=2e-5)


@BACKENDS
def test_compiled(backend: str) -> None:
    """Without a graph break, with the same values as an eager call, forward and backward; a second
    batch size makes one more graph at most."""
    op = operator(backend)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(q: Any, k: Any, v: Any) -> Any:
        return op(q * 2, k, v).sin()

    for batch in (1, 2, 3):
        tensors = leaves(op.spec, batch)
        out, wanted = compiled(*tensors), op(tensors[0] * 2, *tensors[1:]).sin()
        assert torch.equal(out, wanted)
        found, eager = (torch.autograd.grad(x.sum(), tensors) for x in (out, wanted))
        assert all(map(torch.equal, found, eager))
    assert counter.frame_count <= 2


@BACKENDS
def test_graphs_of_operators_are_told_apart(backend: str) -> None:
    """Layers that are compiled one by one run the same code: each has its own mask's graph, and
    layers with equal masks share one; bound tables count too."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plan = attention(order=None, mask=masks.blocks("plan", block=(16, 16)))
    held = [operator(backend, plan).bind({"plan": np.full((2, 2, 2), n)}) for n in (0, 1)]
    made = (masks.causal(), masks.everything(), masks.causal())
    held += [operator(backend, attention(order=None, mask=mask)) for mask in made]
    tensors = [x.detach() for x in leaves(plan)]

    class Layer(torch.nn.Module):
        def __init__(self, op: Any) -> None:
            super().__init__()
            self.op = op

        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return self.op(q, k, v)

    for op in held:
        found = torch.compile(Layer(op), fullgraph=True, backend=counter)(*tensors)
        assert torch.equal(found, op(*tensors))
    assert counter.frame_count == 4


def test_compiled_with_a_mask_for_each_batch_item() -> None:
    """Where lists differ by batch item each batch size has its graph, and each its own lists."""
    table = Table("doc", (3, 23), "uint8", 0, 3)
    spec = attention(order=None, mask=masks.same(table))
    doc = np.sort(np.random.default_rng(0).integers(0, 4, (3, 23)), axis=1).astype(np.uint8)
    op = operator("reference", spec).bind({"doc": doc})
    assert op.by_batch
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for batch in (3, 1, 2):
        tensors = leaves(spec, batch)
        out = compiled(*tensors)
        assert torch.equal(out, op(*tensors))
        torch.autograd.grad(out.sum(), tensors)


@BACKENDS
def test_compiled_without_gradients(backend: str) -> None:
    """Inference compiles too, with tables that were bound before, and takes no backward along."""
    spec = attention(order=None, mask=masks.same(Table("doc", 23, "uint8", 0, 3)))
    doc = np.repeat([0, 1, 2], [5, 11, 7]).astype(np.uint8)
    op = operator(backend, spec).bind({"doc": doc})
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    q, k, v = (x.detach() for x in leaves(spec))
    with torch.no_grad():
        assert torch.equal(compiled(q, k, v), op(q, k, v))
    assert list(op.programs) == [False]


def test_compiled_with_tables_of_the_call() -> None:
    """They are read on the host: between two graphs, or an error that says to bind them."""
    spec = attention(order=None, mask=masks.same(Table("doc", 23, "uint8", 0, 3)))
    op, tensors = operator("reference", spec), [x.detach() for x in leaves(spec)]
    doc = torch.zeros(23, dtype=torch.uint8)

    def call(q: Any, k: Any, v: Any) -> Any:
        return op(q, k, v, tables={"doc": doc})

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"op\.bind"):
        torch.compile(call, fullgraph=True, backend="eager")(*tensors)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(call, backend="eager")(*tensors), call(*tensors))


@BACKENDS
def test_the_operations_keep_torchs_rules(backend: str) -> None:
    """Schema, fake tensors, autograd and tracing with dynamic shapes: `torch.library.opcheck`."""
    op = operator(backend)
    tensors = leaves(op.spec)
    operands = op.operands(None, 1, tensors[0].device, True)
    torch.library.opcheck(torch.ops.kdsl.attention, (*tensors, *operands))
    plain = [x.detach() for x in tensors]
    out, lse = torch.ops.kdsl.attention(*plain, *operands)
    for wanted in ((True, True), (True, False), (False, True)):
        for dlse in (None, torch.ones_like(lse)):
            torch.library.opcheck(
                torch.ops.kdsl.attention_backward,
                (torch.ones_like(out), dlse, *plain, out, lse, *operands, *wanted),
            )


def test_a_program_takes_another_template_where_no_descriptor_fits() -> None:
    """Tensors that the chosen template cannot fetch go to the portable one, compiled or not."""
    op = build(attention(dtype="float16", block=(64, 64)), gpu=GPU, backend="triton")
    assert isinstance(op, AttentionOperator)
    q, k, v = (x.detach() for x in leaves(op.spec))
    odd = torch.zeros(k.numel() + 1, dtype=k.dtype, device=DEVICE)[1:].view(k.shape).copy_(k)
    hopper = Config(64, 64, 4, 2, loads="descriptor", template="hopper")
    configs = {**op.program(True).configs, FORWARD: hopper}
    lists, tables, _ = op.operands(None, 1, q.device, True)
    out, lse = Program(op.spec, configs).forward((q, odd, v), lists, tables)
    expected(op.spec, q, odd, v, block_n=64).check(out, lse)


def test_fake_tensors() -> None:
    """A call on tensors without memory gives shapes, types and strides, and launches nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = operator("triton", attention(return_lse=True))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        q, k, v = (mode.from_tensor(x.detach()) for x in leaves(op.spec, 2))
        out, lse = op(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    assert (out.shape, out.dtype, out.is_contiguous()) == (q.shape, q.dtype, True)
    assert (lse.shape, lse.dtype) == (q.shape[:3], torch.float32)
    # What the first call made and kept is real.
    tensors = leaves(op.spec)
    out, lse = op(*tensors)
    torch.autograd.grad(out.sum() + lse.sum(), tensors)
    with torch.no_grad():
        assert torch.equal(op(*tensors)[0], out)


def test_a_call_without_gradients_is_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager calls that nothing is differentiated of do not pass through torch's dispatcher."""
    op = operator("triton")
    tensors = leaves(op.spec)

    def not_here(*given: Any) -> Any:
        raise AssertionError("through torch.ops")

    monkeypatch.setattr(torch_ops, "attention", not_here)
    with torch.no_grad():
        op(*tensors)
    op(*(x.detach() for x in tensors))
    with pytest.raises(AssertionError, match=r"through torch\.ops"):
        op(*tensors)


def test_second_derivatives_are_refused() -> None:
    """Asking for a derivative of a gradient is an error that says so, not a wrong number."""
    op = operator("reference")
    tensors = leaves(op.spec)
    (first,) = torch.autograd.grad(op(*tensors).sin().sum(), tensors[0], create_graph=True)
    with pytest.raises(UnsupportedError, match="no second derivative"):
        first.sum().backward()


def test_programs_by_name() -> None:
    """A program is made again of its name; one that only its maker has the values of is refused;
    many others do not pile up."""
    op = operator("triton")
    q, k, v = tensors = [x.detach() for x in leaves(op.spec)]
    lists, tables, name = op.operands(None, 1, q.device, True)
    again = Program.from_name(name)
    assert again.name == name
    assert again.source == op.backward_source
    out, lse = again.forward((q, k, v), lists, tables)
    assert torch.equal(out, op(*tensors))
    assert bool(lse.isfinite().all())
    own = Program(attention(order=None, mask=masks.same(np.zeros(23, np.int32))), {})
    with pytest.raises(InputError, match="does not know the values"):
        Program.from_name(own.name)
    for n in range(1, torch_ops.KEPT + 20):
        torch_ops.remember(Program(attention(scale=float(n)), {}))
    assert len(torch_ops._kept) == torch_ops.KEPT
    assert torch_ops.program_named(name) is op.programs[True]


def test_unknown_backward_kernels_are_refused() -> None:
    """A configuration for a kernel that is not there is an error, not silently left aside."""
    with pytest.raises(ConfigError, match="no backward kernel 'dq'"):
        build(attention(), backend="reference", backward={"dq": TILES})
    spec = Permute(tokens=GRID, heads=1, head_dim=64, order=orders.axes(GRID, "WH"))
    with pytest.raises(ConfigError, match="no backward"):
        build(spec, backend="reference", backward={"keys": TILES})


def test_a_small_model_learns() -> None:
    """Without a GPU the reference differentiates too: a few steps bring the loss down."""
    torch.manual_seed(0)
    op = operator("reference", attention(kv_heads=2))
    width = 128
    project, out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
    x, goal = torch.randn(2, 23, width), torch.randn(2, 23, width)
    optimizer = torch.optim.Adam([*project.parameters(), *out.parameters()], lr=3e-3)
    losses = []
    for _ in range(8):
        q, k, v = project(x).unflatten(2, (3, 2, 64)).permute(2, 0, 3, 1, 4)
        loss = (out(op(q, k, v).transpose(1, 2).flatten(2)) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
