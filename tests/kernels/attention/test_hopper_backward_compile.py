"""The Hopper backward without a GPU: legality, launch arguments, what the compiler makes of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from kdsl import build, masks, orders, targets
from kdsl.errors import ConfigError
from kdsl.grid import Grid
from kdsl.kernels.attention import generate
from kdsl.kernels.attention import launch as forward
from kdsl.kernels.attention.backward import launch as portable
from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.backward.tunable import KERNELS, PARTS, BackwardTunable, kernels
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.backward import config as hopper
from kdsl.kernels.attention.hopper.backward import launch
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.codecache import load
from kdsl.runtime.compiled import compile_triton, sass
from kdsl.runtime.program import Program
from kdsl.specs import HEAD_DIMS, Attention
from tests.kernels.attention.test_hopper_compile import warnings_of

pytest.importorskip("triton")
torch: Any = pytest.importorskip("torch")

H100 = targets.get("h100")
GRID = Grid(frames=5, height=9, width=14, text=20)
KEYS = Config(64, 128, 8, 2, "descriptor", "hopper")


def spec_of(head_dim: int = 128, **fields: object) -> Attention:
    """A causal spec of four heads on two, on a ragged grid."""
    plain = {"tokens": GRID, "heads": 4, "kv_heads": 2, "head_dim": head_dim}
    return Attention(**{**plain, "mask": masks.causal(), **fields})  # type: ignore[arg-type]


def tunable_of(spec: Attention, part: Part) -> BackwardTunable:
    """What may be chosen about a kernel of the template."""
    return BackwardTunable(AttentionTunable(spec, templates=("hopper",)), part)


@pytest.mark.parametrize(
    ("part", "change", "fields", "reason"),
    [
        ("all", {}, {"dtype": "float32"}, "no products of float32"),
        ("all", {}, {"order": orders.axes(GRID, "HWF")}, "the original order"),
        ("all", {}, {"block": (128, 64)}, "do not divide"),
        ("all", {"pingpong": True}, {}, "the forward's"),
        ("all", {"num_warps": 4}, {}, "two warpgroups"),
        ("all", {"block_m": 128}, {}, "by its columns"),
        ("all", {}, {"head_dim": 64}, "by its columns"),
        ("all", {}, {"head_dim": 192}, "registers a thread"),
        ("keys", {"block_m": 128}, {}, "registers a thread"),
        ("queries", {"block_m": 128, "num_stages": 3}, {}, "bytes of shared memory"),
        ("queries", {}, {}, "two warpgroups"),
    ],
)
def test_what_is_illegal(
    part: Part, change: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    """Each limit refuses with its reason what is else a good configuration's neighbour."""
    assert tunable_of(spec_of(), "all").legal(KEYS.to_json(), H100) is None
    params = replace(KEYS, **change).to_json()
    assert reason in str(tunable_of(spec_of(**fields), part).legal(params, H100))


def test_the_backend_picks_the_kernels() -> None:
    """On Hopper the kernel of all gradients stands beside the two that repeat their bits, where the
    template cannot, the portable one; who asks for Triton gets no other."""
    by = {
        b: build(spec_of(), gpu="h200", backend=b).backward_choices  # type: ignore[attr-defined]
        for b in (None, "gluon", "triton")
    }
    for asked in (None, "gluon"):
        assert {p: c.params["template"] for p, c in by[asked].items()} == dict.fromkeys(
            KERNELS, "hopper"
        )
    assert {p: c.params["template"] for p, c in by["triton"].items()} == dict.fromkeys(
        PARTS, "portable"
    )
    wide = build(spec_of(192), gpu="h100", backend="gluon").backward_choices  # type: ignore[attr-defined]
    assert {p: c.params["template"] for p, c in wide.items()} == {
        "keys": "portable",
        "queries": "hopper",
    }
    with pytest.raises(ConfigError, match='for backend="gluon" alone'):
        build(  # noqa: B018
            spec_of(), gpu="h100", backend="triton", backward={"keys": KEYS.to_json()}
        ).backward_choices  # type: ignore[attr-defined]
    assert kernels(AttentionTunable(spec_of()), H100) == KERNELS
    assert kernels(AttentionTunable(spec_of(), templates=("portable",)), H100) == PARTS


