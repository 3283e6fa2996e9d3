"""The quantized Hopper template without a GPU: legality, and what the compiler makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdsl import build, layouts, masks, orders, targets
from kdsl.grid import Grid
from kdsl.kernels.attention import generate
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.config import resources
from kdsl.kernels.attention.quantized.hopper import config as hopper
from kdsl.kernels.attention.quantized.tunable import QuantizedTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import Compiled, sass
from kdsl.specs import Attention
from tests.kernels.attention.test_hopper_compile import check_arrivals, warnings_of

triton = pytest.importorskip("triton")

H100 = targets.get("h100")
GRID = Grid(frames=5, height=9, width=14, text=20)
WIDE = Config(128, 128, 8, 3, "descriptor", "hopper", workers=1)
EARLY = replace(WIDE, overlap="early")
TWO = Config(128, 64, 8, 4, "descriptor", "hopper", workers=2)


def spec_of(head_dim: int = 128, **fields: Any) -> Attention:
    """A causal spec of four heads on a ragged grid."""
    plain = {
        "tokens": GRID, "heads": 4, "head_dim": head_dim, "mask": masks.causal(),
        "layout": layouts.int8_qk_fp8_pv(),
    }  # fmt: skip
    return Attention(**{**plain, **fields})


def tunable_of(spec: Attention) -> QuantizedTunable:
    """What may be chosen about the template."""
    return QuantizedTunable(spec, templates=("hopper",))


def check(spec: Attention, config: Config, spills: int = 64) -> Compiled:
    """Compile: few spills, no serialised products, the announced memory, nobody arrives early."""
    tunable = tunable_of(spec)
    assert tunable.legal(config.to_json(), H100) is None
    made = compile_for(tunable, config.to_json(), H100)
    assert made.spill_bytes <= spills, made
    assert made.registers <= resources(config).at_launch
    said = tunable.shared_bytes(config, H100)
    assert made.shared_bytes <= said <= 1.1 * made.shared_bytes
    check_arrivals(made.ptx)
    assert "C75" not in warnings_of(made.ptx)
    # Weights become an operand where they are: no shuffle but those of maxima and sums, no
    # permutation of bytes worth the name.
    code = sass(made.cubin)
    assert code.count("PRMT") <= 8
    consumers = config.block_m // 64
    assert code.count("IGMMA") == consumers * 4 * spec.head_dim // 32
    # With v, and with ones.
    assert code.count("QGMMA") == consumers * 2 * 3 * config.block_n // 32
    return made


@pytest.mark.parametrize(
    ("head_dim", "config", "spills"),
    [
        (128, WIDE, 64),
        (128, replace(WIDE, block_n=64), 0),
        # 240 registers for 238 that hold tiles and facts, and a row's sums: a few loads a step.
        (128, EARLY, 320),
        (64, EARLY, 0),
        (64, WIDE, 0),
        # 104 for 102 likewise.
        (64, TWO, 256),
        (64, Config(64, 64, 4, 3, "descriptor", "hopper", workers=3), 0),
    ],
)
def test_configurations_compile(head_dim: int, config: Config, spills: int) -> None:
    """Products as many as the loops hold, tiles in registers, memory as announced."""
    check(spec_of(head_dim, return_lse=True), config, spills)


@pytest.mark.parametrize(
    "fields",
    [
        {"order": orders.cubes(GRID, (2, 4, 5)), "stored": True, "dtype": "float16"},
        {"mask": masks.window(GRID, (3, 5, 5)) | masks.text(GRID), "kv_heads": 2},
        {"layout": layouts.int8_qk_fp8_pv(block_q=16, block_k=256)},
    ],
)
def test_specs_compile(fields: dict[str, Any]) -> None:
    """Outputs that go back to another order, masks with tables, groups, other scales."""
    check(spec_of(**fields), WIDE)
    check(spec_of(**fields), EARLY, 768)


def test_queries_may_have_a_scale_a_thread() -> None:
    """Rows have scales of their own, whichever queries share them."""
    layout = layouts.int8_qk_fp8_pv()
    thread = layouts.int8_qk_fp8_pv("thread")
    check(spec_of(layout=replace(layout, q=thread.q)), WIDE)


@pytest.mark.parametrize(
    ("fields", "change", "gpu", "reason"),
    [
        ({}, {}, "a100", "9.0, not a100's"),
        ({"head_dim": 256}, {}, "h100", "64 and 128, not 256"),
        ({"layout": layouts.int8_qk_int8_pv(v_stored="lanes")}, {}, "h100", "e4m3 weights"),
        ({"layout": layouts.int8_qk_fp8_pv(v_stored="channels")}, {}, "h100", '"lanes"'),
        ({"layout": layouts.int8_qk_fp8_pv("thread")}, {}, "h100", "have one scale"),
        ({"layout": layouts.int8_qk_fp8_pv(block_k=64)}, {}, "h100", "a multiple of 128"),
        ({"block": (64, 128)}, {}, "h100", "do not divide"),
        ({}, {"num_warps": 4}, "h100", "take 8 warps"),
        ({}, {"overlap": "early", "num_stages": 1}, "h100", "keys of two steps"),
        ({}, {"pingpong": True}, "h100", "takes no turns"),
        ({}, {"workers": 2}, "h100", "one worker"),
        ({}, {"block_m": 64, "num_warps": 4, "block_n": 64, "workers": 3}, "h100", "do not fit"),
        ({"head_dim": 128}, {"block_n": 64, "workers": 2}, "h100", "registers a thread"),
    ],
)
def test_what_is_illegal(
    fields: dict[str, Any], change: dict[str, Any], gpu: str, reason: str
) -> None:
    """Each limit refuses with its reason what is else the default's neighbour."""
    assert tunable_of(spec_of()).legal(WIDE.to_json(), H100) is None
    tunable = tunable_of(spec_of(**fields))
    assert reason in str(tunable.legal({**WIDE.to_json(), **change}, targets.get(gpu)))


def test_the_backend_picks_the_template() -> None:
    """Hopper's template is taken unless somebody asks for the portable one; the generated
    file holds its modules and imports none of them."""
    spec = spec_of()
    by = {b: build(spec, gpu="h100", backend=b) for b in (None, "triton", "gluon")}
    assert [op.config["template"] for op in by.values()] == ["hopper", "portable", "hopper"]
    assert Config.from_json(dict(by["gluon"].config)) == EARLY
    assert "kdsl" not in by["gluon"].source
    assert "coded_consumer" in by["gluon"].source
    assert by["gluon"].source == generate.hopper_source(spec, hopper.MODULES)
    two = build(spec_of(64), gpu="h100", backend="gluon")
    assert Config.from_json(dict(two.config)) == TWO
