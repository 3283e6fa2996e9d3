"""The kernel for few rows of 16-bit x, run on a CPU, compiled for GPUs, and what it refuses."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdsl import build, layouts, targets
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.kernels.matmul.weight_only import portable, stream
from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.facts import view
from kdsl.kernels.matmul.weight_only.rule import ARCHITECTURES
from kdsl.kernels.matmul.weight_only.tunable import WeightOnlyTunable
from kdsl.reference.matmul import matmul
from kdsl.runtime.aot import compile_for
from kdsl.specs import Matmul
from tests.kernels.matmul.streaming import run
from tests.matrices import KINDS, check_weight_only, few_bits, weight_only_operands

H200 = targets.get("h200")
CHIPS = [targets.get(name) for name in ("a100", "a10", "l40s", "h100", "b200", "rtx5090")]
LARGE: dict[str, Any] = {"inner": 3584, "columns": 18944, "dtype": "bfloat16"}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
CASES = (
    # rows, K, columns; warps, columns of a tile, ahead, split, hold, table
    ((1, 512, 40), (4, 16, 2, 1, 1, 0)),
    ((3, 640, 150), (2, 16, 3, 2, 0, 0)),
    ((17, 512, 75), (2, 16, 2, 2, 1, 0)),
    ((32, 384, 100), (3, 32, 1, 1, 0, 0)),
    ((9, 384, 50), (3, 16, 2, 1, 1, 1)),
)


def spec_for(shape: tuple[int, int, int], kind: str, bits: int, dtype: str) -> Matmul:
    """A product with everything behind it."""
    rows, inner, columns = shape
    return Matmul(
        rows=rows, inner=inner, columns=columns, dtype=dtype, weight=few_bits(kind, bits),
        bias=True, residual=True, activation="gelu_tanh",
    )  # fmt: skip


def config_for(spec: Matmul, settings: tuple[int, ...]) -> Config:
    """The settings of a case."""
    warps, block_n, stages, split, hold, table = settings
    padded = stream.rows_padded(spec)
    return Config("stream", padded, block_n, 128, warps, stages, 1, split, hold, 1, table)


@needs_compiler
@pytest.mark.parametrize(("shape", "settings"), CASES)
@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu_it_is_the_reference(
    kind: str, bits: int, shape: tuple[int, int, int], settings: tuple[int, ...]
) -> None:
    """Every kind of code, ragged rows and columns, pieces of K that some warps have not, clusters:
    within the derived bound, in two orders of threads, without a read outside the operands."""
    if settings[-1] and kind == "zeros":
        return
    dtype = "bfloat16" if (bits + len(kind)) % 2 else "float16"
    spec = spec_for(shape, kind, bits, dtype)
    given = weight_only_operands(spec, bits)
    config = config_for(spec, settings)
    found = run(spec, config, given, seed=1)
    check_weight_only(spec, found, given)
    np.testing.assert_array_equal(run(spec, config, given, seed=7), found)


@needs_compiler
def test_rows_without_numbers_stay_apart() -> None:
    """NaN and infinities reach their own rows; tiny and huge bfloat16 rows keep their digits."""
    spec = Matmul(rows=6, inner=256, columns=20, dtype="bfloat16", weight=few_bits("signed", 4))
    given = weight_only_operands(spec)
    given["x"][0] *= np.float32(2.0**-100)
    given["x"][1] *= np.float32(2.0**100)
    given["x"][2, 5], given["x"][3, 7], given["x"][4] = np.nan, np.inf, 0
    config = Config("stream", 8, 16, 128, 2, 2)
    with np.errstate(all="ignore"):
        found = run(spec, config, given)
        wanted = matmul(spec, given)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.isinf(found), np.isinf(wanted))
    np.testing.assert_array_equal(found[4], 0)
    check_weight_only(spec, found, given)


@needs_compiler
def test_the_emulator_sees_a_missing_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the barrier before partial sums are added up, some order of threads gives another
    result: what the other tests would find."""
    spec = Matmul(rows=2, inner=512, columns=64, dtype="float16", weight=few_bits("signed", 4))
    given, config = weight_only_operands(spec), Config("stream", 8, 16, 128, 4, 2)
    right = run(spec, config, given)
    text = stream.source(spec, config)
    cut = text.replace("block_barrier();\n      // Other warps", "// Other warps")
    assert cut != text
    monkeypatch.setattr(stream, "source", lambda *_: cut)
    wrong = [run(spec, config, given, seed=s) for s in range(1, 5)]
    assert any(not np.array_equal(w, right, equal_nan=True) for w in wrong)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 8, 16, 32])
