"""The quantize template compiles for every architecture it declares, within what is announced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from kdsl import layouts, targets
from kdsl.errors import ConfigError
from kdsl.kernels.quantize.config import ARCHITECTURES, Config, candidates
from kdsl.kernels.quantize.facts import view
from kdsl.kernels.quantize.tunable import QuantizeTunable
from kdsl.layouts import Outline
from kdsl.runtime.aot import compile_for
from kdsl.runtime.compiled import Compiled
from kdsl.specs import DTYPES, Quantize
from kdsl.targets import Target

pytest.importorskip("triton")

CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090")]
SAMPLE = 6
"""Configurations of each architecture in an ordinary run."""
SMALL = 4096
"""Bytes that do not matter: below so many a tenth is less than what the compiler aligns to."""
WIDTHS = (1152, 3072, 12288, 15360, 18944)
HADAMARD = Outline((("hadamard", 128),))
SIGNED = Outline((("signs", 0), ("hadamard", 128)))
BETWEEN = Outline((("rotate", 128), ("channels", 0), ("rotate", 128)))


def specs() -> Iterator[Quantize]:
    """Every kind of recipe, norm, activation and format, at several widths, in every dtype."""
    form = layouts.activations
    kinds = (
        {"recipe": HADAMARD, "format": form()},
        {"recipe": SIGNED, "format": form()},
        {"recipe": SIGNED, "format": form("fp8", 128)},
        {"recipe": Outline((("mean", 0), *SIGNED.steps)), "format": form("int4")},
        {"recipe": Outline((("channels", 0), *SIGNED.steps)), "format": form("int8", None, True)},
        {"recipe": Outline((("rotate", 128),)), "format": form("int4", 64)},
        {"recipe": BETWEEN, "format": form()},
        {"recipe": Outline((("hadamard", 64),)), "format": form("int8", 128)},
        {"recipe": Outline((("hadamard", 96),)), "format": form("fp8")},
        {"recipe": SIGNED, "format": form(), "norm": "layer", "modulate": True},
        {"recipe": HADAMARD, "format": form("fp8", 128), "activation": "gelu_tanh"},
        {"recipe": Outline((("smooth", 0),)), "format": form("int4", 32, True)},
        {"recipe": Outline((("channels", 0),)), "format": form("fp8")},
        {"recipe": Outline(), "format": form("int8", 128)},
        {"recipe": Outline(), "format": form(), "norm": "rms", "modulate": True},
        {"recipe": HADAMARD, "format": layouts.compressed_tensors(4, 128)},
    )
    for dtype in DTYPES:
        for columns in (1152, 3072, 12288):
            for kind in kinds:
                yield Quantize(rows=4608, columns=columns, dtype=dtype, **kind)  # type: ignore[arg-type]


def legal(target: Target) -> list[tuple[Quantize, Config]]:
    """Every legal pair of a spec above and a configuration."""
    return [(spec, config) for spec in specs() for config in candidates(spec, target)]


def check(spec: Quantize, config: Config, target: Target) -> Compiled:
    """Compile; the announced shared memory is never too little and at most a tenth too much."""
    tunable = QuantizeTunable(spec)
    made = compile_for(tunable, config.to_json(), target)
    said = tunable.work(config.to_json(), target).shared_bytes
    about = f"{spec!r}\n{config}\n{target.name}: announced {said}, taken {made.shared_bytes}"
    assert said >= made.shared_bytes, about
    assert said <= 1.1 * made.shared_bytes or said - made.shared_bytes <= SMALL, about
    assert made.registers * made.warps * 32 <= 65536, about
    # What does not fit in tensor memory comes out as a program that traps.
    assert "st.global" in made.ptx, about
    assert "trap;" not in made.ptx, about
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
def test_a_large_sample_compiles(target: Target, dtype: str) -> None:
    """A hundred configurations of each dtype."""
    found = [pair for pair in legal(target) if pair[0].dtype == dtype]
    for i in np.random.default_rng(0).choice(len(found), 100, replace=False):
        check(*found[int(i)], target)


@pytest.mark.parametrize("columns", WIDTHS)
def test_defaults_do_not_spill(columns: int) -> None:
    """What is taken for models' widths without measurements keeps everything in registers, and
    loads, stores and multiplies as the hardware likes it."""
    spec = Quantize(rows=4608, columns=columns, recipe=HADAMARD, format=layouts.activations())
    for name in ("h100", "a100"):
        target = targets.get(name)
        made = check(spec, Config.from_json(QuantizeTunable(spec).default(target)), target)
        assert made.spill_bytes == 0, f"{name}: {made}"
        assert "st.global.v4.b32" in made.ptx
        assert ("wgmma" if name == "h100" else "mma.sync") in made.ptx
        assert "cp.async.cg" in made.ptx or "ld.global.v4" in made.ptx


def test_every_width_and_format_has_a_default() -> None:
    """On every GPU of the table that has the memory for it, whatever comes out."""
    for name in ("a100", "l40s", "h100", "b200", "rtx5090"):
        target = targets.get(name)
        for columns in WIDTHS:
            for code in ("int8", "fp8", "int4"):
                for group in (None, 128):
                    form = layouts.activations(code, group)
                    spec = Quantize(rows=4608, columns=columns, recipe=SIGNED, format=form)
                    tunable = QuantizeTunable(spec)
                    assert tunable.legal(tunable.default(target), target) is None


def test_what_cannot_be_is_said() -> None:
    """Too old a GPU, a row that no program holds, and settings that do not go together."""
    spec = Quantize(rows=64, columns=3072, recipe=HADAMARD, format=layouts.activations())
    target = targets.get("h100")
    turing = replace(targets.get("a100"), name="t4", capability=(7, 5))
    tunable = QuantizeTunable(spec)
    assert tunable.legal(Config().to_json(), turing) == "t4 is below compute capability 8.0"
    assert "rows of 32" in str(tunable.legal(Config(block_m=16).to_json(), target))
    assert "64 entries a thread" not in str(tunable.legal(Config(64, 4).to_json(), target))
    assert "one tile a program" in str(tunable.legal(Config(64, 8, 2, 0).to_json(), target))
    assert "nothing that could be held" in str(
        tunable.legal(Config(64, 8, 2, 2, 1).to_json(), target)
    )
    assert "unknown setting 'tile'" in str(tunable.legal({"tile": 1}, target))
    wide = replace(spec, columns=128 * 1024)
    assert view(wide).whole
    with pytest.raises(ConfigError, match="does not stay in a program's registers"):
        QuantizeTunable(wide).default(target)
    grouped = replace(wide, format=layouts.activations("int8", 128))
    assert QuantizeTunable(grouped).default(target)