ALWAYS = {("all", 64), ("all", 128), ("all", 80), ("keys", 128), ("queries", 64), ("queries", 128)}
"""What is compiled in each run; each takes seconds."""


@pytest.mark.parametrize(
    ("part", "head_dim"),
    [
        pytest.param(part, d, marks=[] if (part, d) in ALWAYS else [pytest.mark.slow])
        for part in KERNELS
        for d in HEAD_DIMS
    ],
)  # fmt: skip
def test_the_default_compiles_as_the_template_counts_on(part: Part, head_dim: int) -> None:
    """No product is serialised, and there are as many as the loops hold; up to head_dim 128 no loop
    spills; shared memory is what was said."""
    tunable = tunable_of(spec_of(head_dim), part)
    if part == "all" and head_dim > 128:
        with pytest.raises(ConfigError, match="no configuration"):
            tunable.default(H100)
        return
    config = Config.from_json(tunable.default(H100))
    if part == "keys" and head_dim > 128:
        assert config.template == "portable"
        return
    assert config.template == "hopper"
    made = compile_for(tunable, config.to_json(), H100)
    assert made.registers <= hopper.launch_options(config)["maxnreg"]
    assert made.warps == 12
    said = tunable.shared_bytes(config, H100)
    assert made.shared_bytes <= said <= 1.1 * made.shared_bytes
    code = sass(made.cubin)
    assert code.count("HGMMA") == 4 * products(tunable.spec, config, part)
    assert "C75" not in warnings_of(made.ptx)
    if head_dim <= 128:
        assert made.spill_bytes <= 96  # places of tiles, once a program
        loops = [x for x in re.split(r"^\.L", code, flags=re.M) if "HGMMA" in x]
        # The address of the sums, before it is used, is all that a step may read again.
        assert all(x.count("LDL") <= (2 if part == "all" else 0) for x in loops)
        assert not any("STL" in x for x in loops)
    check_reductions(made.ptx, sum(n // 8 for n in hopper.parts(tunable.spec, part)), part)


def products(spec: Attention, config: Config, part: Part) -> int:
    """Instructions of a warpgroup's step: 16 columns each of what is summed over."""
    step, head_dim = hopper.step_of(config, part), spec.head_dim
    parts = sum(n > 0 for n in hopper.parts(spec, part))
    sums = {"queries": 1, "keys": 2, "all": 2}[part] * parts * step // 16
    return 2 * head_dim // 16 + sums + (128 // 16 if part == "all" else 0)


def check_reductions(ptx: str, groups: int, part: Part) -> None:
    """A thread adds 16 bytes at a time: one instruction for each 8 columns of its half."""
    halves = 2 * groups if groups == 8 else groups  # 128 queries: each half has all columns
    found = ptx.count("red.relaxed.gpu.global.add.v4.f32")
    assert found == (2 * halves if part == "all" else 0)


def test_settling_compiles() -> None:
    """The sums' kernel takes 16 bytes a load and a store."""
    module = load(generate.hopper_source(spec_of(), generate.HOPPER_BACKWARD))
    pointers = {"sums": "*fp32", "level": "*fp32", "dq": "*bf16"}
    integers = dict.fromkeys(("dq_b", "dq_h", "dq_n", "heads", "queries", "steps"), "i32")
    made = compile_triton(
        module.attention_backward_settle, H100, {**pointers, **integers, "scale": "fp32"},
        {"D0": 64, "D1": 64, "STEP": 64}, divisible=(*pointers, "dq_b", "dq_h", "dq_n"),
    )  # fmt: skip
    assert made.spill_bytes == 0
    assert made.ptx.count("ld.global.v4.b32") == 2 * 64 * 64 // (128 * 4)
    assert made.ptx.count("st.global.v4.b32") == 2 * 64 * 64 // (128 * 8)


def test_generated_source_is_the_template() -> None:
    """A generated file holds every function of the template's modules, and imports none of them."""
    text = generate.hopper_source(spec_of(), generate.HOPPER_BACKWARD)
    assert "kdsl" not in text
    for path in generate.HOPPER_BACKWARD:
        for name in re.findall(r"^def (\w+)", path.read_text(), re.M):
            assert text.count(f"\ndef {name}(") == 1


class Recorded:
    """A kernel that remembers how it was launched."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **values: self.calls.append((grid, args, values))


@pytest.mark.parametrize("head_dim", [64, 128, 80])
def test_arguments_of_launches(head_dim: int) -> None:
    """Every argument of each kernel is given; grids cover all tiles; what TMA cannot fetch is
    copied; lines of level and delta are padded to 16 bytes; other outputs are written back."""
    from kdsl.kernels.attention.hopper.backward import keys, queries

    spec = spec_of(head_dim, tokens=None, queries=301, keys=517, mask=masks.causal())
    blocks = AttentionTunable(spec).blocks
    assert blocks is not None
    q, do = (torch.zeros((2, 4, 301, head_dim), dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.zeros((2, 2, 517, head_dim), dtype=torch.bfloat16) for _ in range(2))
    level, delta = (torch.zeros(2, 4, 301) for _ in range(2))
    odd = torch.zeros((2, 2, 517, head_dim + 1), dtype=torch.bfloat16)[..., 1:]
    given = portable.Given(q, odd, v, do, level, delta)
    ran = {name: Recorded() for name in ("keys", "queries", "settle")}
    module = type("Module", (), {f"attention_backward_{n}": r for n, r in ran.items()})
    turned = portable.inverted(blocks, spec, "cpu")
    choice = {p: Config.from_json(tunable_of(spec, p).default(H100)) for p in KERNELS}
    launch.all_into(module, spec, choice["all"], turned, given, q.clone(), k.clone(), v.clone())
    launch.keys_into(module, spec, choice["keys"], turned, given, k.clone(), v.clone())
    held = forward.lists(blocks, 4, "cpu")
    launch.queries_into(module, spec, choice["queries"], held, given, q.clone())
    wanted = {
        "keys": keys.attention_backward_keys, "queries": queries.attention_backward_queries,
        "settle": queries.attention_backward_settle,
    }  # fmt: skip
    for name, kernel in wanted.items():
        for _, args, values in ran[name].calls:
            names = [*kernel.arg_names[: len(args)], *values]
            assert sorted(set(names) - {"num_warps", "maxnreg"}) == sorted(kernel.arg_names)
    step = hopper.step_of(choice["all"], "all")
    steps = -(-301 // step)
    assert [c[0] for c in ran["keys"].calls] == [(2 * 2 * 5,)] * 2
    assert [c[0] for c in ran["queries"].calls] == [(2 * 4 * 3,)]
    assert [c[0] for c in ran["settle"].calls] == [(2 * 4 * steps,)]
    _, _, values = ran["keys"].calls[0]
    assert values["sums"].shape == (2, 4, steps, step * head_dim)
    assert values["level"].strides == [304, 1]
    assert values["k"].base is not odd
    assert torch.equal(values["k"].base, odd)


def test_the_program_goes_by_torchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel makes all gradients, unless torch asks for algorithms that repeat their bits."""
    op = build(spec_of(), gpu="h100", backend="gluon")
    choices = op.backward_choices  # type: ignore[attr-defined]
    configs = {p: Config.from_json(dict(c.params)) for p, c in choices.items()}
    configs["forward"] = Config.from_json(dict(op.config))  # type: ignore[attr-defined]
    program = Program.from_name(Program(spec_of(), configs).name)
    said: list[str] = []
    for name in ("all_into", "keys_into", "queries_into"):
        monkeypatch.setattr(launch, name, lambda *_, name=name: said.append(name))
    monkeypatch.setattr(portable, "rows", lambda *_: (None, None))
    blocks = AttentionTunable(spec_of()).blocks
    assert blocks is not None
    lists = [
        *forward.lists(blocks, 4, "cpu").tensors,
        *portable.inverted(blocks, spec_of(), "cpu").tensors,
    ]
    shape = (1, 4, GRID.tokens, 128)
    q, do, out = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(3))
    k, v = (torch.zeros((1, 2, *shape[2:]), dtype=torch.bfloat16) for _ in range(2))

    def backward(*wanted: bool) -> None:
        lse = torch.zeros(shape[:3])
        program.backward((do, None), (q, k, v), (out, lse), lists, (), wanted)  # type: ignore[arg-type]

    backward(True, True)
    backward(True, False)
    held = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        backward(True, True)
    finally:
        torch.use_deterministic_algorithms(held)
    assert said == ["all_into", "queries_into", "queries_into", "keys_into"]
