"""The pre-pass compiles for every architecture it declares, within what is announced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from kdsl import Grid, layouts, orders, targets
from kdsl.errors import ConfigError
from kdsl.kernels.prepass import arguments
from kdsl.kernels.prepass.config import ARCHITECTURES, SPACE, Config, default, problem
from kdsl.kernels.prepass.shared import shared_bytes
from kdsl.kernels.prepass.tunable import PrepassTunable, traffic
from kdsl.layouts import AttentionLayout, Layout
from kdsl.runtime.aot import compile_ahead
from kdsl.runtime.compiled import Compiled
from kdsl.specs import DTYPES, Prepass
from kdsl.specs.prepass import NORMS, ROPES
from kdsl.targets import Target

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090")]
SAMPLE = 2
"""Configurations of each architecture in an ordinary run."""
WAN = Grid(frames=21, height=30, width=52)
COG = Grid(frames=13, height=30, width=45, text=226)
SPEC = Prepass(
    tokens=WAN, heads=12, head_dim=128, layout=layouts.int8_qk_fp8_pv(), norm="rms",
    rope="interleaved", smooth=True, pool=(128, 128),
    order=[orders.axes(WAN, ("HWF", "WHF", "FWH")[h % 3]) for h in range(12)],
)  # fmt: skip
MODELS = {
    "wan": SPEC,
    "wan, all heads": replace(SPEC, norm="rms_token"),
    "wan, one order": replace(SPEC, order=orders.axes(WAN, "HWF")),
    "cog": Prepass(
        tokens=COG, heads=48, head_dim=64, layout=layouts.int8_qk_fp8_pv(), norm="layer",
        rope="interleaved", smooth=True, pool=(64, 64), order=orders.axes(COG, "HWF"),
    ),
}  # fmt: skip


def drawn(target: Target, seed: int) -> Iterator[tuple[Prepass, Config]]:
    """Specs and legal configurations from the whole space, the same ones in every run."""
    rng = np.random.default_rng(seed)
    kinds = (
        layouts.int8_qk_fp8_pv(), layouts.int8_qk_int8_pv("thread"), layouts.int8_qk(),
        layouts.int4_qk("int4", block_k=64),
    )  # fmt: skip
    while True:
        layout = kinds[rng.integers(len(kinds))]
        spec = replace(
            SPEC,
            dtype=str(rng.choice(DTYPES if layout.v is not None else DTYPES[:2])),
            head_dim=int(rng.choice((64, 80, 96, 128))),
            kv_heads=int(rng.choice((4, 12))),
            order=(None, orders.axes(WAN, "WHF"))[rng.integers(2)],
            layout=layout,
            norm=(None, *NORMS)[rng.integers(4)],
            rope=(None, *ROPES)[rng.integers(3)],
            smooth=bool(rng.integers(2)),
            pool=(None, (64, 64), (16, 128))[rng.integers(3)],
        )
        held = Config(*(int(rng.choice(values)) for values in SPACE.values()))
        if problem(spec, held, target) is None:
            yield spec, held


def check(spec: Prepass, config: Config, target: Target) -> dict[str, Compiled]:
    """Compile all launches; shared memory is never more than announced."""
    found = {}
    for name in arguments.launches(spec):
        what = arguments.ahead_of_time(spec, config, name, 1, target.capability)
        made = compile_ahead(what, target)
        about = f"{spec!r}\n{config}\n{target.name}, {name}: {made.shared_bytes} bytes"
        assert made.registers * made.warps * 32 <= 65536, about
        if name == "prepass_codes":
            assert shared_bytes(spec, config, target) >= made.shared_bytes, about
        assert made.shared_bytes <= target.smem_optin, about
        found[name] = made
    return found


def test_every_declared_architecture_is_compiled_for() -> None:
    """The chips of this file are those that the template says it is for."""
    assert tuple(c.capability for c in CHIPS) == ARCHITECTURES


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_a_sample_compiles(target: Target) -> None:
    """Specs and configurations drawn from the whole space."""
    some = drawn(target, target.cc)
    for _ in range(SAMPLE):
        check(*next(some), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_a_large_sample_compiles(target: Target) -> None:
    """Sixty of them."""
    some = drawn(target, 1000 + target.cc)
    for _ in range(60):
        check(*next(some), target)


@pytest.mark.parametrize("name", MODELS)
def test_defaults_do_not_spill(name: str) -> None:
    """On Hopper, for models' shapes: everything stays in registers, is loaded ahead and stored
    sixteen bytes at a time."""
    spec, target = MODELS[name], targets.get("h100")
    for kernel, made in check(spec, default(spec, target), target).items():
        assert made.spill_bytes == 0, f"{kernel}: {made}"
        if kernel == "prepass_codes":
            assert "cp.async" in made.ptx
            assert "st.global.v4.b32" in made.ptx


def test_sizes_of_one() -> None:
    """What Triton takes for constants: a token, a head, a group, a tile."""
    target = targets.get("h100")
    for tokens, heads, norm in ((1, 1, "rms_token"), (16, 1, "layer")):
        spec = Prepass(
            tokens=tokens, heads=heads, head_dim=64, layout=layouts.int8_qk_int8_pv(), norm=norm,
            rope="half", smooth=True, pool=(64, 128),
        )  # fmt: skip
        check(spec, default(spec, target), target)


def test_cards_with_99_kib_have_a_default() -> None:
    """Every model's shape has one on consumer cards, which the compiler takes."""
    for name in ("l40s", "rtx5090"):
        target = targets.get(name)
        for spec in MODELS.values():
            config = default(spec, target)
            assert shared_bytes(spec, config, target) <= target.smem_optin
    check(SPEC, default(SPEC, targets.get("l40s")), targets.get("l40s"))


