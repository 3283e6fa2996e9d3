"""Attention as torch operations: seen by autograd, torch.compile, fake tensors and export.

``kdsl::attention`` and ``kdsl::attention_backward`` take the program by its name (canonical JSON),
rows of blocks and tables as tensors, ``kdsl::attention_quantized`` codes and scales too;
``kdsl::attention_lists`` makes the rows of tables that came
with the call, ``kdsl::attention_chosen`` the map of blocks that a mask chooses in it.  They do not
look at values, and wait for nothing.

The programs by name are the one piece of global state of this library: those of living operators,
and a bounded number of others, from which what drops out is made again of its name.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from kdsl.errors import UnsupportedError
from kdsl.kernels.launching.place import place
from kdsl.kernels.lists import call
from kdsl.runtime.program import Program

if TYPE_CHECKING:
    from kdsl.runtime.attention import AttentionOperator

KEPT = 64
"""Programs that are remembered though no operator has them any more."""

_HERE = contextlib.nullcontext()
_programs: WeakValueDictionary[str, Program] = WeakValueDictionary()
_kept: deque[Program] = deque(maxlen=KEPT)

_library: Any = torch.library.Library("kdsl", "DEF")  # type: ignore[no-untyped-call]
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor[] lists, Tensor[] tables, str program)"
    " -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "attention_quantized(Tensor[] operands, Tensor[] lists, Tensor[] tables, str program)"
    " -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "attention_lists(Tensor[] tables, str program, int batch, bool inverted) -> Tensor[]",
    tags=_TAGS,
)
_library.define(
    "attention_chosen(Tensor q, Tensor k, Tensor[] tables, str program) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out,"
    " Tensor lse, Tensor[] lists, Tensor[] tables, str program, bool queries, bool keys)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def wanted(tensors: Sequence[Any]) -> bool:
    """Whether torch must see a call: it is compiled or differentiated, or no memory is behind it.

    Asked in every call, so it is a handful of flags.
    """
    if torch.compiler.is_compiling():
        return True
    plain = True
    grad = False
    for x in tensors:
        plain = plain and type(x) in _PLAIN
        grad = grad or x.requires_grad
    return not plain or (grad and torch.is_grad_enabled())


_PLAIN = (Tensor, torch.nn.Parameter)


def attention(operator: AttentionOperator, tensors: Sequence[Tensor], tables: Any) -> Any:
    """Output and log-sum-exp of an operator, through ``kdsl::attention``, or
    ``kdsl::attention_quantized`` for one whose spec has a layout."""
    q, k = tensors[0], tensors[1]
    batch = q.shape[0] if operator.by_batch else 1
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    here = operator.reads_on_device(tables, q.device)
    choice = operator.on_device.choice if here else None
    if choice is not None and not torch.compiler.is_compiling():
        tables = operator.on_device.placed(tables, q.device)
    if torch.compiler.is_compiling():
        from kdsl.runtime import graph_inputs

        if operator.identity == "":  # read, so that the graph is guarded by it
            raise AssertionError("an operator without an identity")
        if operator.by_batch:
            batch = graph_inputs.known(batch)
        if here:
            tables = tables or {}
            found = graph_inputs.sources(operator, tables, q.device, differentiated)
            picked, sources, name = found
        else:
            find = graph_inputs.read_tables if tables else graph_inputs.constants
            lists, values, name = find(operator, tables, batch, q.device, differentiated)
    elif here:
        picked, sources, name = operator.sources(tuple(tables), q.device, differentiated)
    else:
        lists, values, name = operator.operands(tables, batch, q.device, differentiated)
    if here:
        if choice is not None:
            taken = operands_of(picked, tables)
            kept = torch.ops.kdsl.attention_chosen(q.detach(), k.detach(), taken, name)
            tables = {**tables, choice.name: kept}
        values = operands_of(sources, tables)
        lists = torch.ops.kdsl.attention_lists(values, name, batch, differentiated)
    if operator.spec.layout is not None:
        return torch.ops.kdsl.attention_quantized(list(tensors), lists, values, name)
    return torch.ops.kdsl.attention(*tensors, lists, values, name)


def operands_of(sources: Sequence[tuple[str, str, Tensor | None]], tables: Any) -> list[Tensor]:
    """Tables as the kernels take them: those that are kept, and the call's in their dtype."""
    return [
        kept if kept is not None else as_dtype(tables[name], getattr(torch, dtype)).contiguous()
        for name, dtype, kept in sources
    ]


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another dtype; truths are bytes already."""
    if x.dtype == torch.bool and dtype == torch.uint8:
        return x.view(torch.uint8)
    return x.to(dtype)


def remember(program: Program) -> Program:
    """Make a program known to the operations; one that has its name already stays."""
    found = _programs.setdefault(program.name, program)
    _kept.append(found)
    return found


def program_named(name: str) -> Program:
    """The program of a name, made again of it if need be."""
    found = _programs.get(name)
    return remember(Program.from_name(name)) if found is None else found


def _attention(
    q: Tensor, k: Tensor, v: Tensor, lists: list[Tensor], tables: list[Tensor], program: str
) -> tuple[Tensor, Tensor]:
    with on(q.device):
        return program_named(program).forward((q, k, v), lists, tables)


def _attention_fake(
    q: Tensor, k: Tensor, v: Tensor, lists: list[Tensor], tables: list[Tensor], program: str
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _attention_quantized(
    operands: list[Tensor], lists: list[Tensor], tables: list[Tensor], program: str
) -> tuple[Tensor, Tensor]:
    with on(operands[0].device):
        return program_named(program).quantized(operands, lists, tables)


def _attention_quantized_fake(
    operands: list[Tensor], lists: list[Tensor], tables: list[Tensor], program: str
) -> tuple[Tensor, Tensor]:
    q, dtype = operands[0], getattr(torch, program_named(program).spec.dtype)
    return q.new_empty(q.shape, dtype=dtype), q.new_empty(q.shape[:3], dtype=torch.float32)


def _attention_lists(
    tables: list[Tensor], program: str, batch: int, inverted: bool
) -> list[Tensor]:
    with on(tables[0].device):
        return program_named(program).lists(tables, batch, inverted)


def _attention_lists_fake(
    tables: list[Tensor], program: str, batch: int, inverted: bool
) -> list[Tensor]:
    return call.empty(program_named(program).spec, tables[0].device, batch, inverted)


def _attention_chosen(q: Tensor, k: Tensor, tables: list[Tensor], program: str) -> Tensor:
    with on(q.device):
        return program_named(program).chosen(q, k, tables)


def _attention_chosen_fake(q: Tensor, k: Tensor, tables: list[Tensor], program: str) -> Tensor:
    rows, columns = call.sizes(program_named(program).spec)
    return q.new_empty((q.shape[0] * q.shape[1], rows, columns), dtype=torch.uint8)


def _attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: list[Tensor],
    tables: list[Tensor],
    program: str,
    queries: bool,
    keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with on(q.device):
        return program_named(program).backward(
            (dout, dlse), (q, k, v), (out, lse), lists, tables, (queries, keys)
        )


def _attention_backward_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: list[Tensor],
    tables: list[Tensor],
    program: str,
    queries: bool,
    keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    made = [
        torch.empty_like(x) if w else x.new_empty(0)
        for x, w in ((q, queries), (k, keys), (v, keys))
    ]
    return made[0], made[1], made[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, lists, tables, ctx.program = inputs
    ctx.lists = len(lists)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, *lists, *tables)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, *rest = ctx.saved_tensors
    lists, tables = rest[: ctx.lists], rest[ctx.lists :]
    none = ([None] * len(lists), [None] * len(tables), None)
    of_q, of_k, of_v = ctx.needs_input_grad[:3]
    if dout is None and dlse is None:
        return None, None, None, *none
    dq, dk, dv = torch.ops.kdsl.attention_backward(
        torch.zeros_like(out) if dout is None else dout,
        dlse, q, k, v, out, lse, lists, tables, ctx.program, of_q, of_k or of_v,
    )  # fmt: skip
    return dq if of_q else None, dk if of_k else None, dv if of_v else None, *none


def _no_second(ctx: Any, *grads: Any) -> Any:
    raise UnsupportedError(
        "attention has no second derivative", hint="create_graph=False, or the reference in torch"
    )


def _remember_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """Nothing is needed to say that there is no second derivative."""


for _name, _run, _fake, _backward, _keep in (
    ("attention", _attention, _attention_fake, _differentiate, _save),
    ("attention_backward", _attention_backward, _attention_backward_fake, _no_second,
     _remember_nothing),
):  # fmt: skip
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdsl::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"kdsl::{_name}", _backward, setup_context=_keep, lib=_library)


_library.impl("attention_quantized", _attention_quantized, "CompositeExplicitAutograd")
torch.library.register_fake("kdsl::attention_quantized", _attention_quantized_fake, lib=_library)
_library.impl("attention_chosen", _attention_chosen, "CompositeExplicitAutograd")
torch.library.register_fake("kdsl::attention_chosen", _attention_chosen_fake, lib=_library)
_library.impl("attention_lists", _attention_lists, "CompositeExplicitAutograd")
torch.library.register_fake("kdsl::attention_lists", _attention_lists_fake, lib=_library)


def on(device: Any) -> Any:
    """The device as the current one: kernels launch where their tensors are."""
    if device.type != "cuda" or device.index == place("cuda").device():
        return _HERE
    return torch.cuda.device(device)
