"""The matmul kernels on a GPU: the interpreter's suite, Hopper's template, layers, graphs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kdsl
from kdsl import targets
from kdsl.errors import InputError
from kdsl.kernels.matmul.config import SPACE, Config
from kdsl.kernels.matmul.facts import view
from kdsl.kernels.matmul.launch import capability_of
from kdsl.kernels.matmul.rule import problem
from kdsl.kernels.matmul.runner import MatmulRunner
from kdsl.kernels.matmul.tunable import MatmulTunable
from kdsl.runtime import codecache
from kdsl.runtime.builder import device_target
from kdsl.specs import Matmul
from kdsl.specs.matmul import ACTIVATIONS
from tests.devices import DEVICE, examples, no_synchronisation, poisoned_memory
from tests.interpreter.matmul.test_property import *  # noqa: F403
from tests.matrices import check, matmuls, operands, packed, packed_matmuls, spec_of

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]
LAYERS = ((4608, 3072, 12288), (4608, 12288, 3072), (32760, 1536, 8960))
DTYPES = ("bfloat16", "float16", "float32")
CODES = (("int8", False), ("int8", True), ("fp8", False))


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    with poisoned_memory():
        yield


def here() -> targets.Target:
    """This GPU."""
    target = device_target()
    assert target is not None
    return target


def hopper_only() -> None:
    """Skip where the Hopper template cannot run."""
    if here().capability != (9, 0):
        pytest.skip("needs compute capability 9.0")


def runner(spec: Matmul) -> MatmulRunner:
    """A runner on this GPU."""
    return MatmulRunner(MatmulTunable(spec), "cuda", codecache.load)


def passes(one: MatmulRunner, config: Config, family: str) -> None:
    """A configuration's results are right on poisoned outputs."""
    one.prepare(family, 0)
    one.poison()
    one.run(config.to_json())
    found = one.check()
    assert found.right, f"{config}, {family}: {found}"


def moved(spec: Matmul, given: dict[str, Any]) -> list[Any]:
    """Operands on the GPU, in order."""
    return [
        torch.from_numpy(np.ascontiguousarray(given[n])).to("cuda", getattr(torch, dtype))
        for n, (_, dtype) in spec.operands.items()
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=examples(15))
@given(spec=matmuls(DTYPES[:1], step=16), seed=st.integers(0, 99))
def test_any_product_by_hoppers_template(dtype: str, spec: Matmul, seed: int) -> None:
    """Ragged rows, columns and K, every epilogue: within the bound, and twice the same bits."""
    hopper_only()
    spec = replace(spec, dtype=dtype)
    given = operands(spec, seed)
    for name in ("bias", "residual"):
        if name in given and spec.dtype == "bfloat16":
            given[name] = torch.from_numpy(given[name]).bfloat16().float().numpy()
    op = kdsl.build(spec, backend="gluon", mode="off")
    tensors = moved(spec, given)
    first = op(*tensors)
    check(spec, first, given, capability_of(first.device))
    assert torch.equal(op(*tensors), first)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=examples(10))
@given(spec=packed_matmuls(DTYPES[:1]), seed=st.integers(0, 99), residual=st.booleans())
def test_any_product_of_four_bits_by_hoppers_template(
    dtype: str, spec: Matmul, seed: int, residual: bool
) -> None:
    """Both units, log and uniform books, ragged rows and columns: within the bound."""
    hopper_only()
    spec = replace(spec, dtype=dtype, columns=8 * spec.columns, residual=residual)
    assume(view(spec).bits == 4 and view(spec).group % 128 == 0)
    given = operands(spec, seed)
    for name in ("bias", "residual"):
        if name in given and spec.dtype == "bfloat16":
            given[name] = torch.from_numpy(given[name]).bfloat16().float().numpy()
    op = kdsl.build(spec, backend="gluon", mode="off")
    found = op(*moved(spec, given))
    check(spec, found, given, capability_of(found.device))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_models_layers_with_few_bits(code: str, bits: int, layer: tuple[int, int, int]) -> None:
    """The defaults of both templates on whole layers: every number within its bound."""
    rows, inner, columns = layer
    spec = spec_of(
        code, rows=rows, inner=inner, columns=columns, dtype="bfloat16", bias=True,
        residual=inner > columns, weight=packed(bits, code),
    )  # fmt: skip
    one = runner(spec)
    for template in ("hopper", "portable"):
        if template == "hopper" and (here().capability != (9, 0) or bits == 3):
            continue
        config = Config.from_json(MatmulTunable(spec, (template,)).default(here()))
        for family in one.families:
            passes(one, config, family)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize(("code", "asymmetric"), CODES)
def test_models_layers(code: str, asymmetric: bool, layer: tuple[int, int, int]) -> None:
    """The default of every template on whole layers, both kinds of inputs, bias and GELU or
    residual: every number within its bound; sums of small integers exactly right."""
    rows, inner, columns = layer
    wide = columns > inner
    spec = spec_of(
        code, asymmetric, rows=rows, inner=inner, columns=columns, dtype="bfloat16", bias=True,
        activation="gelu_tanh" if wide else None, residual=not wide,
    )  # fmt: skip
    one = runner(spec)
    for template in ("hopper", "portable"):
        if template == "hopper" and here().capability != (9, 0):
            continue
        config = Config.from_json(MatmulTunable(spec, (template,)).default(here()))
        for family in one.families:
            passes(one, config, family)


