"""Calls like earlier ones, on a made-up driver: what they launch, and how little they do."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from benchmarks import made_up
from kdsl import layouts, masks, orders
from kdsl.grid import Grid
from kdsl.kernels.attention import ready as kernels_ready
from kdsl.kernels.launching.place import Place
from kdsl.kernels.launching.prepared import heard
from kdsl.runtime import warm
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.bound import KEPT_BINDINGS
from kdsl.runtime.quantized import QuantizedOperator
from kdsl.specs import Attention
from kdsl.targets import get
from tests.recording import Driver, addresses

H100 = get("h100")
GRID = Grid(frames=2, height=8, width=16)
CALLS, PER_COPY = 24, 3
"""Functions, Python's and C's, that a warm call may call: 21 where it launches one kernel, three
more for each tensor that it copies first."""


def spec(name: str, **more: Any) -> Attention:
    """A small spec: plain, with codes, or with an order, by which Hopper copies tokens first."""
    order = orders.cubes(GRID, (2, 4, 4)) if name == "copied" else None
    layout = layouts.int8_qk_fp8_pv() if name == "quantized" else None
    given = {"mask": masks.window(GRID, (3, 5, 5)), "return_lse": True, "block": (128, 128), **more}
    return Attention(tokens=GRID, heads=2, head_dim=64, order=order, layout=layout, **given)


def operator(name: str, **more: Any) -> tuple[AttentionOperator, str]:
    """An operator on a GPU that is not there, and its template."""
    template = "portable" if name == "portable" else "hopper"
    made = QuantizedOperator if name == "quantized" else AttentionOperator
    backend = "triton" if template == "portable" else "gluon"
    return made(spec(name, **more), H100, backend, None, "off", here=True), template


def inputs(op: AttentionOperator, batch: int = 1, dtype: Any = torch.bfloat16) -> Any:
    """Operands of a call."""
    shape = (batch, 2, GRID.tokens, 64)
    tensors = tuple(torch.randn(shape).to(dtype) for _ in range(3))
    return op.quantize(*tensors) if isinstance(op, QuantizedOperator) else tensors


@contextmanager
def only_warm(op: AttentionOperator) -> Iterator[list[Any]]:
    """Calls of the long way, which are let through and counted."""
    run, found = op.run, list[Any]()

    def count(*given: Any, **named: Any) -> Any:
        found.append(given)
        return run(*given, **named)

    op.run = count  # type: ignore[misc, assignment]
    yield found
    op.run = run  # type: ignore[misc, assignment]


@pytest.fixture(params=["as it is", "without torch's short cuts"])
def torches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch with the functions of its compiler that we use, and one without."""
    if request.param != "as it is":
        monkeypatch.setattr(warm, "tensor_guards", lambda: None)
        monkeypatch.delattr(torch._C._dynamo.guards, "_empty_strided_cpu")


@pytest.mark.usefixtures("torches")
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", ["portable", "hopper", "copied", "quantized"])
def test_later_calls_launch_on_their_own_tensors(name: str, asked: bool) -> None:
    """The same kernels in the same order read the second call's tensors, no other call's, and the
    same lists; results are like the first call's and memory of their own."""
    op, template = operator(name, return_lse=asked)
    sets = [inputs(op) for _ in range(3)]
    with made_up.gpu(op, template, driver := Driver()), only_warm(op) as long:
        first = op(*sets[0])
        assert len(long) == 1
        results = [op(*tensors) for tensors in sets[1:]]
        assert len(long) == 1
    kernels = 2 if name == "copied" else 1
    assert [number for number, _ in driver.read] == [*range(kernels)] * 2
    lists = long[0][3]
    for tensors, result in zip(sets[1:], results, strict=True):
        reads = [read for _, read in driver.read[:kernels]]
        del driver.read[:kernels]
        out, *lse = result if asked else (result,)
        assert (len(lse) == 1) == asked
        for x, model in zip((out, *lse), first if asked else (first,), strict=True):
            assert (x.shape, x.stride(), x.dtype) == (model.shape, model.stride(), model.dtype)
        assert addresses(*tensors) <= reads[0] if name != "quantized" else True
        assert addresses(out, *lse) <= reads[-1]
        assert addresses(lists.start, lists.full, lists.index) <= reads[-1]
        others = [x for s in sets if s is not tensors for x in s]
        assert not addresses(*others) & set.union(*reads)
        if name == "copied":
            # What the first kernel wrote the second one reads; the originals it does not.
            assert not addresses(*tensors) & reads[1]
            assert len((reads[0] & reads[1]) - addresses(*lists.tensors)) >= 3
    made = [r if asked else (r,) for r in results]
    assert not addresses(*made[0]) & addresses(*made[1])


