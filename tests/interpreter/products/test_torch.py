"""Quantize and Matmul inside torch: torch.compile, fake tensors, the operations by themselves.

By the reference and by the kernels in the interpreter; on a GPU the same runs from
`tests/kernels/matmul/test_torch_gpu.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kdsl import layouts
from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.layouts import Outline
from kdsl.runtime import build, row_program, torch_rows
from kdsl.runtime.matmul import MatmulOperator
from kdsl.runtime.quantize import QuantizeOperator
from kdsl.runtime.row_program import RowProgram
from kdsl.specs import Matmul, Quantize
from tests.devices import DEVICE
from tests.matrices import operands, packed, spec_of
from tests.quantizing import inputs, values

BACKENDS = pytest.mark.parametrize("backend", ["reference", "triton"])
pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")

TURN = Outline((("mean", 0), ("channels", 0), ("signs", 0), ("hadamard", 32), ("rotate", 16)))
QUANTIZE = Quantize(
    rows=8, columns=128, format=layouts.activations("int8", None, True), recipe=TURN,
    dtype="float32", norm="layer", modulate=True,
)  # fmt: skip
MATMUL = spec_of("int8", True, rows=8, inner=128, bias=True, residual=True, activation="silu")


def quantizing(backend: str, spec: Quantize = QUANTIZE, seed: int = 0) -> QuantizeOperator:
    """An operator with a recipe's values."""
    op = build(spec, backend=backend, tables=values(spec, seed))
    assert isinstance(op, QuantizeOperator)
    return op


def product(backend: str, spec: Matmul = MATMUL, seed: int = 0) -> tuple[MatmulOperator, Any]:
    """An operator with a weight and a bias, and what else its calls take."""
    given = {n: torch.from_numpy(v).to(DEVICE) for n, v in operands(spec, seed).items()}
    fixed = {n: t for n, t in given.items() if n.startswith(("weight", "bias"))}
    op = build(spec, backend=backend, tables=fixed)
    assert isinstance(op, MatmulOperator)
    return op, [t for n, t in given.items() if n not in fixed]


@BACKENDS
def test_compiled(backend: str) -> None:
    """Quantizing, a product and what stands around them are one graph without a break, with the
    bits of eager calls."""
    turn = quantizing(backend)
    op, (*_, residual) = product(backend)
    given = inputs(QUANTIZE, None, 1, DEVICE)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Any, scale: Any, shift: Any, residual: Any) -> Any:
        return op(*turn(x * 2, scale, shift), residual + 1).sin()

    wanted = op(*turn(given[0] * 2, *given[1:]), residual + 1).sin()
    assert torch.equal(compiled(*given, residual), wanted)
    assert torch.isfinite(wanted).all()


@BACKENDS
def test_a_batch_is_compiled(backend: str) -> None:
    """A batch axis of quantize, also an empty one, goes through the operation."""
    op = quantizing(backend)
    for batch in (3, 0):
        given = inputs(QUANTIZE, batch, 2, DEVICE)
        found = torch.compile(op, fullgraph=True, backend="aot_eager")(*given)
        for mine, theirs in zip(found, op(*given), strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)


@BACKENDS
def test_graphs_of_operators_are_told_apart(backend: str) -> None:
    """Layers that are compiled one by one run the same code, each with its own values."""
    torch._dynamo.reset()
    given = inputs(QUANTIZE, None, 3, DEVICE)

    class Layer(torch.nn.Module):
        def __init__(self, op: Any) -> None:
            super().__init__()
            self.op = op

        def forward(self, *tensors: Any) -> Any:
            return self.op(*tensors)

    found = []
    for seed in (0, 1, 2):
        turn, (op, rest) = quantizing(backend, seed=seed), product(backend, seed=seed)
        for one, tensors in ((turn, given), (op, rest)):
            compiled = torch.compile(Layer(one), fullgraph=True, backend="aot_eager")
            out, wanted = compiled(*tensors), one(*tensors)
            pairs = zip(out, wanted, strict=True) if one is turn else [(out, wanted)]
            assert all(torch.equal(a, b) for a, b in pairs)
        found.append(wanted)
    assert not torch.equal(found[0], found[1])


