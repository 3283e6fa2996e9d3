"""Quality of weight codes and of rotations, in numbers: ``python -m benchmarks quality``.

Signal-to-noise in dB of 3- and 4-bit weights on synthetic rows, a scale a row or a group of 128,
and the output error of rotation recipes on two made-up inputs.  No GPU.  The seed, the shapes and
every setting stand here; lines of the result say what was measured, nothing is rounded by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import rows
from kdsl import layouts
from kdsl.errors import InputError, SpecError
from kdsl.layouts import Buffer, Field, Format, Level, Part, rotations
from kdsl.layouts.codebooks import normal_float
from kdsl.layouts.codes import F32, Code, Int, Lut
from kdsl.layouts.groups import Block

SEED, ROWS, COLUMNS = 0, 192, 1152
CLIPS = tuple(float(c) for c in np.linspace(1.0, 0.25, 31))
SHAPES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
SIGMA = 0.3
"""At this size the public code of TLQ, which is not scale invariant, does well."""
Matrix = npt.NDArray[np.float32]


def synthetic(rng: np.random.Generator) -> dict[str, Matrix]:
    """Rows of unit variance, times `SIGMA`."""
    size = (ROWS, COLUMNS)
    drawn = {
        "gaussian": rng.standard_normal(size),
        "t5": rng.standard_t(5, size) * np.sqrt(3 / 5),
        "laplace": rng.laplace(size=size) / np.sqrt(2),
    }
    return {name: (SIGMA * x).astype(np.float32) for name, x in drawn.items()}


def given_weights(path: Path) -> dict[str, Matrix]:
    """The matrices of a safetensors or .npz file of trained weights."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
    else:
        from safetensors.numpy import load_file

        found = load_file(path)
    kept = {n: x.astype(np.float32) for n, x in found.items() if x.ndim == 2 and x.size}
    if not kept:
        raise InputError("no matrices of weights", where=str(path))
    return kept


def with_code(code: Code, group: int | None, fit: str = "largest") -> Format:
    """A code with a float32 scale a row or group; with ``fit="range"`` also a float32 minimum."""
    scale = Level(Field("scale", F32, Block(1, group), fit))
    offset = Level(Field("least", F32, Block(1, group), "least")) if fit == "range" else None
    buffers = [Buffer("codes", "uint8", (Part("code", "n k x -> n | k x"),), pad=True)]
    fields = [scale.field, *([offset.field] if offset else [])]
    buffers += [Buffer(f.name, "float32", (Part(f.name, "n g x -> n | g x"),)) for f in fields]
    return Format("measured", Level(Field("code", code), scale, offset=offset), tuple(buffers))


def decibels(x: Matrix, got: Matrix) -> float:
    """Signal-to-noise; infinite where nothing is lost."""
    error = float(np.sum((got.astype(np.float64) - x) ** 2))
    size = float(np.sum(x.astype(np.float64) ** 2))
    return 10 * float(np.log10(size / error)) if error else float("inf")


def searched(code: Code, x: Matrix, group: int | None = None) -> float:
    """SNR with a scale from the clip search."""
    fmt = with_code(code, group)
    return decibels(x, fmt.decode(layouts.quantize(fmt, x, clips=CLIPS), _shape(x)))


def plain(code: Code, x: Matrix, fit: str = "largest") -> float:
    """SNR with the scale of the largest magnitude, or of the range."""
    fmt = with_code(code, None, fit)
    return decibels(x, fmt.decode(layouts.quantize(fmt, x), _shape(x)))


def twin_log(levels: int, variant: str, x: Matrix, **search: Any) -> float:
    """SNR of twin-log quantization."""
    fmt = layouts.tlq(levels, variant)
    return decibels(x, fmt.decode(layouts.fit_tlq(fmt, x, **search), _shape(x)))


def shifted_log(bits: int, x: Matrix, exact: str, group: int | None = None) -> float:
    """SNR of the shifted-log codebook, its shape picked on the first 64 rows."""
    first = x[:64]
    codes = []
    for r in SHAPES:
        try:
            codes.append(layouts.shifted_log(bits, r, exact))
        except SpecError:  # two entries of one value in 8 bits
            continue
    best = max(codes, key=lambda code: searched(code, first, group))
    return searched(best, x, group)