@pytest.mark.parametrize("name", ["portable", "hopper", "copied"])
def test_a_warm_call_does_little(name: str) -> None:
    """The number of functions that are called, in Python and in C, is bounded: unlike time, it is
    the same on every machine.  Also where tensors lie elsewhere each time."""
    op, template = operator(name)
    sets = [inputs(op) for _ in range(3)]
    with made_up.gpu(op, template):
        op(*sets[0])
    op(*sets[0])
    for tensors in sets:
        assert _calls(lambda tensors=tensors: op(*tensors)) <= CALLS + 3 * PER_COPY * (
            name == "copied"
        )


def _calls(f: Callable[[], Any]) -> int:
    found: list[str] = []
    sys.setprofile(lambda frame, event, argument: found.append(event))
    try:
        f()
    finally:
        sys.setprofile(None)
    # But the lambda's own, and that of the profiler's end.
    return sum(event in ("call", "c_call") for event in found) - 2


def test_other_calls_go_the_long_way() -> None:
    """Another batch, other strides, another alignment, tables, checks and listeners to launches; a
    call that was made so is warm the next time where it can be."""
    op, template = operator("portable")
    q, k, v = inputs(op)
    odd = torch.empty(q.numel() + 1, dtype=q.dtype)[1:].view(q.shape)
    turned = torch.empty(1, GRID.tokens, 2, 64, dtype=q.dtype).transpose(1, 2)
    with made_up.gpu(op, template), only_warm(op) as long:

        def way(*tensors: Any, **named: Any) -> list[int]:
            found = []
            for _ in range(2):
                long.clear()
                op(*tensors, **named)
                found.append(len(long))
            return found

        assert way(q, k, v) == [1, 0]
        assert way(*inputs(op, batch=2)) == [1, 0]
        assert way(turned, k, v) == [1, 0]
        assert way(odd, k, v) == [1, 1]
        assert way(q, k, k) == [0, 0], "tensors that are the same one are no other kind"
        assert way(q, k, v, tables={}) == [1, 1]
        assert way(q, k, v) == [0, 0]
        asks = torch.nn.Parameter(q)
        with torch.no_grad():
            assert way(asks, k, v) == [1, 0]
        from triton import knobs

        chain = knobs.runtime.launch_enter_hook
        assert not heard()
        chain.add(listener)
        try:
            assert heard()
            assert way(q, k, v) == [1, 1]
        finally:
            chain.remove(listener)
        assert way(q, k, v) == [0, 0]


def listener(*given: Any) -> None:
    """Hears of launches, and does nothing."""


