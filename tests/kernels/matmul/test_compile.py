"""The matmul templates without a GPU: legality, and what the compiler makes of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdsl import build, targets
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.kernels.matmul import arguments, portable
from kdsl.kernels.matmul.config import SPACE, Config
from kdsl.kernels.matmul.facts import view
from kdsl.kernels.matmul.hopper import coded_config
from kdsl.kernels.matmul.hopper import config as hopper
from kdsl.kernels.matmul.rule import ARCHITECTURES, problem
from kdsl.kernels.matmul.tunable import MatmulTunable
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import Compiled, sass
from kdsl.specs import DTYPES, Matmul
from kdsl.specs.matmul import ACTIVATIONS
from kdsl.targets import Target
from tests.kernels.attention.test_hopper_compile import check_arrivals, warnings_of
from tests.matrices import packed, spec_of

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090")]
H100 = targets.get("h100")
SAMPLE = 5
"""Configurations of each architecture in an ordinary run."""
WIDE = Config(128, 256, 128, 8, 4, 12, 4, "hopper")
NEIGHBOUR = Config(128, 128, 128, 8, 6, 12, 1, "hopper").to_json()
LARGE: dict[str, Any] = {"rows": 4608, "inner": 3072, "columns": 12288, "dtype": "bfloat16"}


def specs() -> Iterator[Matmul]:
    """Both codes, zero points, every epilogue and dtype."""
    for dtype, activation, kind in itertools.product(DTYPES, (None, *ACTIVATIONS), range(3)):
        more = {"bias": kind > 0, "residual": kind == 2, "activation": activation}
        plain = {**LARGE, "dtype": dtype, **more}
        yield spec_of("int8", kind == 1, **plain)
        yield spec_of("fp8", **plain)
        for code, bits in itertools.product(("int8", "fp8"), (4, 3)):
            yield spec_of(code, **{**plain, "weight": packed(bits, code)})


def legal(target: Target, template: str) -> list[tuple[Matmul, Config]]:
    """Every legal pair of a spec above and a configuration."""
    space = {**SPACE, "template": (template,), "group": (8,)}
    every = [Config(**dict(zip(space, c, strict=True))) for c in itertools.product(*space.values())]
    return [(s, c) for s in specs() for c in every if problem(s, c, target) is None]


def check(spec: Matmul, config: Config, target: Target) -> Compiled:
    """Compile; the announced shared memory is never too little and at most a tenth too much."""
    tunable = MatmulTunable(spec)
    assert tunable.legal(config.to_json(), target) is None
    made = compile_for(tunable, config.to_json(), target)
    said = tunable.work(config.to_json(), target).shared_bytes
    about = f"{spec!r}\n{config}\n{target.name}: announced {said}, taken {made.shared_bytes}"
    assert made.shared_bytes <= said <= 1.1 * made.shared_bytes + 512, about
    assert made.registers * made.warps * 32 <= 65536, about
    assert "trap;" not in made.ptx, about
    return made


def check_hopper(spec: Matmul, config: Config) -> Compiled:
    """The same of the Hopper template: no spills, no serialised products, nobody arrives early,
    products as many as the loop holds."""
    made = check(spec, config, H100)
    assert made.spill_bytes == 0, f"{config}: {made}"
    assert made.registers <= hopper.resources(config).at_launch
    assert "C75" not in warnings_of(made.ptx)
    # A stage is freed in the loop over K, and by the 8-bit template behind it too.
    check_arrivals(made.ptx, hopper.consumers(config) * (1 if view(spec).group else 2))
    code = sass(made.cubin)
    integer = spec.x.name.startswith("int8")
    found = code.count("IGMMA" if integer else "QGMMA")
    if view(spec).group:
        # Two warpgroups, each a step in one loop; sixteen words of four codes a thread are read
        # before the loops and in them.
        assert found == 2 * config.block_k // 32
        assert len(re.findall(r"LDS\.[US]16", code)) == 2 * 2 * 16
        return made
    each = config.block_m // 64 * config.block_k // 32
    each *= -(-config.block_n // 128) if integer else 1
    # One before the loop over K, one in it.
    assert found == 2 * each
    return made


def test_every_declared_architecture_is_compiled_for() -> None:
    """The chips of this file are those that the portable template says it is for."""
    assert tuple(c.capability for c in CHIPS) == ARCHITECTURES


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_a_sample_compiles(target: Target) -> None:
    """Configurations drawn from the whole space, the same ones in every run."""
    found = legal(target, "portable")
    rng = np.random.default_rng(target.cc)
    for i in rng.choice(len(found), SAMPLE, replace=False):
        check(*found[int(i)], target)


@pytest.mark.slow
@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_a_large_sample_compiles(target: Target) -> None:
    """A hundred and fifty."""
    found = legal(target, "portable")
    for i in np.random.default_rng(0).choice(len(found), 150, replace=False):
        check(*found[int(i)], target)


def test_a_sample_of_hoppers_compiles() -> None:
    """Drawn from all that is legal: none spills."""
    found = legal(H100, "hopper")
    for i in np.random.default_rng(1).choice(len(found), SAMPLE, replace=False):
        check_hopper(*found[int(i)])


@pytest.mark.slow
def test_a_large_sample_of_hoppers_compiles() -> None:
    """A hundred."""
    found = legal(H100, "hopper")
    for i in np.random.default_rng(0).choice(len(found), 100, replace=False):
        check_hopper(*found[int(i)])


@pytest.mark.parametrize(
    ("code", "asymmetric", "fields", "change"),
    [
        ("int8", False, {"bias": True, "activation": "gelu_tanh"}, {}),
        ("int8", True, {"bias": True, "activation": "gelu_erf"}, {}),
        ("fp8", False, {"bias": True, "activation": "gelu_tanh"}, {}),
        ("int8", False, {"bias": True, "residual": True}, {"num_stages": 3}),
        ("fp8", False, {"bias": True, "residual": True}, {"num_stages": 3}),
    ],
)
def test_what_is_meant_to_be_fast(
    code: str, asymmetric: bool, fields: dict[str, Any], change: dict[str, Any]
) -> None:
    """The default of a feed-forward layer is the tile of 128 x 256 and does not spill; scales and
    bias come two at a time."""
    spec = spec_of(code, asymmetric, **LARGE, **fields)
    config = Config.from_json(dict(build(spec, gpu="h100", backend="gluon", mode="off").config))
    assert config == replace(WIDE, **change)
    made = check_hopper(spec, config)
    pairs = len(re.findall(r"ld\.global\.v2\.b32", made.ptx))
    # Of a chunk of 64 columns a thread has eight pairs; the bias is of 16 bits.
    assert pairs == 2 * 4 * 8 * (1 + asymmetric)
    assert "ld.global.b16" not in made.ptx


def test_small_products_keep_more_multiprocessors_busy() -> None:
    """With few rows tiles are narrower, so that no fewer programs run than there is work for."""
    for rows, tile in ((4608, (128, 256)), (512, (128, 64)), (256, (64, 64)), (17, (64, 64))):
        spec = spec_of(rows=rows, inner=3072, columns=3072, dtype="bfloat16")
        config = build(spec, gpu="h100", backend="gluon", mode="off").config
        assert (config["block_m"], config["block_n"]) == tile, rows


@pytest.mark.parametrize(
    ("fields", "change", "gpu", "reason"),
    [
        ({}, {}, "a100", "9.0, not a100's"),
        ({"inner": 100}, {}, "h100", "no rows of 100 bytes"),
        ({"columns": 75}, {}, "h100", "no rows of 75 float16"),
        ({}, {"block_m": 32}, "h100", "64 or 128 rows, not 16"),
        ({}, {"block_k": 256}, "h100", "what TMA swizzles"),
        ({}, {"block_m": 256}, "h100", "256 sums a thread"),
        ({}, {"chunks": 2}, "h100", "registers a thread"),
        ({}, {"num_stages": 5}, "h100", "bytes of shared memory"),
        ({}, {"template": "portable"}, "h100", "chunks are the hopper"),
        ({}, {"template": "portable", "chunks": 1, "num_warps": 4}, "h100", "8 to 128"),
        ({}, {"template": "portable", "chunks": 1, "num_stages": 8}, "h100", "shared memory"),
    ],
)
def test_what_is_illegal(
    fields: dict[str, Any], change: dict[str, Any], gpu: str, reason: str
) -> None:
    """Each limit refuses with its reason what is else the default's neighbour."""
    tunable = MatmulTunable(spec_of())
    assert tunable.legal(WIDE.to_json(), H100) is None
    tunable = MatmulTunable(spec_of(**fields))
    assert reason in str(tunable.legal({**WIDE.to_json(), **change}, targets.get(gpu)))


