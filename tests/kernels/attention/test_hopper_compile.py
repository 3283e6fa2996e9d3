"""The Hopper template without a GPU: legality, launch arguments, what the compiler makes of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsl import build, masks, orders, targets
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.grid import Grid
from kdsl.kernels.attention import generate, launch
from kdsl.kernels.attention.arguments import add_tables
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.fallback import chosen, fitting
from kdsl.kernels.attention.hopper import config as hopper
from kdsl.kernels.attention.hopper import launch as hopper_launch
from kdsl.kernels.attention.hopper.launch import copied_rows
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime.aot import compile_ahead, compile_for
from kdsl.runtime.compiled import sass
from kdsl.runtime.predict import predict
from kdsl.runtime.program import as_lists
from kdsl.specs import HEAD_DIMS, Attention
from kdsl.work import AheadOfTime

triton = pytest.importorskip("triton")
torch = pytest.importorskip("torch")

H100 = targets.get("h100")
GRID = Grid(frames=5, height=9, width=14, text=20)
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
LATE = Config(128, 128, 8, 2, "descriptor", "hopper", workers=1)


def spec_of(head_dim: int = 128, **fields: object) -> Attention:
    """A causal spec of four heads on a ragged grid."""
    plain = {"tokens": GRID, "heads": 4, "head_dim": head_dim, "mask": masks.causal()}
    return Attention(**{**plain, **fields})  # type: ignore[arg-type]


def tunable_of(spec: Attention) -> AttentionTunable:
    """What may be chosen about the template."""
    return AttentionTunable(spec, templates=("hopper",))


def why_not(spec: Attention, config: Config, gpu: str = "h100") -> str | None:
    """The reason against a configuration."""
    return tunable_of(spec).legal(config.to_json(), targets.get(gpu))


AXES = ("HWF", "FHW", "WHF", "FHW")


@pytest.mark.parametrize(
    ("change", "fields", "reason"),
    [
        ({}, {"dtype": "float32"}, "no products of float32"),
        (
            {},
            {"kv_heads": 2, "order": orders.per_head([orders.axes(GRID, n) for n in AXES])},
            "several key orders",
        ),
        ({}, {"block": (64, 128)}, "do not divide"),
        ({"num_warps": 4}, {}, "take 8 warps"),
        ({"block_m": 64, "num_warps": 4, "pingpong": True}, {}, "take turns"),
        ({"workers": 2}, {}, "one worker"),
        ({"num_stages": 1, "overlap": "early", "block_n": 64}, {}, "keys of two steps"),
        ({"overlap": "early"}, {}, "registers a thread"),
        ({"num_stages": 3}, {}, "bytes of shared memory"),
        ({"block_m": 64, "num_warps": 4, "workers": 2}, {}, "do not fit a multiprocessor"),
        ({"loads": "pointer"}, {}, "in the hopper template"),
    ],
)
def test_what_is_illegal(change: dict[str, object], fields: dict[str, object], reason: str) -> None:
    """Each limit refuses with its reason what is else the default's neighbour."""
    assert why_not(spec_of(), LATE) is None
    assert reason in str(why_not(spec_of(**fields), replace(LATE, **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize("gpu", ["a100", "l40s", "b200"])
def test_other_architectures_run_the_portable_template(gpu: str) -> None:
    """The template is for 9.0 alone; elsewhere it is not in the space, and asking for it fails."""
    assert "9.0" in str(why_not(spec_of(), LATE, gpu))
    assert AttentionTunable(spec_of()).space(targets.get(gpu))["template"] == ("portable",)
    with pytest.raises(ConfigError, match=r"9\.0"):
        build(spec_of(), gpu=gpu, backend="gluon")


def test_the_backend_picks_the_template() -> None:
    """Nobody asking, the faster one is taken; who asks for one gets it, whatever is faster, and no
    configuration of the other."""
    by = {b: build(spec_of(), gpu="h200", backend=b) for b in (None, "gluon", "triton")}
    assert [op.config["template"] for op in by.values()] == ["hopper", "hopper", "portable"]
    assert [op.backend for op in by.values()] == ["gluon", "gluon", "triton"]
    assert "warp_specialize" in by["gluon"].source
    assert "warp_specialize" not in by["triton"].source
    assert "backend    gluon" in by["gluon"].explain()
    for name, other in (("triton", "gluon"), ("gluon", "triton")):
        with pytest.raises(ConfigError, match=f'for backend="{other}" alone'):
            build(spec_of(), gpu="h200", backend=name, config=by[other].config)
        assert build(spec_of(), gpu="h200", config=by[other].config).backend == other
    single = build(spec_of(dtype="float32"), gpu="h100")
    assert single.config["template"] == "portable"
    with pytest.raises(UnsupportedError, match="cuda"):
        build(spec_of(), gpu="h100", backend="cuda")


def test_registers_fit_a_multiprocessor() -> None:
    """At launch all programs that are to reside fit, and consumers get what the others gave."""
    for config, at_launch, consumer in (
        (LATE, 168, 240),
        (replace(LATE, block_m=64, num_warps=4, workers=2), 128, 232),
        (replace(LATE, block_m=64, num_warps=4, workers=3), 80, 136),
    ):
        found = hopper.resources(config)
        assert (found.at_launch, found.consumer) == (at_launch, consumer)
        groups = hopper.consumers(config) + 1
        assert groups * 128 * found.at_launch * hopper.resident(config) <= 65536
        held = hopper.consumers(config) * found.consumer + hopper.PRODUCER_REGISTERS
        assert held <= groups * found.at_launch


@pytest.mark.parametrize(
    ("head_dim", "side"), [(64, 128), (128, 128), (96, 128), (64, 64), (128, 64)]
)
def test_the_default_compiles_as_the_template_counts_on(head_dim: int, side: int) -> None:
    """No spills, no serialised products, as many of them as the loops hold, and a barrier of the
    warpgroup before each arrival: one thread arrives for all, so all must have got there."""
    spec = spec_of(head_dim, block=(side, side))
    tunable = tunable_of(spec)
    config = Config.from_json(tunable.default(H100))
    assert config.template == "hopper"
    made = compile_for(tunable, config.to_json(), H100)
    assert made.spill_bytes == 0
    assert made.registers <= hopper.resources(config).at_launch
    assert made.warps == 4 * (hopper.consumers(config) + 1)
    said = tunable.shared_bytes(config, H100)
    assert made.shared_bytes <= said <= 1.1 * made.shared_bytes
    parts = 2 if head_dim == 96 else 1
    scores, values = head_dim // 16, parts * config.block_n // 16
    each = 4 * scores + 3 * values
    assert sass(made.cubin).count("HGMMA") == hopper.consumers(config) * each
    check_arrivals(made.ptx)
    assert "C75" not in warnings_of(made.ptx)


def check_arrivals(ptx: str, least: int = 8) -> None:
    """AssertionError if something that an arrival stands for happens after the last barrier, or if
    fewer than ``least`` arrive."""
    wanted = re.compile(r"^\s*bar(\.warp)?\.sync")
    events = re.compile(r"wgmma\.wait_group|ld\.shared\.v4|bulk\.wait_group|st\.shared\.v4")
    lines, seen = ptx.splitlines(), 0
    for at, line in enumerate(lines):
        if "mbarrier.arrive.shared" in line:
            before = next(
                text for text in reversed(lines[:at]) if wanted.match(text) or events.search(text)
            )
            assert wanted.match(before), f"line {at}: {before}"
            seen += 1
    assert seen >= least


def warnings_of(ptx: str) -> str:
    """What ptxas says of a kernel."""
    done = subprocess.run(
        [str(PTXAS), "-v", "--gpu-name=sm_90a", "-", "-o", "/dev/null"],
        input=ptx, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "registers" in done.stderr
    return done.stderr


def test_generated_source_is_the_template() -> None:
    """A generated file holds every function of the template's modules, and imports none of them."""
    spec = spec_of()
    text = generate.hopper_source(spec)
    assert "kdsl" not in text
    for path in generate.HOPPER:
        for name in re.findall(r"^def (\w+)", path.read_text(), re.M):
            assert text.count(f"\ndef {name}(") == 1
    assert "tl." not in text
    compile(text, "generated", "exec")


def test_launch_order_and_counters() -> None:
    """Heavy heads first and long rows first in each; a list's counters start at 0."""
    kept = np.zeros((2, 3, 4), np.uint8)
    kept[0, 0, :1], kept[0, 1, :2] = 1, 1
    kept[1, :, :] = np.tri(3, 4, 1)
    spec = Attention(tokens=None, queries=384, keys=512, heads=2, head_dim=128,
                     mask=masks.blocks("plan"))  # fmt: skip
    blocks = AttentionTunable(spec, {"plan": kept}).blocks
    assert blocks is not None
    held = launch.lists(blocks, 2, "cpu")
    assert held.tiles.tolist() == [5, 4, 3, 1, 0, 2]
    assert held.counter(0).tolist() == [0]


class Recorded:
    """A kernel that remembers how it was launched, first by Triton and then directly."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, names: list[str]) -> None:
        self.arg_names, self.first, self.again = names, [], []  # type: ignore[var-annotated]

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        def call(**values: object) -> Recorded:
            self.first.append((grid, values))
            return self

        return call

    def launch_metadata(self, *arguments: object) -> None:
        """Nothing to tell a profiler."""

    def run(self, *arguments: object) -> None:
        """A launch without Triton's own work."""
        self.again.append(arguments)


@pytest.mark.parametrize("head_dim", [128, 96])
def test_a_second_call_launches_with_the_same_arguments(head_dim: int) -> None:
    """Only the tensors are others: in place of each, and below each descriptor, and the tables are
    the call's.  Other strides go through Triton again."""
    from kdsl.kernels.attention.hopper.forward import attention_forward

    spec = spec_of(head_dim, return_lse=True)
    fn = Recorded(attention_forward.arg_names)
    module = type("Module", (), {"attention_forward": fn})
    blocks = AttentionTunable(spec).blocks
    assert blocks is not None
    held, tables = launch.lists(blocks, 4, "cpu"), ()
    shape = (1, 4, GRID.tokens, head_dim)
    one, two = (
        [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(4)] + [torch.zeros(shape[:3])]
        for _ in range(2)
    )
    for q, k, v, out, lse in (one, two):
        launch.launch(module, spec, LATE, held, (q, k, v), tables, out, lse)
    assert len(fn.first) == len(fn.again) == 1
    grid, values = fn.first[0]
    wanted = [values[name] for name in fn.arg_names]
    assert fn.again[0][:6] == (*grid, 1, 1, 0, "function", "metadata")
    found = fn.again[0][9:]
    assert len(found) == len(wanted)
    for name, a, b in zip(fn.arg_names, wanted, found, strict=True):
        number = {"q": 0, "k": 1, "v": 2, "o": 3, "l": 4}.get(name[0])
        if name in ("q", "k", "v", "o", "q_tail", "k_tail", "v_tail", "o_tail") and a is not None:
            assert number is not None
            assert a.base is one[number]
            assert b.base is two[number]
            assert b.shape == a.shape
            assert (b.strides, b.block_shape, b.layout) == (a.strides, a.block_shape, a.layout)
        elif name == "lse":
            assert (a is one[4], b is two[4]) == (True, True)
        elif name == "counter":
            assert b.tolist() == [0]
        else:
            assert a is b or a == b
    spread = two[1].transpose(1, 2).contiguous().transpose(1, 2)
    launch.launch(module, spec, LATE, held, (two[0], spread, two[2]), tables, two[3], two[4])
    other = (torch.zeros(3, dtype=torch.int32),)
    launch.launch(module, spec, LATE, held, tuple(two[:3]), other, two[3], two[4])
    assert (len(fn.first), len(fn.again)) == (2, 2)
    assert dict(zip(fn.arg_names, fn.again[1][9:], strict=True))["tables"] is other


def test_lists_made_in_calls_share_their_launches() -> None:
    """Lists of the call take the place of the first ones; where some lie at an odd address, or are
    otherwise strided, Triton looks at them again."""
    from kdsl.kernels.attention.hopper.forward import attention_forward

    spec = spec_of(return_lse=True)
    fn = Recorded(attention_forward.arg_names)
    module = type("Module", (), {"attention_forward": fn})
    blocks = AttentionTunable(spec).blocks
    assert blocks is not None
    first = launch.lists(blocks, 4, "cpu").tensors
    counters: dict[int, Any] = {}
    prepared: dict[Any, Any] = {}
    x = torch.zeros((1, 4, GRID.tokens, 128), dtype=torch.bfloat16)
    lse = torch.zeros(x.shape[:3])

    def call(tensors: Any) -> None:
        held = as_lists(tensors, 0, counters, prepared)
        launch.launch(module, spec, LATE, held, (x, x, x), (), x, lse)

    again = [t.clone() for t in first]
    call(first)
    call(again)
    assert (len(fn.first), len(fn.again)) == (1, 1)
    given = dict(zip(fn.arg_names, fn.again[0][9:], strict=True))
    for name, tensor in zip(("start", "full", "partial", "index", "tiles"), again, strict=True):
        assert given[name] is tensor
    odd = torch.empty(len(first[3]) + 1, dtype=torch.int32)[1:].copy_(first[3])
    call([*first[:3], odd, first[4]])
    spread = [t.repeat(1, 4, 1) for t in first[:3]]
    call([*spread, *first[3:]])
    assert (len(fn.first), len(fn.again)) == (3, 1)


def test_tensors_that_tma_fetches() -> None:
    """Any strides of 16 bytes and unit columns; else the portable template computes."""
    x = torch.zeros((2, 4, 650, 128), dtype=torch.bfloat16)
    assert hopper_launch.describable_tensors((x, x.transpose(1, 2).contiguous().transpose(1, 2)))
    for odd in (x[..., 1:], x.transpose(2, 3), x[:, :1].expand(-1, 4, -1, -1), x[..., ::2]):
        assert not hopper_launch.describable_tensors((x, odd))
        legal = AttentionTunable(spec_of()).legal
        for found in (fitting(LATE, (x, odd), legal), chosen(LATE, legal, H100)):
            assert (found.template, found.loads) == ("portable", "pointer")
            assert legal(found.to_json(), H100) is None
        assert fitting(LATE, (x, x), legal) == LATE


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_copies_in_stored_order_compile(head_dim: int) -> None:
    """The launch that comes first for an order has no spills, keeps all programs of a
    multiprocessor resident, and moves 16 bytes an instruction: in heads of one part and of two."""
    two = [orders.axes(GRID, "HWF"), orders.cubes(GRID, (2, 4, 5))]
    spec = spec_of(head_dim=head_dim, order=orders.per_head(two * 2))
    signature: dict[str, Any] = {"heads": "i32", "queries": "i32", "keys": "i32"}
    divisible: list[Any] = []
    for name in "qkv":
        signature |= {name: "*bf16", f"{name}_stored": "*bf16"}
        signature |= {f"{name}_{axis}": "i32" for axis in "bhn"}
        divisible += [name, f"{name}_stored", *(f"{name}_{axis}" for axis in "bhn")]
    signature |= {"q_programs": "i32", "k_programs": "i32"}
    add_tables(spec, signature, divisible)
    (d0, d1), rows = head_parts(head_dim), copied_rows(head_dim)
    made = compile_ahead(
        AheadOfTime(
            generate.hopper_source(spec), "attention_copy", signature,
            {"GROUP": spec.group, "D0": d0, "D1": d1, "ROWS": rows}, tuple(divisible),
            {"num_warps": 4},
        ),
        targets.get("h100"),
    )  # fmt: skip
    assert made.spill_bytes == 0
    assert made.registers is not None
    assert made.registers <= 65536 // 1024
    parts = [n for n in (d0, d1) if n]
    assert made.ptx is not None
    loads = made.ptx.count("ld.global.v4.b32")
    assert loads == sum(3 * max(rows * n // 8 // 128, 1) for n in parts)


def test_copies_are_made_where_they_pay() -> None:
    """Long sequences are copied in their order and take the template, short ones stay; tensors in
    stored order need no copies; the copies count in what a call is predicted to take."""
    long, short = (Grid(frames=n, height=30, width=40) for n in (20, 1))
    for grid, template in ((long, "hopper"), (short, "portable")):
        spec = Attention(tokens=grid, heads=4, head_dim=128, order=orders.axes(grid, "HWF"))
        tunable, h100 = AttentionTunable(spec), targets.get("h100")
        assert tunable.default(h100)["template"] == template
        params = tunable_of(spec).default(h100)
        stored = tunable_of(replace(spec, tokens=None, stored=True))
        assert tunable.work(params, h100).before_bytes == 6 * 4 * grid.tokens * 128 * 2
        assert stored.work(params, h100).before_bytes == 0
        assert predict(params, tunable.work(params, h100), h100).us > 3.0 + (
            predict(params, stored.work(params, h100), h100).us
        )
