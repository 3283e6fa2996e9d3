"""The quantize kernel on a GPU: the interpreter's suite with bfloat16, models' widths, graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kdsl
from kdsl import layouts, targets
from kdsl.kernels.quantize.config import Config, candidates
from kdsl.kernels.quantize.runner import QuantizeRunner
from kdsl.kernels.quantize.tunable import QuantizeTunable
from kdsl.layouts import Outline
from kdsl.runtime import codecache
from kdsl.runtime.builder import device_target
from kdsl.specs import Quantize
from tests.devices import DEVICE, no_synchronisation, poisoned_memory
from tests.interpreter.quantize.test_property import *  # noqa: F403
from tests.quantizing import check, inputs, values

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]
HADAMARD = Outline((("hadamard", 128),))
SIGNED = Outline((("signs", 0), ("hadamard", 128)))
WIDTHS = (1152, 3072, 12288, 15360, 18944)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    with poisoned_memory():
        yield


def runner(spec: Quantize, batch: int = 1) -> tuple[QuantizeRunner, targets.Target]:
    """A runner on this GPU."""
    target = device_target()
    assert target is not None
    return QuantizeRunner(QuantizeTunable(spec, None, batch), "cuda", codecache.load), target


def passes(one: QuantizeRunner, config: Config, family: str = "random") -> None:
    """A configuration's results are right on poisoned outputs."""
    one.prepare(family, 0)
    one.poison()
    one.run(config.to_json())
    found = one.check()
    assert found.right, f"{config}: {found}"


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("code", ["int8", "fp8", "int4"])
def test_models_widths(columns: int, code: str) -> None:
    """4,608 rows in bfloat16, by token and by groups of 128, both kinds of inputs, as the default
    has it: every number within its bound."""
    for group in (None, 128):
        fmt = layouts.activations(code, group)
        spec = Quantize(rows=4608, columns=columns, recipe=SIGNED, format=fmt)
        one, target = runner(spec)
        config = Config.from_json(one_default(spec, target))
        for family in one.families:
            passes(one, config, family)


def one_default(spec: Quantize, target: targets.Target) -> dict[str, Any]:
    """The default of a spec."""
    return QuantizeTunable(spec).default(target)


def test_every_configuration_of_a_width() -> None:
    """All that is legal at 3,072 columns, ragged rows: a hundred or so, each right."""
    spec = Quantize(rows=777, columns=3072, recipe=SIGNED, format=layouts.activations())
    one, target = runner(spec)
    one.prepare("random", 0)
    legal = [c for c in candidates(spec, target) if c.workers in (0, 2, 3)]
    assert len(legal) > 20
    for config in legal:
        one.poison()
        one.run(config.to_json())
        found = one.check()
        assert found.right, f"{config}: {found}"


@pytest.mark.parametrize(
    "spec",
    [
        Quantize(
            rows=1000,
            columns=3072,
            recipe=Outline((("mean", 0), ("channels", 0), ("signs", 0), ("hadamard", 128))),
            format=layouts.activations(),
            norm="layer",
            modulate=True,
        ),
        Quantize(
            rows=1000,
            columns=3072,
            recipe=Outline((("rotate", 128), ("channels", 0), ("rotate", 128))),
            format=layouts.activations("int4"),
        ),
        Quantize(
            rows=1000,
            columns=12288,
            recipe=Outline((("smooth", 0), ("hadamard", 256))),
            format=layouts.activations("fp8", 128),
            activation="gelu_tanh",
        ),
        Quantize(
            rows=1000,
            columns=3420,
            recipe=Outline((("hadamard", 180),)),
            format=layouts.activations(),
        ),
        Quantize(
            rows=1000, columns=3584, format=layouts.activations("int8", None, True), norm="rms"
        ),
    ],
    ids=["norm and permutation", "two rotations", "smoothed, 256", "order 180", "asymmetric"],
)
def test_everything_before_a_rotation(spec: Quantize) -> None:
    """Norm, modulation, activation, factors, means, orders, two rotations, odd blocks: in batches
    of two, both kinds of inputs."""
    one, target = runner(spec, 2)
    for family in one.families:
        passes(one, Config.from_json(one_default(spec, target)), family)


def test_a_graph_replays_on_new_numbers() -> None:
    """Captured once, without synchronisation, it computes whatever lies in its input."""
    spec = Quantize(rows=512, columns=3072, recipe=SIGNED, format=layouts.activations())
    tables = values(spec)
    op = kdsl.build(spec, tables=tables, mode="off")
    x = inputs(spec, None, 0, "cuda")[0]
    op(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with no_synchronisation(), torch.cuda.graph(graph):
        out = op(x)
    for seed in (1, 2):
        x.copy_(inputs(spec, None, seed, "cuda")[0])
        for t in out:
            t.fill_(1)
        graph.replay()
        torch.cuda.synchronize()
        check(spec, out, (x,), tables)


def test_calls_repeat_their_bits() -> None:
    """The same numbers give the same bits, on another stream too."""
    spec = Quantize(rows=2048, columns=12288, recipe=SIGNED, format=layouts.activations("fp8"))
    op, x = kdsl.build(spec, tables=values(spec), mode="off"), inputs(spec, None, 0, "cuda")[0]
    first = op(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = op(x)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_rows_beyond_two_to_the_thirty_one() -> None:
    """Offsets of more than 2**31 elements, in and out: the last rows are those of a small call."""
    free, _ = torch.cuda.mem_get_info()
    rows, columns = 2**31 // 3072 + 512, 3072
    if free < 4 * rows * columns:
        pytest.skip("needs 9 GB of free memory")
    spec = Quantize(rows=rows, columns=columns, recipe=HADAMARD, format=layouts.activations())
    x = torch.zeros((rows, columns), dtype=torch.bfloat16, device="cuda")
    last = Quantize(rows=256, columns=columns, recipe=HADAMARD, format=layouts.activations())
    x[-256:] = inputs(last, None, 0, "cuda")[0]
    codes, scales = kdsl.build(spec, mode="off")(x)
    wanted = kdsl.build(last, mode="off")(x[-256:].clone())
    assert torch.equal(codes[-256:], wanted[0])
    assert torch.equal(scales[-256:], wanted[1])
    assert not codes[:-256].any()
