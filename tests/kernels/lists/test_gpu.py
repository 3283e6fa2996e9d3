"""Lists made on a GPU: the interpreter's suites, graphs whose tables change, and no waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdsl import masks
from kdsl.expr import Table
from kdsl.kernels.lists import launch as lists
from kdsl.runtime import build
from kdsl.specs import Attention
from tests.devices import DEVICE, no_synchronisation
from tests.interpreter.lists.test_calls import *  # noqa: F403
from tests.interpreter.lists.test_chosen import test_a_row_beyond_the_capacity_is_named  # noqa: F401
from tests.interpreter.lists.test_chosen import (  # noqa: F401
    test_arrays_and_bound_tables as test_arrays_and_bound_tables_of_a_choice,
)
from tests.interpreter.lists.test_chosen import (  # noqa: F401
    test_calls_equal_the_reference as test_calls_that_choose_equal_the_reference,
)
from tests.interpreter.lists.test_chosen import (  # noqa: F401
    test_compiled_in_one_graph as test_a_choice_compiled_in_one_graph,
)
from tests.interpreter.lists.test_lists import *  # noqa: F403
from tests.interpreter.lists.test_packed import *  # noqa: F403
from tests.interpreter.lists.test_selection import *  # noqa: F403

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]
HEADS, TOKENS = 3, 1000


def changing(kind: str) -> tuple[Attention, Callable[[int], dict[str, Any]]]:
    """A spec with an open table, and the values of the table by seed."""
    plan, doc = masks.blocks("plan"), Table("doc", TOKENS, "int32", 0, 99)
    mask = {"map": plan, "map and leaf": plan & masks.causal(), "leaf": masks.same(doc)}[kind]
    spec = Attention(tokens=TOKENS, heads=HEADS, head_dim=64, mask=mask)

    def values(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        if kind == "leaf":
            return {"doc": torch.from_numpy(np.sort(rng.integers(0, 5, TOKENS))).cuda()}
        return {"plan": torch.from_numpy(rng.random((HEADS, 8, 8)) < 0.4).cuda()}

    return spec, values


def tensors(spec: Attention) -> tuple[Any, ...]:
    """q, k, v of a batch of two."""
    g = torch.Generator("cuda").manual_seed(0)
    shape = (2, spec.heads, TOKENS, spec.head_dim)
    dtype = getattr(torch, spec.dtype)
    return tuple(torch.randn(shape, generator=g, device="cuda", dtype=dtype) for _ in range(3))


@pytest.mark.parametrize("kind", ["map", "map and leaf", "leaf"])
def test_a_graph_follows_its_tables(kind: str) -> None:
    """A captured call is replayed after its table's memory changed: the output is that of an eager
    call with the new values, bit by bit, which is the reference's up to rounding."""
    spec, values = changing(kind)
    op, (q, k, v) = build(spec), tensors(spec)
    held = values(0)
    op(q, k, v, tables=held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(q, k, v, tables=held)
    for seed in (1, 2, 3):
        for name, x in values(seed).items():
            held[name].copy_(x)
        graph.replay()
        assert torch.equal(out, op(q, k, v, tables=values(seed)))
        arrays = {n: x.cpu().numpy() for n, x in held.items()}
        wanted = op.reference(*(x.float().cpu().numpy() for x in (q, k, v)), tables=arrays)
        np.testing.assert_allclose(out.float().cpu(), wanted, atol=0.02)


@pytest.mark.parametrize("kind", ["map", "map and leaf", "leaf"])
def test_a_call_waits_for_nothing(kind: str) -> None:
    """New values of a table in every call, forward and backward: torch sees no synchronisation."""
    spec, values = changing(kind)
    op, given = build(spec), [x.requires_grad_() for x in tensors(spec)]
    tables = [values(seed) for seed in range(3)]
    op(*given, tables=tables[0]).sum().backward()
    torch.cuda.synchronize()
    with no_synchronisation():
        for each in tables:
            with torch.no_grad():
                op(*given, tables=each)
            op(*given, tables=each).sum().backward()


CHOICES = {
    "count": masks.topk(3) & masks.causal(),
    "mass": masks.topp(0.6) | masks.sink(40),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_a_graph_chooses_anew(kind: str) -> None:
    """A captured call, replayed over other queries and keys in the same memory, keeps other blocks:
    its output is that of an eager call with them, bit by bit."""
    spec = Attention(tokens=TOKENS, heads=HEADS, head_dim=64, mask=CHOICES[kind])
    op, (q, k, v) = build(spec), tensors(spec)
    op(q, k, v)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(q, k, v)
    before = out.clone()
    for seed in (1, 2):
        g = torch.Generator("cuda").manual_seed(seed)
        q.normal_(generator=g)
        k.normal_(generator=g)
        graph.replay()
        assert torch.equal(out, op(q, k, v))
        assert not torch.equal(out, before)


@pytest.mark.parametrize("kind", CHOICES)
def test_a_choice_waits_for_nothing(kind: str) -> None:
    """Forward, and forward with backward, of masks that choose: torch sees no synchronisation."""
    spec = Attention(tokens=TOKENS, heads=HEADS, head_dim=64, mask=CHOICES[kind])
    op, given = build(spec), [x.requires_grad_() for x in tensors(spec)]
    op(*given).sum().backward()
    with torch.no_grad():
        op(*given)
    torch.cuda.synchronize()
    with no_synchronisation():
        with torch.no_grad():
            op(*given)
        op(*given).sum().backward()


def test_lists_are_the_same_bits_every_time() -> None:
    """A hundred runs over one large map, rows, columns and order, give equal bits."""
    g = torch.Generator("cuda").manual_seed(0)
    kept = torch.rand(1, 12, 256, 256, generator=g, device="cuda") < 0.1
    first: list[Any] = []
    for _ in range(100):
        found = []
        for turned in (False, True):
            rows = lists.from_map(kept, turned=turned)
            rows.index.masked_fill_(rows.index < 0, 0)
            at = torch.arange(256, device="cuda") < (rows.full + rows.partial)[..., None]
            found += [torch.where(at, rows.index.view(at.shape), -1), lists.order(rows, 12)]
        assert all(map(torch.equal, found, first or found))
        first = first or found
