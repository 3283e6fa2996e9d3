"""The backward kernels as something to tune and to compile, without a GPU."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from kdsl import Attention, Grid, masks, orders, targets
from kdsl.expr import Table
from kdsl.kernels.attention import generate
from kdsl.kernels.attention.backward.launch import ROWS, TEMPLATE, summed
from kdsl.kernels.attention.backward.shared import shared_bytes
from kdsl.kernels.attention.backward.tunable import PARTS, BackwardTunable
from kdsl.kernels.attention.config import ARCHITECTURES, Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import codecache
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import compile_triton
from kdsl.specs import DTYPES, HEAD_DIMS

pytest.importorskip("triton")

GRID = Grid(frames=2, height=4, width=8, text=1)
NAMES = ("a100", "rtx3090", "l40s", "h100", "b200", "rtx5090")
"""One GPU for each compute capability of the template."""


def tunable(part: Any, **fields: Any) -> BackwardTunable:
    """One kernel of a spec of 1,000 tokens."""
    plain: dict[str, Any] = {"tokens": 1000, "heads": 2, "head_dim": 64}
    return BackwardTunable(AttentionTunable(Attention(**{**plain, **fields})), part)


def test_names_cover_the_architectures() -> None:
    """The GPUs compiled for below are one of each kind."""
    assert tuple(targets.get(name).capability for name in NAMES) == ARCHITECTURES


def test_every_spec_has_a_default() -> None:
    """For every GPU, dtype, head dimension and mask block a legal configuration is found."""
    blocks = [(16, 16), (16, 128), (128, 16), (32, 64), (128, 128), (256, 64)]
    for target in targets.known():
        for dtype, head_dim, block in itertools.product(DTYPES, HEAD_DIMS, blocks):
            for part in PARTS:
                made = tunable(part, dtype=dtype, head_dim=head_dim, block=block)
                assert made.legal(made.default(target), target) is None


def test_illegal() -> None:
    """What no kernel can run with, or none runs well with, says why."""
    h100, made = targets.get("h100"), tunable("keys", head_dim=256)
    plain = Config(64, 64, 8, 2).to_json()
    for change, reason in (
        ({"block_n": 128}, "accumulator registers"),
        ({"num_stages": 1}, "no tile is in flight"),
        ({"block_m": 16}, "mask blocks of 16"),
        ({"num_stages": 4}, "bytes of shared memory"),
    ):
        assert reason in (made.legal({**plain, **change}, h100) or "")
    ordered = tunable("queries", tokens=GRID, order=orders.axes(GRID, "HWF"), block=(64, 64))
    described = {**Config(64, 64, 4, 2).to_json(), "loads": "descriptor"}
    assert "original order" in (ordered.legal(described, h100) or "")
    assert "no tensor descriptors" in (ordered.legal(described, targets.get("a100")) or "")
    single = tunable("queries", dtype="float32", block=(32, 32))
    described = {**Config(32, 32, 4, 2).to_json(), "loads": "descriptor"}
    assert "16-bit products" in (single.legal(described, h100) or "")


def test_work() -> None:
    """Four products a pair of tiles for dK and dV, three for dQ; each kept block is counted once,
    whatever the tile, and a group's heads make one program."""
    kept = np.random.default_rng(0).random((4, 8, 8)) < 0.4
    spec = Attention(
        tokens=1000, heads=4, kv_heads=2, head_dim=64, mask=masks.blocks("plan"), block=(128, 128)
    )
    forward = AttentionTunable(spec, {"plan": kept.astype(np.uint8)}, 2)
    h100 = targets.get("h100")
    for part, products, programs in (("keys", 8, 2 * 2 * 8), ("queries", 6, 2 * 4 * 8)):
        made = BackwardTunable(forward, part)  # type: ignore[arg-type]
        for m, n in ((64, 128), (128, 64), (64, 64)):
            work = made.work(Config(m, n, 8, 2).to_json(), h100)
            assert work.useful_flop == products * 2 * 128 * 128 * 64 * kept.sum()
            assert work.flop == work.useful_flop
            assert work.programs == programs * (128 // (n if part == "keys" else m))
            assert (np.diff(work.steps.reshape(2, -1), axis=1) <= 0).all()


def test_heads_of_a_group_are_summed_where_their_tiles_agree() -> None:
    """One order, or orders that agree in each group, are summed in the kernel; others afterwards,
    which is another program and another key."""
    four = [orders.axes(GRID, n) for n in ("HWF", "HWF", "FHW", "FHW")]
    fields: dict[str, Any] = {"tokens": GRID, "heads": 4, "kv_heads": 2, "block": (32, 32)}
    agree, differ = (
        tunable("keys", **fields, order=orders.per_head(o)) for o in (four, four[1:] + four[:1])
    )
    assert (summed(agree.spec), summed(differ.spec)) == (2, 1)
    assert agree.sizes()["summed"] == 2
    assert differ.sizes()["summed"] == 1


def checked(part: Any, target: targets.Target, config: Config, spec: Attention) -> None:
    """The estimate is never below the compiler's figure, and at most a tenth above it."""
    made = BackwardTunable(AttentionTunable(spec), part)
    compiled = compile_for(made, config.to_json(), target)
    estimate = shared_bytes(spec, config, part, target)
    assert compiled.shared_bytes <= estimate <= 1.1 * compiled.shared_bytes, (config, spec)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_compiles(name: str, part: str) -> None:
    """The default of a plain case compiles for each compute capability, and takes the shared memory
    that was foreseen."""
    target = targets.get(name)
    spec = Attention(tokens=1000, heads=2, head_dim=64, mask=masks.causal(), block=(64, 64))
    made = BackwardTunable(AttentionTunable(spec), part)  # type: ignore[arg-type]
    checked(part, target, Config.from_json(made.default(target)), spec)


@pytest.mark.parametrize("name", NAMES[2:])
def test_what_stands_before_compiles(name: str) -> None:
    """So does the kernel that prepares level and delta, with and without a gradient of the LSE."""
    module = codecache.load(generate.source(Attention(tokens=100, heads=1, head_dim=80), TEMPLATE))
    fn, target = module.attention_backward_rows, targets.get(name)
    pointers = dict.fromkeys(("o", "do"), "*bf16")
    pointers |= dict.fromkeys(("lse", "dlse", "level", "delta"), "*fp32")
    integers = [f"{x}_{n}" for x in ("o", "do") for n in "bhnd"] + ["heads", "queries"]
    types = pointers | dict.fromkeys(integers, "i32")
    for dlse in (True, False):
        constants: dict[Any, Any] = {"D0": 64, "D1": 16, "BLOCK": ROWS, "DLSE": dlse}
        constants |= {} if dlse else {"dlse": None}
        made = compile_triton(fn, target, types, constants)
        # For sm_120 ptxas stops at 96 registers by itself and puts two addresses into memory.
        assert made.spill_bytes <= (16 if target.capability == (12, 0) else 0)


KINDS: tuple[dict[str, Any], ...] = (
    {"tokens": 1000},
    {"tokens": 1000, "mask": masks.causal()},
    {"tokens": GRID, "mask": masks.window(GRID, (1, 3, 3)), "order": orders.cubes(GRID, (1, 2, 4))},
    {"tokens": 1000, "mask": masks.same(Table("doc", 1000, "int32", 0, 9))},
    {"tokens": 1000, "mask": masks.same(Table("doc", (3, 1000), "uint8", 0, 9))},
)


def candidates(seed: int, count: int) -> list[tuple[str, str, Config, Attention]]:
    """Random legal configurations of random plain specs, for any of the GPUs."""
    rng, out = random.Random(seed), []
    while len(out) < count:
        name, part = rng.choice(NAMES), rng.choice(PARTS)
        sides = [rng.choice((16, 32, 64, 128)) for _ in range(2)]
        spec = Attention(
            **rng.choice(KINDS),
            heads=rng.choice((1, 4)),
            kv_heads=1,
            head_dim=rng.choice(HEAD_DIMS),
            dtype=rng.choice(DTYPES),
            block=(max(sides[0], rng.choice(sides)), max(sides[1], rng.choice(sides))),
        )
        loads = rng.choice(("pointer", "descriptor"))
        config = Config(*sides, rng.choice((4, 8)), rng.choice((1, 2, 3, 4)), loads)  # type: ignore[arg-type]
        made = BackwardTunable(AttentionTunable(spec), part)
        # Float32 with large tiles compiles for minutes.
        small = spec.dtype != "float32" or sides[0] * sides[1] * spec.head_dim < 2**17
        if small and made.legal(config.to_json(), targets.get(name)) is None:
            out.append((name, part, config, spec))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_shared_memory(seed: int) -> None:
    """For any legal choice the estimate is never below the compiler's figure or 10 % above."""
    for name, part, config, spec in candidates(seed, 5):
        checked(part, targets.get(name), config, spec)
