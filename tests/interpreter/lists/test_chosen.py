"""Masks that choose blocks in the call, end to end against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kdsl import masks, orders
from kdsl.errors import InputError, UnsupportedError
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.masks import Mask
from kdsl.reference.selection import chosen
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.torch_ops import operands_of
from kdsl.specs import Attention
from tests.devices import DEVICE, poisoned_memory
from tests.interpreter.attention.test_torch import attention, operator

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")
GRID = Grid(height=4, width=8, text=7)
ORDER = orders.axes(GRID, "WH")
OTHER = orders.axes(GRID, "HW")
DOC = Table("doc", 39, "uint8", 0, 2)
DOCS = Table("docs", (3, 39), "uint8", 0, 2)
CAUSAL, TEXT = masks.causal(), masks.text(GRID)


def top(count: int = 2, **named: Any) -> Mask:
    """The best blocks of 16 x 16."""
    return masks.topk(count, block=(16, 16), **named)


CASES: dict[str, tuple[Mask, Any, dict[str, Any]]] = {
    "alone": (top(1), None, {}),
    "more than there are": (top(9), None, {}),
    "mass": (masks.topp(0.6, block=(16, 16)), None, {}),
    "in an order": (top(order=ORDER) | TEXT, ORDER, {}),
    "stored": (top(order=ORDER) & CAUSAL, ORDER, {"stored": True}),
    "orders by head": (
        top(order=orders.per_head([ORDER, OTHER])), orders.per_head([ORDER, OTHER]), {},
    ),
    "an order of the call": (
        top(order=orders.table(Table("order", 39))), orders.table(Table("order", 39)), {},
    ),
    "causal": (top() & CAUSAL, None, {}),
    "causal and text": (top(1) & CAUSAL | TEXT, None, {}),
    "mass beside a window": (masks.topp(0.5, block=(16, 16)) | masks.window(9), None, {}),
    "documents of the call": (top() & masks.same(DOC), None, {}),
    "documents by item": (top(1) & masks.same(DOCS) | masks.sink(3), None, {}),
    "beside a map": (top(1) | masks.blocks("plan", block=(16, 16)), None, {}),
    "one dense head": (masks.per_head([top(), CAUSAL]), None, {}),
    "all heads their keys": (top(), None, {"kv_heads": 2}),
    "small lists": (top(1, capacity=2) & CAUSAL | TEXT, None, {}),
}  # fmt: skip


DIFFERENTIATED = ("in an order", "documents by item", "all heads their keys")


def spec_of(name: str, **fields: Any) -> Attention:
    """A spec of two heads with the case's mask and order."""
    mask, order, named = CASES[name]
    return attention(tokens=GRID, mask=mask, order=order, **{**named, **fields})


def tables_of(spec: Attention, seed: int = 0) -> dict[str, Any]:
    """Values of the open tables."""
    rng = np.random.default_rng(seed)
    out = {}
    for t in spec.open_tables:
        made: Any = rng.permutation(39) if t.name == "order" else rng.integers(0, 2, t.shape)
        made = np.sort(made, axis=-1) if t.name.startswith("doc") else made
        out[t.name] = torch.from_numpy(made).to(DEVICE)
    return out