def test_defaults_do_not_spill(rows: int, kind: str, bits: int) -> None:
    """What runs unless somebody asks for other settings keeps everything in registers."""
    pytest.importorskip("cupy")
    spec = Matmul(rows=rows, weight=few_bits(kind, bits), **LARGE)
    tunable = WeightOnlyTunable(spec, ("stream",))
    made = compile_for(tunable, tunable.default(H200), H200)
    assert made.spill_bytes == 0, f"{tunable.default(H200)}: {made}"


@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_both_templates_compile(target: targets.Target) -> None:
    """For every architecture that is declared, with every operand."""
    pytest.importorskip("cupy")
    pytest.importorskip("triton")
    assert tuple(c.capability for c in CHIPS) == ARCHITECTURES
    for kind, bits, rows in (("zeros", 4, 5), ("table", 3, 16)):
        spec = spec_for((rows, 2048, 4096), kind, bits, "bfloat16")
        for template in ("stream", "portable"):
            tunable = WeightOnlyTunable(spec, (template,))
            made = compile_for(tunable, tunable.default(target), target)
            assert made.spill_bytes == 0
            if template == "portable":
                said = tunable.work(tunable.default(target), target).shared_bytes
                assert made.shared_bytes <= said


def test_kinds_of_codes() -> None:
    """Which code is decoded how; zero points and offsets are told apart."""
    made = {k: view(Matmul(rows=1, weight=few_bits(k, 4), **LARGE)) for k in KINDS}
    assert {k: v.kind for k, v in made.items()} == {
        "signed": "signed", "uniform": "uniform", "table": "table", "zeros": "uniform",
    }  # fmt: skip
    assert (made["uniform"].offset, made["zeros"].offset, made["zeros"].zeros) == (8, 0, "zeros")


def test_backends_are_templates() -> None:
    """CUDA C for few rows, Triton beyond and where groups are not of its size."""
    few = Matmul(rows=1, weight=layouts.slog(4), **LARGE)
    assert build(few, gpu="h200", mode="off").backend == "cuda"
    assert "mma.sync" in build(few, gpu="h200", mode="off").source
    assert build(replace(few, rows=33), gpu="h200", mode="off").backend == "triton"
    small = replace(few, weight=layouts.slog(4, None, 64))
    op = build(small, gpu="h200", mode="off")
    assert (op.backend, op.source) == ("triton", portable.source())
    with pytest.raises(ConfigError, match="33 rows, the stream template takes 32"):
        build(replace(few, rows=33), gpu="h200", backend="cuda")
    with pytest.raises(UnsupportedError, match="no 'gluon' backend"):
        build(few, gpu="h200", backend="gluon")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "float32"}, "16-bit x alone"),
        ({"weight": layouts.w8()}, "codes Int"),
        ({"weight": layouts.nf4()}, "float16, of groups along K|such scales|chains of scales"),
        ({"weight": layouts.gptq()}, "such zero points"),
        ({"weight": layouts.slog(4, None, 16)}, "groups of 16"),
    ],
)
def test_what_no_kernel_multiplies(change: dict[str, Any], said: str) -> None:
    """Said before anything is compiled; the reference computes it."""
    spec = Matmul(**{**LARGE, "rows": 1, "weight": layouts.slog(4), **change})
    with pytest.raises(UnsupportedError, match=said):
        build(spec, gpu="h200")
    assert build(spec, backend="reference").backend == "reference"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_m": 16}, "block_m=8"),
        ({"block_n": 64}, "16 or 32 may be"),
        ({"split": 8, "num_warps": 16}, "too many idle"),
        ({"num_stages": 5, "num_warps": 16, "hold": 1, "block_n": 32}, "registers a thread"),
        ({"hold": 0, "blocks": 4}, "registers|shared memory"),
    ],
)
def test_what_is_illegal(change: dict[str, Any], said: str) -> None:
    """Each limit refuses with its reason what is else the default's neighbour."""
    tunable = WeightOnlyTunable(Matmul(rows=1, weight=layouts.slog(4), **LARGE), ("stream",))
    default = tunable.default(H200)
    assert tunable.legal(default, H200) is None
    assert re.search(said, str(tunable.legal({**default, **change}, H200)))