def codes_of(bits: int) -> dict[str, Callable[[Matrix], float]]:
    """What is compared, by name."""
    half = 1 << (bits - 1)
    uniform = Lut(tuple(float(v) for v in np.arange(2 * half) - half + 0.5), "uniform")
    powers = Lut(tuple(s * 2.0**-i for s in (1.0, -1.0) for i in range(half)), "pow2")
    nf = Lut(normal_float(bits), "nf")
    return {
        "uniform min-max": lambda x: plain(Int(bits), x, "range"),
        "uniform clip": lambda x: searched(uniform, x),
        "powers of two": lambda x: searched(powers, x),
        "nf absmax": lambda x: plain(nf, x),
        "nf clip": lambda x: searched(nf, x),
        "tlq code": lambda x: twin_log(bits, "code", x),
        "tlq own range": lambda x: twin_log(
            bits, "paper", x, shifts=(0.0,), bottoms=(0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
        ),
        "slog float32": lambda x: shifted_log(bits, x, "float32"),
        "slog int8": lambda x: shifted_log(bits, x, "int8"),
        "slog e4m3": lambda x: shifted_log(bits, x, "e4m3"),
        "uniform clip g128": lambda x: searched(uniform, x, 128),
        "slog int8 g128": lambda x: shifted_log(bits, x, "int8", 128),
    }


def inputs(rng: np.random.Generator) -> dict[str, Matrix]:
    """A mild input, and one with four channels of large means."""
    mild = 0.5 * rng.standard_normal((1024, COLUMNS)) * np.exp(0.5 * rng.standard_normal(COLUMNS))
    salient = mild.copy()
    for channel, mean in zip((5, 300, 700, 1100), (120, -60, 40, 30), strict=True):
        salient[:, channel] += mean + 8 * rng.standard_normal(1024)
    return {"mild": mild.astype(np.float32), "salient": salient.astype(np.float32)}


def measure(weights: Path | None = None) -> Iterator[dict[str, Any]]:
    """Lines of results: SNR of codes, relative output errors of recipes."""
    rng = np.random.default_rng(SEED)
    data = synthetic(rng) if weights is None else given_weights(weights)
    source = "synthetic" if weights is None else weights.name
    for name, x in data.items():
        for bits in (3, 4):
            for code, value in codes_of(bits).items():
                if code.endswith("g128") and x.shape[1] % 128:
                    continue
                yield {
                    "kind": "snr", "source": source, "data": name, "bits": bits, "code": code,
                    "db": round(value(x), 3),
                }  # fmt: skip
    if weights is not None:
        return
    weight = (0.03 * rng.standard_normal((256, COLUMNS))).astype(np.float32)
    for name, x in inputs(rng).items():
        recipes = rotations.candidates(x) | {
            "none": rotations.Recipe(), "published ARS": rotations.published(x),
        }  # fmt: skip
        best, errors = rotations.choose(x, weight, recipes, bits=4)
        for recipe, error in errors.items():
            yield {
                "kind": "rotation", "source": "synthetic", "data": name, "bits": 4,
                "recipe": recipe, "output_error": round(error, 5), "chosen": recipe == best,
                "fluctuation": round(rotations.fluctuation(x), 4),
            }  # fmt: skip


def write(
    results: Path, commit: str, weights: Path | None = None, trained: int | None = None
) -> Path:
    """Measure, print each line and write all to ``<results>/quality.json``, or to
    ``quality-trained.json`` for a model that is trained so many steps."""
    sources = rows.sources_hash()
    found = []
    lines = measure(weights)
    if trained is not None:
        from benchmarks import trained as small

        lines = small.measure(trained)
    for line in lines:
        print(json.dumps(line), flush=True)
        found.append(line)
    path = results / f"quality{'' if trained is None else '-trained'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "commit": commit, "sources": sources, "seed": SEED, "date": rows.today(),
        "numpy": np.__version__, "shape": [ROWS, COLUMNS], "lines": found,
    }  # fmt: skip
    path.write_text(json.dumps(about, indent=1) + "\n")
    return path


def _shape(x: Matrix) -> tuple[int, int]:
    return x.shape[0], x.shape[1]
