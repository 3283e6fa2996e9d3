"""Every preset with a shape that exercises it, and its independent decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdsl import layouts
from kdsl.layouts import Format
from kdsl.layouts.codes import E2M1, E2M3, E3M2
from tests.kdsl.layouts import decoders


class Case(NamedTuple):
    """A format, a shape and a decoder."""

    fmt: Format
    shape: tuple[int, int]
    decode: Callable[..., Any]


def _nf4(held: Any, shape: tuple[int, int]) -> Any:
    level = layouts.nf4().level
    assert level.scale is not None
    tables = [np.asarray(v.field.code.values, np.float32) for v in (level, level.scale)]  # type: ignore[union-attr]
    return decoders.nf4(held, shape, *tables)


CASES = {
    "gptq4": Case(layouts.gptq(4, 32), (64, 96), decoders.gptq(4, 32)),
    "gptq3": Case(layouts.gptq(3, 32), (64, 96), decoders.gptq(3, 32)),
    "gptq4 act-order": Case(layouts.gptq(4, 32, True), (64, 96), decoders.gptq(4, 32)),
    "gptq3 act-order": Case(layouts.gptq(3, 32, True), (64, 96), decoders.gptq(3, 32)),
    "awq": Case(layouts.awq(32), (64, 96), decoders.awq(32)),
    "marlin": Case(layouts.marlin(32), (128, 96), decoders.marlin(32)),
    "ct3": Case(layouts.compressed_tensors(3, 20), (5, 40), decoders.compressed(3, 20)),
    "ct4": Case(layouts.compressed_tensors(4, 20), (5, 40), decoders.compressed(4, 20)),
    "hqq": Case(layouts.hqq(32), (6, 64), decoders.hqq(32)),
    "nf4": Case(layouts.nf4(), (70, 640), _nf4),
    "q4_0": Case(layouts.q4_0(), (5, 64), decoders.q4_0),
    "iq4_nl": Case(layouts.iq4_nl(), (5, 64), decoders.iq4_nl),
    "q6_k": Case(layouts.q6_k(), (3, 512), decoders.q6_k),
    "tq1_0": Case(layouts.tq1_0(), (3, 512), decoders.tq1_0),
    "mxfp4": Case(layouts.mx(E2M1), (3, 96), decoders.mx(4, 2, 1, 1)),
    "mxfp6 e2m3": Case(layouts.mx(E2M3), (3, 96), decoders.mx(6, 2, 3, 1)),
    "mxfp6 e3m2": Case(layouts.mx(E3M2), (3, 96), decoders.mx(6, 3, 2, 3)),
    "nvfp4": Case(layouts.nvfp4(), (130, 80), decoders.nvfp4),
    "fp8 blocks": Case(layouts.block_fp8(), (130, 140), decoders.block_fp8),
    "w8a8 activations": Case(layouts.a8_asymmetric(), (7, 24), decoders.asymmetric),
    "sage query": Case(layouts.sage("query"), (70, 16), decoders.sage("query")),
    "sage key": Case(layouts.sage("key"), (70, 16), decoders.sage("key")),
    "slog3": Case(layouts.slog(3, 0.3, 20), (5, 40), decoders.slog3(0.3, 20)),
}


def buffers(case: Case, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Buffers with every bit of the codes at random, scales of moderate size, valid trits."""
    rng = np.random.default_rng(seed)
    fmt, shape = case.fmt, case.shape
    fields = {}
    for field in fmt.fields.values():
        entries = field.groups.shape(shape)
        if field.name == "g_idx":
            groups = fmt.fields["scale"].groups.shape(shape)[1]
            fields["g_idx"] = rng.permutation(np.arange(shape[1]) % groups)[None]
        elif field.name == "code" and fmt.name == "tq1_0":
            fields["code"] = rng.integers(0, 3, entries)
        elif field.name == "code" and "fp8" in fmt.name:
            fields["code"] = rng.integers(0, 2, entries) * 128 + rng.integers(0, 127, entries)
        elif field.name in ("scale", "absmax2", "tensor", "offset") or fmt.name == "hqq4":
            if field.name == "code":
                fields["code"] = rng.integers(0, 16, entries)
            else:
                value = rng.uniform(0.01, 1.5, entries)
                fields[field.name] = field.code.encode(value)
        else:
            low_bits = 8 if field.code.bits == 32 else field.code.bits
            fields[field.name] = rng.integers(0, 1 << low_bits, entries)
    return fmt.pack(fields, shape)
