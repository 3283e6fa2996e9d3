"""The attention template compiles for every architecture it declares, within what is announced."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdsl import masks, orders, targets
from kdsl.errors import ConfigError
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.attention.config import ARCHITECTURES, SPACES, Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import Compiled
from kdsl.specs import DTYPES, HEAD_DIMS, Attention
from kdsl.targets import Target

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200")]
GRID = Grid(frames=5, height=9, width=14, text=20)
BLOCKS = ((128, 128), (64, 64), (64, 128), (32, 32), (16, 16))
SAMPLE = 8
"""Configurations of each architecture in an ordinary run."""


def specs() -> Iterator[Attention]:
    """Every dtype, head dimension and block with each kind of mask, order, grouping, LSE."""
    tokens = GRID.tokens
    order = orders.cubes(GRID, (2, 4, 5))
    kinds: list[dict[str, Any]] = [
        {"mask": masks.causal(), "return_lse": True},
        {"mask": masks.window(GRID, (3, 5, 5)) | masks.text(GRID), "order": order},
        {"mask": masks.same(Table("doc", tokens, "int32", 0, 9)), "kv_heads": 2},
        {"mask": masks.same(Table("doc", (3, tokens), "uint8", 0, 9)), "return_lse": True},
        {
            "order": orders.per_head([order, orders.axes(GRID, "HWF")] * 2),
            "mask": masks.per_head([masks.causal(), masks.window(GRID, (3, 3, 3))] * 2),
        },
    ]
    for (dtype, head_dim, block), number in zip(
        itertools.product(DTYPES, HEAD_DIMS, BLOCKS), itertools.count()
    ):
        kind = kinds[number % len(kinds)]
        yield Attention(tokens=GRID, heads=4, head_dim=head_dim, dtype=dtype, block=block, **kind)


def legal(target: Target) -> list[tuple[Attention, Config]]:
    """Every legal pair of a spec above and a configuration, stages and warps included."""
    out = []
    for spec, template in itertools.product(specs(), SPACES):
        tunable, space = AttentionTunable(spec), SPACES[template]
        for values in itertools.product(*space.values()):
            params = dict(zip(space, values, strict=True))
            if tunable.legal(params, target) is None:
                out.append((spec, Config.from_json(params)))
    return out


def check(spec: Attention, config: Config, target: Target) -> Compiled:
    """Compile; the announced shared memory is never too little and at most a tenth too much."""
    tunable = AttentionTunable(spec)
    made = compile_for(tunable, config.to_json(), target)
    said = tunable.shared_bytes(config, target)
    about = f"{spec!r}\n{config}\n{target.name}: announced {said}, taken {made.shared_bytes}"
    assert said >= made.shared_bytes, about
    assert said <= 1.1 * made.shared_bytes, about
    assert made.shared_bytes <= target.smem_optin, about
    assert made.registers * made.warps * 32 <= 65536, about
    return made


def test_every_declared_architecture_is_compiled_for() -> None:
    """The chips of this file are those that the template says it is for."""
    assert tuple(c.capability for c in CHIPS) == ARCHITECTURES


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_a_sample_compiles(target: Target) -> None:
    """Configurations drawn from the whole space, the same ones in every run."""
    found = legal(target)
    rng = np.random.default_rng(target.cc)
    for i in rng.choice(len(found), SAMPLE, replace=False):
        check(*found[int(i)], target)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_the_whole_space_compiles(target: Target, dtype: str) -> None:
    """Every legal configuration of every spec above."""
    for spec, config in legal(target):
        if spec.dtype == dtype:
            check(spec, config, target)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_defaults_do_not_spill(head_dim: int) -> None:
    """Without measurements the choice for Hopper and Ampere keeps everything in registers."""
    spec = Attention(tokens=GRID, heads=4, head_dim=head_dim, mask=masks.causal())
    for name in ("h100", "a100"):
        target, tunable = targets.get(name), AttentionTunable(spec)
        config = Config.from_json(tunable.default(target))
        made = check(spec, config, target)
        # Two warpgroups with wide heads keep some address words outside of their main loops.
        wide = config.template == "hopper" and head_dim > 128
        assert made.spill_bytes <= (192 if wide else 64), f"{name}: {made}"


def test_no_gpu_is_too_old_in_silence() -> None:
    """Below the oldest architecture nothing is legal, and the reason says so."""
    turing = replace(targets.get("a100"), name="t4", capability=(7, 5))
    tunable = AttentionTunable(Attention(tokens=64, heads=1, head_dim=64))
    assert tunable.legal(Config().to_json(), turing) == "t4 is below compute capability 8.0"
    hopper = Config(128, 128, 8, 2, "descriptor", "hopper", workers=1).to_json()
    assert "9.0, not t4's" in str(tunable.legal(hopper, turing))
    with pytest.raises(ConfigError, match="no configuration fits t4"):
        tunable.default(turing)