def test_backends_are_templates() -> None:
    """Gluon's is Hopper's and an error elsewhere; Triton's is portable; sources stand alone."""
    spec = spec_of(**LARGE)
    assert build(spec, gpu="h100").backend == "gluon"
    assert build(spec, gpu="a100").backend == "triton"
    own = build(spec, gpu="h100", backend="gluon").source
    assert own == hopper.source()
    assert "kdsl" not in own
    for path in hopper.MODULES:
        for name in re.findall(r"^def (\w+)", path.read_text(), re.M):
            assert own.count(f"\ndef {name}(") == 1
    assert build(spec, gpu="h100", backend="triton").source == portable.source()
    with pytest.raises(ConfigError, match=r"9\.0, not a100's"):
        build(spec, gpu="a100", backend="gluon")
    with pytest.raises(UnsupportedError, match="no 'cuda' backend"):
        build(spec, gpu="a100", backend="cuda")


@pytest.mark.parametrize("code", ["int8", "fp8"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bits_are_decoded_as_an_operand(code: str, residual: bool, dtype: str) -> None:
    """The default on Hopper for weights of four bits: weights never become 8 bits in memory, and
    their products are not serialised."""
    more = {"dtype": dtype, "residual": residual, "bias": True, "activation": "gelu_tanh"}
    spec = spec_of(code, **{**LARGE, **more, "weight": packed(4, code)})
    op = build(spec, gpu="h100", backend="gluon", mode="off")
    assert op.backend == "gluon"
    assert (op.config["block_m"], op.config["block_n"]) == (128, 128)
    check_hopper(spec, Config.from_json(dict(op.config)))
    assert op.source == coded_config.source()
    assert "kdsl" not in op.source


@pytest.mark.parametrize(
    ("fields", "change", "reason"),
    [
        ({"weight": packed(3)}, {}, "decodes four bits"),
        ({"inner": 192, "weight": packed(4, "int8", 64)}, {}, "groups of 64, steps of 128"),
        ({"columns": 75}, {}, "no rows of 75 float16"),
        ({}, {"block_n": 256}, "two warpgroups of 64 columns"),
        ({}, {"chunks": 2}, "in one chunk"),
        ({}, {"block_k": 64}, "in steps of 128"),
        ({}, {"block_m": 256}, "registers a thread"),
        ({"dtype": "float32"}, {"num_stages": 8}, "bytes of shared memory"),
    ],
)
def test_what_is_illegal_with_few_bits(
    fields: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    """Each limit of the template for four bits refuses with its reason."""
    plain = {"inner": 256, "weight": packed(4)}
    assert MatmulTunable(spec_of(**plain)).legal(NEIGHBOUR, H100) is None
    tunable = MatmulTunable(spec_of(**{**plain, **fields}))
    assert reason in str(tunable.legal({**NEIGHBOUR, **change}, H100))


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_few_bits_do_not_spill(code: str, bits: int) -> None:
    """Defaults of every architecture for a large layer decode in registers, and multiply 8 bits, or
    float16 where there is no unit for e4m3."""
    spec = spec_of(code, **{**LARGE, "weight": packed(bits, code), "bias": True})
    for name in ("a100", "l40s", "h100", "b200"):
        target = targets.get(name)
        made = check(
            spec, Config.from_json(MatmulTunable(spec, ("portable",)).default(target)), target
        )
        assert made.spill_bytes <= 64, f"{name}: {made}"
        unit = {"int8": r"\.s8|kind::i8", "fp8": r"\.e4m3|kind::f8f6f4"}[code]
        unit = r"\.f16" if (name, code) == ("a100", "fp8") else unit
        assert re.search(rf"(mma|wgmma)[^;]*({unit})", made.ptx), name


def test_ragged_rows_get_the_portable_template() -> None:
    """Where TMA cannot, the other template is taken without being asked for."""
    spec = spec_of(rows=100, inner=100, columns=75)
    assert build(spec, gpu="h100").config["template"] == "portable"


def test_integers_are_those_of_a_launch() -> None:
    """Steps cover K, tiles cover the matrix, in both templates."""
    spec = spec_of(rows=300, inner=208, columns=520)
    assert arguments.integers(spec, WIDE) == {
        "rows": 300, "columns": 520, "steps": 2, "down": 3, "across": 3,
    }  # fmt: skip
    assert arguments.tiles(spec, Config(64, 64)) == (5, 9)
