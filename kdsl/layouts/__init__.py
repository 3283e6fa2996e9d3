"""Quantization layouts: how numbers are coded, grouped, scaled and stored.

`Layout` codes a tensor on the way through a kernel (`int8`), `AttentionLayout` the operands of
attention (`int8_qk_fp8_pv`).  `Format` describes a stored matrix
as a product of parts: codes x groups x scale chain x zero point x bit placement, see `format`; the
formats in use are functions here.
"""

from kdsl.layouts.attention import (
    AttentionLayout,
    int4_qk,
    int8_qk,
    int8_qk_fp8_pv,
    int8_qk_int8_pv,
)
from kdsl.layouts.codebooks import shifted_log
from kdsl.layouts.describe import describe
from kdsl.layouts.dynamic import CODES, Layout, int8
from kdsl.layouts.format import Buffer, Field, Format, Level, Part
from kdsl.layouts.leaves import Leaves, leaves, operands
from kdsl.layouts.outline import Outline, tables
from kdsl.layouts.presets import (
    a8_asymmetric,
    activations,
    awq,
    block_fp8,
    compressed_tensors,
    gptq,
    hqq,
    iq4_nl,
    marlin,
    mx,
    nf4,
    nvfp4,
    q4_0,
    q6_k,
    sage,
    slog,
    tq1_0,
    uniform,
    w8,
)
from kdsl.layouts.quantizer import convert, quantize
from kdsl.layouts.serial import from_json, to_json
from kdsl.layouts.twinlog import fit_tlq, tlq

__all__ = [
    "CODES",
    "AttentionLayout",
    "Buffer",
    "Field",
    "Format",
    "Layout",
    "Leaves",
    "Level",
    "Outline",
    "Part",
    "a8_asymmetric",
    "activations",
    "awq",
    "block_fp8",
    "compressed_tensors",
    "convert",
    "describe",
    "fit_tlq",
    "from_json",
    "gptq",
    "hqq",
    "int4_qk",
    "int8",
    "int8_qk",
    "int8_qk_fp8_pv",
    "int8_qk_int8_pv",
    "iq4_nl",
    "leaves",
    "marlin",
    "mx",
    "nf4",
    "nvfp4",
    "operands",
    "q4_0",
    "q6_k",
    "quantize",
    "sage",
    "shifted_log",
    "slog",
    "tables",
    "tlq",
    "to_json",
    "tq1_0",
    "uniform",
    "w8",
]
