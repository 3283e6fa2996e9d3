"""Calls whose tables are tensors on the device: nothing passes through the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kdsl import masks, orders
from kdsl.errors import InputError
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.lists import call
from kdsl.masks import Mask
from kdsl.runtime import bound
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.torch_ops import operands_of
from kdsl.specs import Attention
from tests.devices import DEVICE, poisoned_memory
from tests.interpreter.attention.test_torch import attention, leaves, operator

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")
GRID = Grid(height=4, width=5, text=3)
PLAN = masks.blocks("plan", block=(16, 16))
DOC = Table("doc", 23, "uint8", 0, 3)
DOCS = Table("docs", (3, 23), "uint8", 0, 3)
ORDER = orders.axes(GRID, "WH")

CASES: dict[str, tuple[Mask, Any]] = {
    "map": (PLAN, None),
    "map in an order": (masks.blocks("plan", order=ORDER, block=(16, 16)), ORDER),
    "map and leaf": (PLAN & masks.causal() | masks.text(GRID), None),
    "shared map": (masks.blocks("plan", block=(16, 16), shared=True), None),
    "documents": (masks.same(DOC), ORDER),
    "documents by item": (masks.same(DOCS) & masks.causal(), None),
    "one head of documents": (masks.per_head([masks.same(DOC), masks.causal()]), None),
    "orders by head": (masks.same(DOC), [ORDER, orders.axes(GRID, "HW")]),
    "tree": (masks.tree(Table("first", 23, "int32", 0, 23), Table("last", 23, "int32", 0, 23)),
             None),
    "order of the call": (masks.causal(), orders.table(Table("order", 23))),
}  # fmt: skip


def values(spec: Attention, seed: int) -> dict[str, torch.Tensor]:
    """Values of the open tables, in various dtypes."""
    rng = np.random.default_rng(seed)
    out = {}
    for t in spec.open_tables:
        if t.name == "order":
            made: Any = rng.permutation(23)
        elif t.name == "plan":
            made = rng.random(t.shape) < 0.6
        else:
            made = np.sort(rng.integers(t.low, t.high + 1, t.shape), axis=-1)
        out[t.name] = torch.from_numpy(np.ascontiguousarray(made)).to(DEVICE)
    return out


def on_host(tables: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same as arrays."""
    return {n: x.cpu().numpy() for n, x in tables.items()}


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of blocks made on the host are an error."""

    def not_here(*given: Any, **named: Any) -> Any:
        raise AssertionError("the host made rows")

    monkeypatch.setattr(bound.Bound, "upload", not_here)
    monkeypatch.setattr(bound.Bound, "operands", not_here)


def spec_of(name: str, **fields: Any) -> Attention:
    """A spec of two heads with the case's mask and order."""
    mask, order = CASES[name]
    return attention(mask=mask, order=order, **fields)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_host")