def test_what_cannot_be_is_said() -> None:
    """Scales over all tokens, groups that no tile holds, and settings that do not go together."""
    target = targets.get("h100")
    all_tokens = AttentionLayout(Layout("int8", (None, None)), Layout("int8", (64, None)))
    spec = replace(SPEC, layout=all_tokens)
    with pytest.raises(ConfigError, match="scales of q over all tokens"):
        default(spec, target)
    odd = AttentionLayout(Layout("int8", (64, None)), Layout("int8", (48, None)))
    with pytest.raises(ConfigError, match="scales of k over 48"):
        default(replace(SPEC, layout=odd), target)
    legal = PrepassTunable(SPEC).legal
    base = default(SPEC, target).to_json()
    assert "scales of k over 128" in str(legal({**base, "block": 64, "num_warps": 8}, target))
    assert "entries a thread" in str(legal({**base, "num_warps": 2}, target))
    wide = replace(SPEC, pool=(256, 256))
    assert "means over 256" in str(PrepassTunable(wide).legal(base, target))
    token = replace(SPEC, norm="rms_token")
    assert "in one program" in str(PrepassTunable(token).legal({**base, "row_heads": 2}, target))
    assert "unknown setting 'tile'" in str(legal({"tile": 1}, target))
    turing = replace(targets.get("a100"), name="t4", capability=(7, 5))
    assert legal(base, turing) == "t4 is below compute capability 8.0"


def test_bytes_are_those_of_the_issue() -> None:
    """12 x 32,760 x 128: q once, k and v twice, a byte a code; what else there is adds 5 %."""
    numbers = 12 * 32760 * 128
    held = traffic(replace(SPEC, rope=None, norm=None, pool=None))
    assert held.reread == 4 * numbers
    assert 9 * numbers + 4 * numbers <= held.total <= 1.01 * 13 * numbers
    assert traffic(SPEC).total <= 1.05 * 13 * numbers
    assert traffic(MODELS["wan, all heads"]).reread == 6 * numbers
    plain = replace(SPEC, smooth=False, layout=layouts.int8_qk())
    assert traffic(plain).reread == 0
    assert arguments.launches(plain) == ("prepass_codes",)


def test_the_source_runs_on_its_own() -> None:
    """One file with no import of the house, for the kernels of every spec."""
    text = arguments.source()
    assert "kdsl" not in "".join(line for line in text.splitlines() if "import" in line)
    for name in ("prepass_tiles", "prepass_settle", "prepass_codes"):
        assert f"def {name}(" in text
        assert "tokens" in arguments.parameters(name)
