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
from kdsl.kernels.attention.fallback import chosen
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import Compiled
from kdsl.specs import DTYPES, HEAD_DIMS, Attention
from kdsl.targets import Target
from tests.interpreter.strategies import cases
from tests.strategies import sample

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090")]
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
        tunable, space = AttentionTunable(spec, templates=(template,)), SPACES[template]
        for values in itertools.product(*space.values()):
            params = dict(zip(space, values, strict=True))
            if tunable.legal(params, target) is None:
                out.append((spec, Config.from_json(params)))
    return out


def check(spec: Attention, config: Config, target: Target) -> Compiled:
    """Compile; the announced shared memory is never too little and at most a tenth too much."""
    tunable = AttentionTunable(spec, templates=(config.template,))
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
def test_defaults_hardly_spill(head_dim: int) -> None:
    """Without measurements the choice for Hopper and Ampere keeps all but a few registers' worth
    of a tile's facts where it computes."""
    spec = Attention(tokens=GRID, heads=4, head_dim=head_dim, mask=masks.causal())
    for name in ("h100", "a100"):
        target, tunable = targets.get(name), AttentionTunable(spec)
        made = check(spec, Config.from_json(tunable.default(target)), target)
        assert made.spill_bytes <= 256, f"{name}: {made}"


def test_a_mask_by_key_moves_the_scores() -> None:
    """One stage, and a thread for each key of a tile: the scores go through shared memory to meet
    the table's entries, which may be most of what a kernel takes there."""
    spec = Attention(
        tokens=GRID, heads=4, head_dim=80, mask=masks.same(Table("doc", GRID.tokens, "int32", 0, 9))
    )
    for target in CHIPS:
        if target.capability in ((8, 0), (9, 0), (10, 0)):
            made = check(spec, Config(128, 128, 4, 1), target)
            assert made.shared_bytes >= 128 * 128 * 4


def test_other_loads_fit_too() -> None:
    """Where descriptors are legal and a tensor's strides are not theirs, there is a configuration
    with pointer loads that the same GPU can run, and often not with as many stages."""
    fewer = 0
    for target in CHIPS:
        for spec, config in legal(target)[::20]:
            if config.loads == "descriptor":
                tunable = AttentionTunable(spec)
                other = chosen(config, tunable.legal, target)
                assert other.loads == "pointer"
                assert tunable.legal(other.to_json(), target) is None
                fewer += (other.block_m, other.num_stages) != (config.block_m, config.num_stages)
    assert fewer


def test_no_gpu_is_too_old_in_silence() -> None:
    """Below the oldest architecture nothing is legal, and the reason says so."""
    turing = replace(targets.get("a100"), name="t4", capability=(7, 5))
    spec = Attention(tokens=64, heads=1, head_dim=64)
    tunable = AttentionTunable(spec, templates=tuple(SPACES))
    assert tunable.legal(Config().to_json(), turing) == "t4 is below compute capability 8.0"
    hopper = Config(128, 128, 8, 2, "descriptor", "hopper", workers=1).to_json()
    assert "9.0, not t4's" in str(tunable.legal(hopper, turing))
    with pytest.raises(ConfigError, match="no configuration fits t4"):
        tunable.default(turing)


@pytest.mark.parametrize("number", range(12))
def test_leaves_of_any_mask_compile(number: int) -> None:
    """Triton's front end takes what the interpreter lets pass: types that agree over branches."""
    case = sample(cases(), 12)[number]
    spec, target = case.spec, targets.get("a100")
    tunable = AttentionTunable(spec)
    small = Config(min(32, spec.block[0]), min(32, spec.block[1]), 4, 1)
    params = small.to_json() if tunable.legal(small.to_json(), target) is None else None
    compile_for(tunable, params or tunable.default(target), target)


@pytest.mark.parametrize("warps", [4, 8])
def test_heads_with_look_ups_of_their_own_compile_in_float32(warps: int) -> None:
    """Without tensor cores Triton moves an operand's layout up into branches of heads, and fails
    to lower the ranges in them: there are none."""
    table, grid = Table("x0", (5, 4), "int32", -9, 9), Grid(9)
    by_head = [
        masks.predicate(lambda k: k < 16, grid=grid),
        masks.predicate(lambda q, k, batch: table[q % 5, (k // 3) % 4] != batch, grid=grid),
    ]
    spec = Attention(
        tokens=grid, heads=2, head_dim=64, dtype="float32", mask=masks.per_head(by_head),
        block=(32, 32),
    )  # fmt: skip
    tunable = AttentionTunable(spec, {"x0": np.zeros((5, 4), np.int32)})
    compile_for(tunable, Config(32, 32, warps, 1).to_json(), targets.get("h100"))


def test_an_order_of_one_key_compiles() -> None:
    """Its look-up would not depend on the loop around it, on which Triton's scheduler fails."""
    queries, keys = Grid(frames=2), Grid(frames=1)
    spec = Attention(
        queries=queries, keys=keys, heads=1, head_dim=64, dtype="float16", mask=masks.nothing(),
        order=orders.axes(queries, "F"), key_order=orders.table(np.zeros(1, np.int32), keys),
        block=(128, 64),
    )  # fmt: skip
    tunable = AttentionTunable(spec)
    compile_for(tunable, Config(32, 32, 4, 2).to_json(), targets.get("h100"))


def test_branches_of_heads_share_no_names() -> None:
    """Heads whose masks are built differently: each branch names what occurs twice for itself."""
    grid = Grid(60)
    twice = masks.predicate(
        lambda q, k: ((q // 7 == k) & (k >= 3)) | ((q // 7 != k - 1) & (q // 7 >= 2)), grid
    )
    other = masks.predicate(lambda q, k: ((q >= k) & (q % 3 == 0)) ^ ((q >= k) | (k < 5)), grid)
    mask = masks.per_head([twice, other, masks.causal()])
    spec = Attention(tokens=grid, heads=3, head_dim=64, dtype="float16", mask=mask, block=(32, 32))
    source = AttentionTunable(spec).source
    names = [line.split(" = ")[0].strip() for line in source.splitlines() if " = " in line]
    numbered = [n for n in names if n[0] == "t" and n[1:].isdecimal()]
    assert len(numbered) == len(set(numbered)) >= 2
    compile_for(AttentionTunable(spec), Config(32, 32, 4, 1).to_json(), targets.get("a100"))