@BACKENDS
@pytest.mark.parametrize("weight", ["w8", "slog4", "slog3"])
def test_rows_change_from_call_to_call(backend: str, weight: str) -> None:
    """One program for any number of rows: the operations give what an operator for these rows
    gives, also for none, and a compiled graph is made at most twice."""
    inner = 128
    spec = spec_of(inner=inner, bias=True)
    if weight != "w8":
        spec = spec_of(inner=inner, bias=True, weight=packed(int(weight[-1]), "int8", 64))
    coded = Quantize(rows=1, columns=inner, format=spec.x, dtype="float16")
    programs = [RowProgram(s, backend) for s in (coded, spec)]
    names = [torch_rows.remember(p).name for p in programs]
    held = [torch.from_numpy(v).to(DEVICE) for v in list(operands(spec).values())[2:]]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def layer(x: Any) -> Any:
        codes = torch.ops.kdsl.quantize(x, None, None, [], names[0])
        return torch.ops.kdsl.matmul([*codes, *held], None, x.shape[0], names[1])

    for rows in (5, 16, 7, 33):
        x = torch.randn(rows, inner, dtype=torch.float16, device=DEVICE)
        codes = build(Quantize(rows=rows, columns=inner, format=spec.x, dtype="float16"),
                      backend=backend)(x)  # fmt: skip
        config = programs[1].at(rows).config or None
        wanted = build(replace(spec, rows=rows), backend=backend, config=config)(*codes, *held)
        assert torch.equal(layer(x), wanted), rows
    assert counter.frame_count == 1
    empty = x[:0]
    none = torch.ops.kdsl.quantize(empty, None, None, [], names[0])
    assert [tuple(t.shape) for t in none] == [(0, inner), (0, 1)]
    out = torch.ops.kdsl.matmul([*none, *held], None, 0, names[1])
    assert tuple(out.shape) == (0, spec.columns)
    assert out.dtype == torch.float16


def test_numbers_of_rows_share_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration is chosen for a power of two and given to those below it; what is not legal
    for one of them is chosen anew; a bounded number of operators stays."""
    asked: list[tuple[int, bool]] = []

    def counting(spec: Any, **options: Any) -> Any:
        given = options.get("config") is not None
        asked.append((spec.rows, given))
        if spec.rows == 6 and given:
            raise ConfigError("not for six")
        return build(spec, **options)

    monkeypatch.setattr(row_program, "build", counting)
    program = RowProgram(spec_of(inner=128), "triton")
    held = [program.at(n) for n in (5, 7, 8, 5, 6)]
    # Eight first, for all; then each with what was found; six on its own in the end.
    assert asked == [(8, False), (5, True), (7, True), (8, True), (6, True), (6, False)]
    assert held[0] is held[3]
    assert dict(held[0].config) == dict(held[2].config)
    for rows in range(9, 9 + row_program.KEPT_ROWS):
        program.at(rows)
    assert len(program._operators) == row_program.KEPT_ROWS
    assert program.at(5) is not held[0]
    given = RowProgram(spec_of(inner=128), "triton", dict(held[0].config))
    asked.clear()
    given.at(3)
    assert asked == [(3, True)]


@BACKENDS
def test_the_operations_themselves(backend: str) -> None:
    """Schema, fake tensors, dispatch: what torch itself checks of an operation."""
    turn, (op, (codes, scales, zeros, residual)) = quantizing(backend), product(backend)
    device = codes.device
    taken, name = turn.constants(device)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.kdsl.quantize.default,
        (*inputs(QUANTIZE, None, 1, DEVICE), taken, name), test_utils=utilities,
    )  # fmt: skip
    fixed, sums, name = op.constants(device)
    assert (sums is None) == (backend == "reference")
    bound = dict(zip(op.bound_names, fixed, strict=True))
    free = {"x_codes": codes, "x_scales": scales, "x_zeros": zeros, "residual": residual}
    taken = [{**bound, **free}[n] for n in MATMUL.operands]
    args = (taken, sums, MATMUL.rows, name)
    torch.library.opcheck(torch.ops.kdsl.matmul.default, args, test_utils=utilities)


def test_a_program_is_made_again_of_its_name() -> None:
    """From canonical JSON alone, as in another process; one of a name is enough."""
    for spec in (QUANTIZE, MATMUL):
        program = RowProgram(spec, "triton", {"num_warps": 4})
        again = RowProgram.from_name(program.name)
        assert again.spec == spec
        assert again.name == program.name
        assert torch_rows.program_named(program.name) is torch_rows.program_named(again.name)


@BACKENDS
def test_nobody_differentiates_codes(backend: str) -> None:
    """A gradient that is asked for is an error that says what has one, never zero in silence."""
    turn, (op, rest) = quantizing(backend), product(backend)
    x, *others = inputs(QUANTIZE, None, 1, DEVICE)
    _, scales, *_ = turn(x.requires_grad_(), *others)
    with pytest.raises(UnsupportedError, match=r"(?s)no gradient.*Transform"):
        scales.sum().backward()
    out = op(*rest[:-1], rest[-1].requires_grad_())
    with pytest.raises(UnsupportedError, match="no gradient"):
        out.sum().backward()


@BACKENDS
def test_what_does_not_fit_is_named_while_traced(backend: str) -> None:
    """Shapes are checked before anything is traced; a recipe's values must be bound."""
    op = quantizing(backend)
    x, *others = inputs(QUANTIZE, None, 1, DEVICE)
    with pytest.raises((InputError, torch._dynamo.exc.Unsupported), match="has shape"):
        torch.compile(op, fullgraph=True, backend="aot_eager")(x[:, :64], *others)
    with pytest.raises(UnsupportedError, match=r"op\.bind"):
        op(x.requires_grad_(), *others, tables=values(QUANTIZE))