def test_what_torch_must_see_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, subclasses and tracing are torch's also where calls of the same form are ready."""
    op, template = operator("portable")
    q, k, v = inputs(op)
    seen: list[Any] = []
    ops = SimpleNamespace(attention=lambda op, tensors, tables: seen.append(tensors) or (0, 0))
    from kdsl.runtime import attention

    class Mine(torch.Tensor):  # type: ignore[misc]
        """Another kind of tensor."""

    with made_up.gpu(op, template):
        op(q, k, v)
        op(q, k, v)
        with torch.no_grad():
            op(q, k, torch.nn.Parameter(v))
    monkeypatch.setattr(attention, "torch_ops", lambda: ops)
    op(q, k, v.clone().requires_grad_())
    op(q, k, torch.nn.Parameter(v))
    op(q.as_subclass(Mine), k, v)
    assert len(seen) == 3
    monkeypatch.setattr(warm, "is_compiling", lambda: True)
    assert op.warm((q, k, v)) is None


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_streams_devices_and_graphs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is new goes the long way once, for its memory must be recorded; kernels that
    take a counter have one a stream, and one a launch in a graph; with another device the current
    one, a call is none of these."""
    now = {"stream": 7, "device": None, "capturing": False}
    own = Place(lambda index: now["stream"], lambda: now["device"], lambda: bool(now["capturing"]))
    monkeypatch.setattr(kernels_ready, "place", lambda kind: own)
    op, template = operator(name)
    tensors = inputs(op)
    with made_up.gpu(op, template, driver := Driver()), only_warm(op) as long:

        def way(**change: Any) -> int:
            now.update(change)
            long.clear()
            op(*tensors)
            return len(long)

        assert [way() for _ in range(3)] == [1, 0, 0]
        assert [way(stream=9) for _ in range(3)] == [1, 0, 0]
        assert [way(stream=7), way(stream=9)] == [0, 0]
        assert driver.streams[-2:] == [7, 9]
        counters = op.warm.recent[0][1].counters
        assert len({x.data_ptr() for x in counters.values()}) == (2 if name == "hopper" else 0)
        assert way(capturing=True) == (name == "hopper")
        assert way(stream=11) == 1
        assert way() == (name == "hopper")
        assert way(capturing=False, device=1) == 1
        assert way(device=None, stream=9) == 0


def test_threads_do_not_mix() -> None:
    """Threads that call one operator at once read their own tensors, and write their own output."""
    op, template = operator("hopper")
    sets = [inputs(op) for _ in range(4)]
    with made_up.gpu(op, template, driver := Driver()):
        op(*sets[0])
    found: list[tuple[set[int], set[int]]] = []

    def work(tensors: Any) -> None:
        for _ in range(100):
            out, lse = op(*tensors)
            found.append((addresses(*tensors, out, lse), addresses(*tensors)))

    workers = [threading.Thread(target=work, args=(tensors,)) for tensors in sets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    own = [addresses(*tensors) for tensors in sets]
    assert len(driver.read) == len(found) == 400
    for _, read in driver.read:
        assert sum(mine <= read for mine in own) == 1
        assert sum(bool(mine & read) for mine in own) == 1


def test_memory_is_bounded() -> None:
    """Masks that speak of the batch have lists for each size; calls keep no more of them alive than
    the operator does."""
    by_batch = masks.predicate(lambda q, k, batch: k <= q + batch)
    op, template = operator("portable", mask=by_batch)
    assert op.by_batch
    with made_up.gpu(op, template):
        for batch in range(1, 2 * KEPT_BINDINGS):
            op(*inputs(op, batch=batch))
            held = {id(ready.held) for ready in op.warm.kept.values()}
            assert 1 <= len(held) <= KEPT_BINDINGS
            op(*inputs(op, batch=batch))
    assert len(op.warm.recent) <= warm.RECENT


def test_errors_stay_errors() -> None:
    """What is wrong with a call is said as before it was warm: number, shape, dtype, arrays."""
    from kdsl.errors import InputError

    op, template = operator("portable")
    q, k, v = inputs(op)
    with made_up.gpu(op, template):
        op(q, k, v)
        op(q, k, v)
    for wrong in ((q, k), (q, k, v[:, :1]), (q, k, v.float()), (q, k, "v"), (q, k, v.numpy)):
        with pytest.raises(InputError):
            op(*wrong)


def test_bits_are_there_for_kernels_that_read_them() -> None:
    """A call whose tensors TMA cannot fetch gets another template, without bits of partial blocks;
    whichever call comes first, each has the tables of its own."""
    for first in (True, False):
        op, template = operator("hopper")
        assert op.config["masks"] == "bits"
        q, k, v = inputs(op)
        odd = torch.empty(q.numel() + 1, dtype=q.dtype)[1:].view(q.shape)
        calls = [(q, k, v), (odd, k, v)]
        with made_up.gpu(op, template, driver := Driver()), only_warm(op) as long:
            op.modules["portable"] = made_up.Module(op, "portable", driver)
            for tensors in calls if first else reversed(calls):
                op(*tensors)
        tables = {config.masks: len(values) for _, _, config, _, _, values in long}
        assert tables["bits"] == tables["leaf"] + 3
