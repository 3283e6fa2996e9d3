"""Quantizing and products as torch operations: seen by torch.compile, fake tensors and export.

``kdsl::quantize`` and ``kdsl::matmul`` take a `RowProgram` by name (canonical JSON), and tensors:
what is rotated and coded with what values; the operands of a product.  Rows are counted by the
call.  They do not look at values, and wait for nothing.  Programs are remembered as those of
attention are, see `torch_ops`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from kdsl.errors import UnsupportedError
from kdsl.runtime.checks import check_matmul, check_quantized
from kdsl.runtime.row_program import RowProgram
from kdsl.runtime.torch_ops import _TAGS, KEPT, _library, on, wanted

if TYPE_CHECKING:
    from kdsl.runtime.matmul import MatmulOperator
    from kdsl.runtime.quantize import QuantizeOperator

_programs: WeakValueDictionary[str, RowProgram] = WeakValueDictionary()
_kept: deque[RowProgram] = deque(maxlen=KEPT)

_library.define(
    "quantize(Tensor x, Tensor? scale, Tensor? shift, Tensor[] values, str program) -> Tensor[]",
    tags=_TAGS,
)
_library.define(
    "matmul(Tensor[] operands, Tensor? sums, SymInt rows, str program) -> Tensor", tags=_TAGS
)


def remember(program: RowProgram) -> RowProgram:
    """Make a program known to the operations; one that has its name already stays."""
    found = _programs.setdefault(program.name, program)
    _kept.append(found)
    return found


def program_named(name: str) -> RowProgram:
    """The program of a name, made again of it if need be."""
    found = _programs.get(name)
    return remember(RowProgram.from_name(name)) if found is None else found


def seen(tensors: tuple[Any, ...]) -> bool:
    """Whether torch must see a call: it is traced, differentiated, or of tensors without memory."""
    return all(isinstance(t, Tensor) for t in tensors) and wanted(tensors)


def quantize(operator: QuantizeOperator, tensors: tuple[Any, ...], tables: Any) -> Any:
    """The buffers of an operator's call, through ``kdsl::quantize``."""
    x, scale, shift = check_quantized(operator.spec, tensors)
    if tables:
        raise UnsupportedError(
            "values of a recipe that come with a call are folded on the host",
            where="a call that torch compiles or differentiates",
            hint="op = op.bind(tables), before it is compiled",
        )
    values, name = _constants(operator, x.device)
    return tuple(torch.ops.kdsl.quantize(x, scale, shift, values, name))


def matmul(operator: MatmulOperator, given: Mapping[str, Any]) -> Any:
    """The product of an operator's call, through ``kdsl::matmul``."""
    free = {n: held for n, held in operator.operands.items() if n in given}
    check_matmul(operator.spec, given, wanted=free)
    device = next(iter(given.values())).device
    fixed, sums, name = _constants(operator, device)
    bound = dict(zip(operator.bound_names, fixed, strict=True))
    operands = [given[n] if n in given else bound[n] for n in operator.operands]
    return torch.ops.kdsl.matmul(operands, sums, operator.spec.rows, name)


def _constants(operator: Any, device: Any) -> Any:
    """What is bound, on a device, and the program's name: fixed while a graph is made."""
    if torch.compiler.is_compiling():
        from kdsl.runtime import row_constants

        if operator.identity == "":  # read, so that the graph is guarded by it
            raise AssertionError("an operator without an identity")
        return row_constants.constants(operator, device)
    return operator.constants(device)


def _quantize(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, values: list[Tensor], program: str
) -> list[Tensor]:
    with on(x.device):
        return program_named(program).quantize(x, scale, shift, values)


def _quantize_fake(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, values: list[Tensor], program: str
) -> list[Tensor]:
    return program_named(program).empty_buffers(x, x.shape[-2])


def _matmul(operands: list[Tensor], sums: Tensor | None, rows: int, program: str) -> Tensor:
    with on(operands[0].device):
        return program_named(program).matmul(operands, sums, rows)


def _matmul_fake(operands: list[Tensor], sums: Tensor | None, rows: Any, program: str) -> Tensor:
    spec: Any = program_named(program).spec
    return operands[0].new_empty((rows, spec.columns), dtype=getattr(torch, spec.dtype))


def _no_gradient(ctx: Any, *grads: Any) -> Any:
    raise UnsupportedError(
        "rounding to codes has no gradient",
        where="kdsl::quantize, kdsl::matmul",
        hint="torch.no_grad(); rotations alone have one: kdsl.nn.Transform",
    )


def _remember_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """Nothing is needed to say that there is no gradient."""


for _name, _run, _fake in (
    ("quantize", _quantize, _quantize_fake),
    ("matmul", _matmul, _matmul_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdsl::{_name}", _fake, lib=_library)
    torch.library.register_autograd(
        f"kdsl::{_name}", _no_gradient, setup_context=_remember_nothing, lib=_library
    )