def tensors(spec: Attention, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v of a batch of two whose pooled scores differ by far more than float32 rounds."""
    g = torch.Generator().manual_seed(seed)
    heads = (spec.heads, spec.group_heads, spec.group_heads)
    made = [torch.randn((2, h, 39, 64), generator=g).to(DEVICE) for h in heads]
    return [x.requires_grad_() for x in made]


def on_host(tables: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same as arrays."""
    return {n: x.cpu().numpy() for n, x in tables.items()}


@pytest.mark.parametrize("name", CASES)
def test_calls_equal_the_reference(name: str) -> None:
    """Output, and for some gradients, are those of the reference, which pools, chooses and attends
    in float64; there a second call with other tensors chooses anew."""
    op = operator("triton", spec_of(name))
    tables = tables_of(op.spec)
    for seed in (0, 1) if name in DIFFERENTIATED else (0,):
        given = tensors(op.spec, seed)
        plain = [x.detach() for x in given]
        wanted = op.reference(*plain, tables=on_host(tables))
        np.testing.assert_allclose(op(*plain, tables=tables).cpu(), wanted, atol=1e-5)
    if name not in DIFFERENTIATED:
        return
    found = torch.autograd.grad(op(*given, tables=tables).sin().sum(), given)
    truth = operator("reference", op.spec)
    on_cpu = [x.detach().cpu().requires_grad_() for x in given]
    out = truth(*on_cpu, tables={n: x.cpu() for n, x in tables.items()})
    for x, y in zip(found, torch.autograd.grad(out.sin().sum(), on_cpu), strict=True):
        np.testing.assert_allclose(x.cpu(), y, atol=2e-5)


def test_the_choice_is_of_open_blocks() -> None:
    """Beside what is kept anyway a row keeps as many blocks as were asked for, among those that it
    may see, and fewer only where fewer are open."""
    spec = spec_of("causal and text")
    q, k, _ = (x.detach() for x in tensors(spec))
    kept = chosen(spec, q, k)
    open_ = spec.candidates.rows().kept()
    assert not (kept & ~open_).any()
    assert (kept.sum(-1) == np.minimum(open_.sum(-1), 1)).all()
    assert 0 < open_.sum() < open_.size


@pytest.mark.parametrize("name", ["documents of the call"])
def test_compiled_in_one_graph(name: str) -> None:
    """One graph without a break, which chooses anew for other tensors, gradients included; the
    operation says the truth about itself."""
    op = operator("triton", spec_of(name))
    tables = tables_of(op.spec)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(q: Any, k: Any, v: Any, tables: Any) -> Any:
        return op(q * 2, k, v, tables=tables).sin()

    for seed in (0, 1):
        given = tensors(op.spec, seed)
        out = compiled(*given, tables)
        wanted = op(given[0] * 2, *given[1:], tables=tables).sin()
        assert torch.equal(out, wanted)
        found, eager = (torch.autograd.grad(x.sum(), given) for x in (out, wanted))
        assert all(map(torch.equal, found, eager))
    assert counter.frame_count == 1
    picked, _, name = op.sources(tuple(tables), given[0].device, True)
    plain = [x.detach() for x in given[:2]]
    operands = (*plain, operands_of(picked, tables), name)
    with poisoned_memory():  # what no list reaches is nobody's to write
        torch.library.opcheck(torch.ops.kdsl.attention_chosen, operands)


def test_a_row_beyond_the_capacity_is_named() -> None:
    """A row that lists more than it may is right all the same, and check=True says which it is;
    with room for all nothing is said."""
    op = operator("triton", spec_of("small lists"))
    q, k, v = (x.detach() for x in tensors(op.spec))
    with pytest.raises(InputError, match=r"row 0 of head 0 of batch item 0 keeps more than 2"):
        op(q, k, v, check=True)
    room = operator("triton", attention(tokens=GRID, order=None, mask=top(capacity=2)))
    room(q, k, v, check=True)
    plan = masks.blocks("plan", block=(16, 16), capacity=2)
    mapped = operator("triton", attention(tokens=GRID, order=None, mask=plan))
    kept = torch.zeros(2, 3, 3, dtype=torch.bool, device=DEVICE)
    kept[1, 2, :3] = True
    with pytest.raises(InputError, match=r"row 2 of head 1 of batch item 0 keeps more than 2"):
        mapped(q, k, v, tables={"plan": kept}, check=True)
    out = mapped(q, k, v, tables={"plan": kept})
    wanted = mapped.reference(q, k, v, tables={"plan": kept.cpu().numpy()})
    np.testing.assert_allclose(out.cpu(), wanted, atol=1e-5)


def test_arrays_and_bound_tables() -> None:
    """NumPy tensors and tables give what torch's do, and so does a bound table."""
    op = operator("triton", spec_of("documents of the call"))
    assert isinstance(op, AttentionOperator)
    given = [x.detach() for x in tensors(op.spec)]
    tables = tables_of(op.spec)
    wanted = op(*given, tables=tables).cpu()
    arrays = [x.cpu().numpy() for x in given]
    assert np.array_equal(op(*arrays, tables=on_host(tables)), wanted)
    assert np.array_equal(op.bind(on_host(tables))(*arrays), wanted)


def test_what_is_refused() -> None:
    """Values for the choice itself, missing tables, and orders that the host must invert."""
    op = operator("triton", spec_of("documents of the call"))
    given = [x.detach() for x in tensors(op.spec)]
    with pytest.raises(InputError, match="is made in the call"):
        op(*given, tables={**tables_of(op.spec), "topk": torch.ones(2, 3, 3)})
    with pytest.raises(InputError, match="'doc' has no values"):
        op(*given)
    listed = ~orders.table(Table("order", 39))
    with pytest.raises(UnsupportedError, match="stored orders that are known"):
        operator("triton", attention(tokens=GRID, mask=top(order=listed), order=listed))