@pytest.mark.parametrize(("code", "asymmetric"), CODES)
def test_every_epilogue_of_hoppers_template(code: str, asymmetric: bool) -> None:
    """Activations, residuals and output types, a ragged shape of several tiles a program."""
    hopper_only()
    for activation, residual, dtype in itertools.product(
        (None, *ACTIVATIONS), (False, True), ("bfloat16", "float16", "float32")
    ):
        spec = spec_of(
            code, asymmetric, rows=1999, inner=1040, columns=3080, dtype=dtype, bias=True,
            activation=activation, residual=residual,
        )  # fmt: skip
        config = Config.from_json(MatmulTunable(spec, ("hopper",)).default(here()))
        one = runner(spec)
        for family in one.families:
            passes(one, config, family)


@pytest.mark.parametrize("template", ["hopper", "portable"])
@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_every_configuration(code: str, template: str) -> None:
    """All tiles that are legal, on a shape that none of them divides: each right, and int8 sums
    the same bits from each."""
    space = {**SPACE, "template": (template,), "group": (1, 8)}
    every = [Config(**dict(zip(space, c, strict=True))) for c in itertools.product(*space.values())]
    spec = spec_of(code, rows=777, inner=1104, columns=1480, dtype="float32", bias=True)
    legal = [c for c in every if problem(spec, c, here()) is None]
    if not legal:
        pytest.skip(f"no {template} configuration is legal here")
    rng = np.random.default_rng(0)
    one, first = runner(spec), None
    one.prepare("small", 0)
    for i in rng.choice(len(legal), min(40, len(legal)), replace=False):
        one.poison()
        one.run(legal[i].to_json())
        found = one.check()
        assert found.right, f"{legal[i]}: {found}"
        first = one.out.clone() if first is None else first
        if code == "int8":
            assert torch.equal(one.out.nan_to_num(), first.nan_to_num())


def test_a_graph_replays_on_new_numbers() -> None:
    """Captured once, without synchronisation, by both templates, it computes what lies in its
    inputs; the launch it captured is the prepared one."""
    spec = spec_of("int8", True, rows=500, inner=1024, columns=1536, bias=True, residual=True)
    for backend in ("gluon", "triton") if here().capability == (9, 0) else ("triton",):
        op = kdsl.build(spec, backend=backend, mode="off")
        given = operands(spec, 0)
        fixed = {n: v for n, v in given.items() if n.startswith(("weight", "bias"))}
        bound = op.bind(fixed)
        names = [n for n in spec.operands if n not in fixed]
        tensors = dict(zip(spec.operands, moved(spec, given), strict=True))
        inputs = [tensors[n] for n in names]
        for _ in range(2):
            bound(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with no_synchronisation(), torch.cuda.graph(graph):
            out = bound(*inputs)
        for seed in (1, 2):
            fresh = {**operands(spec, seed), **fixed}
            for t, new in zip(inputs, (fresh[n] for n in names), strict=True):
                t.copy_(torch.from_numpy(new))
            out.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            check(spec, out, fresh, capability_of(out.device))


def test_prepared_launches_follow_their_tensors() -> None:
    """Other tensors, strides, streams and misaligned residuals give their own results."""
    spec = spec_of(rows=300, inner=512, columns=640, dtype="bfloat16", residual=True)
    op = kdsl.build(spec, mode="off")
    for seed in range(3):
        given = operands(spec, seed)
        given["residual"] = torch.from_numpy(given["residual"]).bfloat16().float().numpy()
        tensors = moved(spec, given)
        wanted = op(*tensors)
        check(spec, wanted, given, capability_of(wanted.device))
        room = torch.zeros((300, 656), dtype=torch.bfloat16, device="cuda")
        for shift in (0, 1, 8):
            room[:, shift : shift + 640] = tensors[-1]
            assert torch.equal(op(*tensors[:-1], room[:, shift : shift + 640]), wanted)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = op(*tensors)
        torch.cuda.synchronize()
        assert torch.equal(again, wanted)


def test_outputs_beyond_two_to_the_thirty_one() -> None:
    """Offsets of more than 2**31 elements: the last rows are those of a small call."""
    rows, columns = 2**31 // 8192 + 300, 8192
    if torch.cuda.mem_get_info()[0] < 3 * rows * columns:
        pytest.skip("needs 7 GB of free memory")
    large = spec_of(rows=rows, inner=64, columns=columns)
    small = spec_of(rows=256, inner=64, columns=columns)
    given = moved(small, operands(small))
    x = torch.zeros((rows, 64), dtype=torch.int8, device="cuda")
    scales = torch.ones((rows, 1), device="cuda")
    x[-256:], scales[-256:] = given[0], given[1]
    for backend in ("gluon", "triton") if here().capability == (9, 0) else ("triton",):
        wanted = kdsl.build(small, backend=backend, mode="off")(*given)
        found = kdsl.build(large, backend=backend, mode="off")(x, scales, *given[2:])
        assert torch.equal(found[-256:], wanted)
        assert not found[:-256].any()
        del found


def test_a_cpu_tensor_is_refused() -> None:
    """With the way out."""
    spec = spec_of()
    cpu = [torch.from_numpy(v) for v in operands(spec).values()]
    with pytest.raises(InputError, match="on the CPU"):
        kdsl.build(spec, mode="off")(*cpu)
