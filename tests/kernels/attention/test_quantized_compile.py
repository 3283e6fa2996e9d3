"""The quantized template compiles for every architecture it declares, within what is announced."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kdsl import build, layouts, masks, orders, targets
from kdsl.errors import ConfigError
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.attention.config import PORTABLE, Config
from kdsl.kernels.attention.quantized.portable import ARCHITECTURES
from kdsl.kernels.attention.quantized.tunable import QuantizedTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import Compiled, sass
from kdsl.specs import Attention
from kdsl.targets import Target

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "rtx5090")]
GRID = Grid(frames=5, height=9, width=14, text=20)
LAYOUTS = [
    layouts.int8_qk(),
    layouts.int8_qk("thread"),
    layouts.int8_qk_int8_pv(),
    layouts.int8_qk_int8_pv("thread", v_stored="lanes"),
    layouts.int8_qk_fp8_pv(v_stored="channels"),
    layouts.int8_qk_fp8_pv("thread"),
    layouts.int4_qk("int4"),
]
SAMPLE = 6
"""Configurations of each architecture in an ordinary run."""


def specs() -> Iterator[Attention]:
    """Every layout, head dimension and block with each kind of mask, order, grouping, LSE."""
    order = orders.cubes(GRID, (2, 4, 5))
    doc = masks.same(Table("doc", GRID.tokens, "int32", 0, 9))
    kinds: list[dict[str, Any]] = [
        {"mask": masks.causal(), "return_lse": True},
        {"mask": masks.window(GRID, (3, 5, 5)) | masks.text(GRID), "order": order, "stored": True},
        {"mask": doc, "kv_heads": 2, "dtype": "float16"},
    ]
    blocks = ((128, 128), (64, 64), (32, 32))
    every = itertools.product(LAYOUTS, (64, 96, 128, 192, 256), blocks)
    for (layout, head_dim, block), kind in zip(every, itertools.cycle(kinds)):
        yield Attention(tokens=GRID, heads=4, head_dim=head_dim, block=block, layout=layout, **kind)


def legal(target: Target) -> list[tuple[Attention, Config]]:
    """Every legal pair of a spec above and a configuration."""
    out = []
    for spec in specs():
        tunable = QuantizedTunable(spec)
        for values in itertools.product(*PORTABLE.values()):
            params = dict(zip(PORTABLE, values, strict=True))
            if tunable.legal(params, target) is None:
                out.append((spec, Config.from_json(params)))
    return out


def check(spec: Attention, config: Config, target: Target) -> Compiled:
    """Compile; the announced shared memory is never too little and at most a tenth too much."""
    tunable = QuantizedTunable(spec)
    made = compile_for(tunable, config.to_json(), target)
    said = tunable.shared_bytes(config, target)
    about = f"{spec!r}\n{config}\n{target.name}: announced {said}, taken {made.shared_bytes}"
    assert said >= made.shared_bytes, about
    assert said <= 1.1 * made.shared_bytes, about
    assert made.registers * made.warps * 32 <= 65536, about
    return made


def test_every_declared_architecture_is_compiled_for() -> None:
    """The chips of this file are those that the template says it is for; others are refused."""
    assert tuple(c.capability for c in CHIPS) == ARCHITECTURES
    spec = Attention(tokens=GRID, heads=4, head_dim=64, layout=LAYOUTS[0])
    with pytest.raises(ConfigError, match="not for b200"):
        QuantizedTunable(spec).default(targets.get("b200"))


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_a_sample_compiles(target: Target) -> None:
    """Configurations drawn from the whole space, the same ones in every run."""
    found = legal(target)
    rng = np.random.default_rng(target.cc)
    for i in rng.choice(len(found), SAMPLE, replace=False):
        check(*found[int(i)], target)


@pytest.mark.slow
@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_much_of_the_space_compiles(target: Target) -> None:
    """One legal configuration in sixteen of every spec above."""
    for spec, config in legal(target)[::16]:
        check(spec, config, target)


@pytest.mark.parametrize("layout", LAYOUTS[:6:2], ids=lambda x: x.weights or "16-bit")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_defaults_use_the_units_they_name(head_dim: int, layout: layouts.AttentionLayout) -> None:
    """Without measurements the choice keeps its tiles in registers, and multiplies codes on the
    integer and float8 units."""
    spec = Attention(tokens=GRID, heads=4, head_dim=head_dim, mask=masks.causal(), layout=layout)
    for name in ("h100", "a100") if layout.weights != "e4m3" else ("h100", "l40s"):
        target, tunable = targets.get(name), QuantizedTunable(spec)
        made = check(spec, Config.from_json(tunable.default(target)), target)
        assert made.spill_bytes <= 64, f"{name}: {made}"
        code = sass(made.cubin)
        assert ("IGMMA" if name == "h100" else "IMMA") in code
        if layout.weights is None:
            assert ("HGMMA" if name == "h100" else "HMMA") in code
        if layout.weights == "e4m3" and name == "h100":
            assert "QGMMA" in code


@pytest.mark.parametrize(
    ("fields", "change", "gpu", "reason"),
    [
        ({}, {}, "b200", "not for b200"),
        ({"layout": LAYOUTS[4]}, {}, "a100", "no products of e4m3"),
        ({"head_dim": 80}, {}, "a100", "32 channels at a time: 80 leaves 16"),
        ({"block": (64, 16)}, {"block_n": 16}, "a100", "32 keys at a time"),
        ({}, {"num_stages": 1}, "a100", "two stages"),
        ({"layout": LAYOUTS[5]}, {"loads": "descriptor"}, "h100", "pointer loads"),
        ({}, {"loads": "descriptor", "block_m": 32}, "h100", "products of warpgroups"),
        ({"head_dim": 256, "block": (128, 64)}, {"block_m": 128}, "h100", "accumulator registers"),
        ({}, {"template": "hopper"}, "h100", "template"),
    ],
)
def test_what_is_illegal(
    fields: dict[str, Any], change: dict[str, Any], gpu: str, reason: str
) -> None:
    """Each limit refuses with its reason what is else a legal choice."""
    plain = {"tokens": GRID, "heads": 4, "head_dim": 128, "layout": LAYOUTS[2], "block": (64, 64)}
    config = Config(64, 32, 4, 2).to_json()
    tunable = QuantizedTunable(Attention(**{**plain, **fields}))  # type: ignore[arg-type]
    assert reason in str(tunable.legal({**config, **change}, targets.get(gpu)))
    assert QuantizedTunable(Attention(**plain)).legal(config, targets.get("a100")) is None  # type: ignore[arg-type]


def test_build_for_an_absent_gpu() -> None:
    """The operator of a spec with a layout: its source stands alone, it explains itself, and its
    cost counts 8-bit bytes and both units' operations."""
    spec = Attention(
        tokens=4096, heads=8, head_dim=128, layout=layouts.int8_qk_int8_pv(), mask=masks.causal()
    )
    op = build(spec, gpu="h100")
    assert "def attention_quantized" in op.source
    assert "import kdsl" not in op.source
    assert "from kdsl" not in op.source
    assert "predicted" in op.explain()
    other = build(Attention(tokens=4096, heads=8, head_dim=128, mask=masks.causal()), gpu="h100")
    assert op.cost()["bytes"] < 0.7 * other.cost()["bytes"]
    config = Config(64, 64, 4, 2).to_json()
    plain, half = (
        QuantizedTunable(Attention(tokens=4096, heads=8, head_dim=128, layout=x)).work(
            config, targets.get("h100")
        )
        for x in (LAYOUTS[2], LAYOUTS[0])
    )
    assert (plain.unit, half.unit) == ("int8", "int8")
    np.testing.assert_allclose(half.step_flop, 1.5 * plain.step_flop, rtol=0.01)
