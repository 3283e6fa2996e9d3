"""The pre-pass on a GPU: the interpreter's suites with bfloat16, models' shapes, graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kdsl
from kdsl import Grid, layouts, orders
from kdsl.kernels.prepass.config import candidates
from kdsl.kernels.prepass.runner import PrepassRunner
from kdsl.kernels.prepass.tunable import PrepassTunable
from kdsl.runtime import codecache
from kdsl.specs import Prepass
from tests.devices import DEVICE, no_synchronisation, poisoned_memory
from tests.interpreter.prepass.test_property import *  # noqa: F403
from tests.interpreter.prepass.test_property import SPEC, built, here
from tests.interpreter.prepass.test_runner import *  # noqa: F403
from tests.preparing import by_name, inputs

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="in the interpreter these are the CPU's tests"),
]
WAN = Grid(frames=21, height=30, width=52)
COG = Grid(frames=13, height=30, width=45, text=226)
SIX = ("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN."""
    with poisoned_memory():
        yield


def models() -> dict[str, Prepass]:
    """Shapes, norms and rotations of real models, an order for each head."""
    layout = layouts.int8_qk_fp8_pv()
    wan = {"tokens": WAN, "heads": 12, "head_dim": 128, "rope": "interleaved", "smooth": True}
    several = [orders.axes(WAN, SIX[h % 6]) for h in range(12)]
    return {
        "wan": Prepass(**wan, norm="rms_token", layout=layout, order=several, pool=(128, 128)),
        "wan, one order": Prepass(**wan, norm="rms", layout=layout, order=several[2]),
        "wan, by thread": Prepass(
            **wan, norm="rms", layout=layouts.int8_qk_int8_pv("thread"), order=several
        ),
        "cog": Prepass(
            tokens=COG, heads=48, head_dim=64, norm="layer", rope="interleaved", smooth=True,
            layout=layout, pool=(64, 64), order=[orders.axes(COG, SIX[h % 6]) for h in range(48)],
        ),
        "16-bit v": Prepass(
            tokens=COG, heads=8, kv_heads=2, head_dim=80, dtype="float16", rope="half",
            layout=layouts.int8_qk(), order=orders.cubes(COG, (4, 5, 6)),
        ),
    }  # fmt: skip


def runner(spec: Prepass, batch: int = 1) -> PrepassRunner:
    """A runner on this GPU."""
    return PrepassRunner(PrepassTunable(spec, {}, batch), "cuda", codecache.load)


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("family", PrepassRunner.families)
def test_models(name: str, family: str) -> None:
    """Every number within its bound, with the default."""
    spec = models()[name]
    one = runner(spec)
    one.prepare(family, 0)
    one.poison()
    one.run(PrepassTunable(spec).default(here()))
    found = one.check()
    assert found.right, found


def test_configurations() -> None:
    """A sample of all that is legal, each right on poisoned outputs."""
    one = runner(SPEC, 2)
    one.prepare("random", 0)
    legal = candidates(SPEC, here())
    assert len(legal) > 500
    for config in legal[:: len(legal) // 40]:
        one.poison()
        one.run(config.to_json())
        found = one.check()
        assert found.right, f"{config}: {found}"


def test_calls_repeat_their_bits() -> None:
    """No sum depends on who comes first; a call like an earlier one takes the short way."""
    op, given = built(SPEC), inputs(SPEC, 2, 0, DEVICE)
    first = by_name(SPEC, op(*given.values()))
    for _ in range(3):
        again = by_name(SPEC, op(*given.values()))
        for name, x in first.items():
            assert torch.equal(x.view(torch.uint8), again[name].view(torch.uint8)), name


def test_graphs_replay_on_new_numbers() -> None:
    """Nothing waits, and what a graph recorded reads its tensors anew."""
    op, given = built(SPEC), inputs(SPEC, 1, 0, DEVICE)
    given = {n: x.contiguous() for n, x in given.items()}
    op(*given.values())
    torch.cuda.synchronize()
    with no_synchronisation():
        op(*given.values())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = op(*given.values())
    other = inputs(SPEC, 1, 1, DEVICE)
    for name, x in given.items():
        x.copy_(other[name])
    graph.replay()
    torch.cuda.synchronize()
    check(SPEC, made, other)  # noqa: F405


def test_more_than_32_bits_count() -> None:
    """Rows, heads and items so far apart that offsets need 64 bits."""
    spec = Prepass(
        tokens=70, heads=2, head_dim=64, dtype="float16", layout=layouts.int8_qk_fp8_pv(),
        smooth=True, norm="rms",
    )  # fmt: skip
    given = inputs(spec, 2, 0, DEVICE)
    wide = torch.empty(2**31 + 2**20, dtype=torch.float16, device=DEVICE)
    for name in "qkv":
        for strides in ((2**30, 2**29, 64, 1), (64 * 140, 2**31, 64, 1), (128, 64, 2**24, 1)):
            far = torch.as_strided(wide, given[name].shape, strides)
            far.copy_(given[name])
            check(spec, built(spec)(*{**given, name: far}.values()), given)  # noqa: F405


def test_the_doctor_knows_it() -> None:
    """Each of its subjects runs here and is right."""
    from kdsl.runtime import doctor

    found = [s for _, _, op, s in doctor.subjects() if op == "prepass"]
    assert found
    for spec in found[:4]:
        status, note = doctor.run(spec, here(), "prepass")
        assert status == doctor.MEASURED, note


def test_attention_on_this_gpu_takes_a_model() -> None:
    """Wan's shape through both operators: finite, and as wide as it should be."""
    spec = models()["wan"]
    given = inputs(spec, 1, 0, DEVICE)
    took = spec.attention(mask=kdsl.masks.window(WAN, (3, 9, 9)))
    out = kdsl.build(took, mode="off")(*built(spec)(*given.values()).operands)
    assert out.shape == (1, 12, 32760, 128)
    assert bool(out.isfinite().all())