def test_calls_equal_the_reference(name: str) -> None:
    """Output and gradients with two sets of values, changed from one call to the next."""
    op = operator("triton", spec_of(name))
    tensors = leaves(op.spec, 2)
    plain = [x.detach() for x in tensors]
    for seed in (0, 1):
        tables = values(op.spec, seed)
        assert op.reads_on_device(tables, plain[0].device)
        wanted = op.reference(*plain, tables=on_host(tables))
        # The second time as a known kind of call.
        np.testing.assert_allclose(op(*plain, tables=tables).cpu(), wanted, atol=1e-5)
        if seed == 0:
            continue
        found = torch.autograd.grad(op(*tensors, tables=tables).sin().sum(), tensors)
        truth = operator("reference", op.spec)
        on_cpu = [x.detach().cpu().requires_grad_() for x in tensors]
        on_tables = {n: x.cpu() for n, x in tables.items()}
        grads = torch.autograd.grad(truth(*on_cpu, tables=on_tables).sin().sum(), on_cpu)
        for x, y in zip(found, grads, strict=True):
            np.testing.assert_allclose(x.cpu(), y, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_lists_are_the_hosts(name: str) -> None:
    """Blocks sorted by the kernel are those that the interval reader finds, forward and inverted,
    and fake tensors have the shapes of the real ones."""
    op = operator("triton", spec_of(name))
    tables = values(op.spec, 3)
    batch = 2 if op.by_batch else 1
    device = next(iter(tables.values())).device
    held = operands_of(op.on_device.sources(tuple(tables), device), tables)
    made = op.program(True).lists(held, batch, True)
    blocks = op.blocks(on_host(tables), batch)
    ragged = np.zeros((*blocks.start.shape, blocks.columns), bool)
    ragged[..., -1] = True  # 23 tokens in blocks of 16
    for number, rows in enumerate((blocks, blocks.transpose())):
        start, full, partial, index = (x.cpu().numpy() for x in made[5 * number : 5 * number + 4])
        shape = np.broadcast_shapes(start.shape, rows.start.shape)
        whole, part = rows.kept(partial=False), rows.kept(full=False)
        whole, part = whole & ~ragged, part | (whole & ragged)
        for at in np.ndindex(shape):
            mine = tuple(i if n > 1 else 0 for i, n in zip(at, start.shape, strict=True))
            their = tuple(i if n > 1 else 0 for i, n in zip(at, whole.shape, strict=False))
            first, middle = start[mine], start[mine] + full[mine]
            assert index[first:middle].tolist() == np.nonzero(whole[their])[0].tolist()
            found = sorted(index[middle : middle + partial[mine]].tolist())
            assert found == np.nonzero(part[their])[0].tolist()
    fake = call.empty(op.spec, device, batch, True)
    assert [x.shape for x in fake] == [x.shape for x in made]


@pytest.mark.parametrize("name", ["map", "documents by item"])
@pytest.mark.usefixtures("no_host")
def test_compiled_with_tables_of_the_call(name: str) -> None:
    """One graph without a break serves every value of the tables, gradients included."""
    op = operator("triton", spec_of(name))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(q: Any, k: Any, v: Any, tables: Any) -> Any:
        return op(q * 2, k, v, tables=tables).sin()

    tensors = leaves(op.spec, 2)
    for seed in (0, 1):
        tables = values(op.spec, seed)
        out = compiled(*tensors, tables)
        wanted = op(tensors[0] * 2, *tensors[1:], tables=tables).sin()
        assert torch.equal(out, wanted)
        found, eager = (torch.autograd.grad(x.sum(), tensors) for x in (out, wanted))
        assert all(map(torch.equal, found, eager))
    assert counter.frame_count == 1
    sources = op.on_device.sources(tuple(tables), tensors[0].device)
    operands = (operands_of(sources, tables), op.program(True).name, 2, True)
    with poisoned_memory():  # what no list reaches is nobody's to write
        torch.library.opcheck(torch.ops.kdsl.attention_lists, operands)


@pytest.mark.usefixtures("no_host")
def test_bound_tables_beside_those_of_the_call() -> None:
    """One table bound on the host, the other a tensor of the call; the call's wins over a bound."""
    spec = attention(mask=PLAN & masks.same(DOC), order=None)
    op = operator("triton", spec)
    assert isinstance(op, AttentionOperator)
    q, k, v = (x.detach() for x in leaves(spec))
    tables, other = values(spec, 0), values(spec, 1)
    held = op.bind({"doc": on_host(other)["doc"]})
    for given in ({"plan": tables["plan"]}, tables):
        wanted = op.reference(q, k, v, tables=on_host({**other, **given}))
        np.testing.assert_allclose(held(q, k, v, tables=given).cpu(), wanted, atol=1e-5)


def test_what_goes_through_the_host() -> None:
    """Arrays, tensors elsewhere, floats, missing tables and orders that must be inverted do."""
    op = operator("triton", attention(mask=PLAN & masks.same(DOC), order=None))
    tables = values(op.spec, 0)
    device = tables["doc"].device
    assert op.reads_on_device(tables, device)
    assert not op.reads_on_device(None, device)
    assert not op.reads_on_device(tables, torch.device("meta"))
    for change in ({"doc": on_host(tables)["doc"]}, {"doc": tables["doc"].float()}):
        assert not op.reads_on_device({**tables, **change}, device)
    assert not op.reads_on_device({"doc": tables["doc"]}, device)
    listed = operator(
        "triton", attention(order=~orders.table(Table("order", 23)), mask=masks.causal())
    )
    given = values(listed.spec, 0)
    assert not listed.reads_on_device(given, device)
    q, k, v = (x.detach() for x in leaves(listed.spec))
    wanted = listed.reference(q, k, v, tables=on_host(given))
    np.testing.assert_allclose(listed(q, k, v, tables=given).cpu(), wanted, atol=1e-5)


def test_wrong_tables_are_refused() -> None:
    """A shape is looked at in every call, values only with check=True."""
    op = operator("triton", attention(mask=masks.same(DOC), order=None))
    q, k, v = (x.detach() for x in leaves(op.spec))
    with pytest.raises(InputError, match="has shape"):
        op(q, k, v, tables={"doc": torch.zeros(22, dtype=torch.uint8, device=DEVICE)})
    far = torch.full((23,), 9, dtype=torch.uint8, device=DEVICE)
    op(q, k, v, tables={"doc": far})
    with pytest.raises(InputError, match=r"9\.\.9"):
        op(q, k, v, tables={"doc": far}, check=True)
