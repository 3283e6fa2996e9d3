"""The table of cases: an id names operation, shape, dtype and density, and fixes the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import masks, orders
from kdsl.grid import Grid
from kdsl.kernels.prepass.tunable import traffic
from kdsl.layouts import (
    Outline,
    activations,
    int8_qk,
    int8_qk_fp8_pv,
    int8_qk_int8_pv,
    slog,
    w8,
)
from kdsl.layouts.attention import AttentionLayout
from kdsl.specs import Attention, Matmul, Prepass, Quantize

SHAPES = {
    "W": (1, 12, 32768, 128),
    "C": (1, 48, 17920, 64),
}
"""batch, heads, tokens, head_dim: Wan2.1-1.3B at 480p and CogVideoX-5B, rounded up to blocks."""

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
BACKWARD_DENSITIES = (0.1, 0.3)
BLOCK = 128

LAYOUTS: dict[str, tuple[AttentionLayout, float]] = {
    "int8fp8": (int8_qk_fp8_pv(), 0.042),
    "int8int8": (int8_qk_int8_pv(), 0.028),
    "int8": (int8_qk(), 0.015),
}
"""Of quantized cases, with the relative error above which nothing is timed: what the formats cost
on Gaussian numbers, and a little."""


@dataclass(frozen=True)
class AttentionCase:
    """Attention over random block masks, one for each head: forward, or its gradients alone."""

    id: str
    shape: tuple[int, int, int, int]
    dtype: str
    density: float
    """Mean share of blocks to keep; 1 is dense."""
    seed: int = 0
    backward: bool = False
    layout: str = ""
    """One of `LAYOUTS`, or none."""

    @property
    def limit(self) -> float:
        """Relative Frobenius error above which nothing is timed (bf16 operands give 0.0023)."""
        return LAYOUTS[self.layout][1] if self.layout else 0.01

    @property
    def work(self) -> float:
        """Operations of a dense call: of the gradients two and a half times the forward's."""
        batch, heads, tokens, head_dim = self.shape
        return (10.0 if self.backward else 4.0) * batch * heads * tokens * tokens * head_dim

    @property
    def spec(self) -> Attention:
        """What is computed."""
        _, heads, tokens, head_dim = self.shape
        mask = masks.blocks("plan") if self.density < 1 else masks.everything()
        layout = LAYOUTS[self.layout][0] if self.layout else None
        return Attention(
            tokens=tokens, heads=heads, head_dim=head_dim, dtype=self.dtype, mask=mask,
            layout=layout,
        )  # fmt: skip

    def plan(self) -> npt.NDArray[np.bool_]:
        """Kept blocks ``[heads, rows, columns]``: random and the diagonal, heads 0.5x to 1.5x."""
        _, heads, tokens, _ = self.shape
        n = -(-tokens // BLOCK)
        if self.density >= 1:
            return np.ones((heads, n, n), np.bool_)
        rng = np.random.default_rng(self.seed)
        share = self.density * np.linspace(0.5, 1.5, heads)
        return (rng.random((heads, n, n)) < share[:, None, None]) | np.eye(n, dtype=np.bool_)


ATTENTION = {
    case.id: case
    for name, shape in SHAPES.items()
    for case in (
        *(
            AttentionCase(f"fwd-{name}-bf16-d{density:.2f}", shape, "bfloat16", density)
            for density in DENSITIES
        ),
        AttentionCase(f"fwd-{name}-bf16-dense", shape, "bfloat16", 1.0),
        *(
            AttentionCase(f"bwd-{name}-bf16-d{d:.2f}", shape, "bfloat16", d, backward=True)
            for d in BACKWARD_DENSITIES
        ),
        *(
            AttentionCase(f"fwd-{name}-{layout}-d{d:.2f}", shape, "bfloat16", d, layout=layout)
            for layout in LAYOUTS
            for d in (0.1, 0.3, 0.5)
        ),
    )
}


@dataclass(frozen=True)
class ListsCase:
    """Lists and the order of tiles from the map of an attention case."""

    id: str
    attention: AttentionCase
    inverted: bool = False
    """Also those of the gradients."""

    @property
    def work(self) -> int:
        """Bytes that must move: the map once, each kept block's column, four numbers a line; all
        of it again for inverted lists."""
        kept = self.attention.plan()
        heads, lines, _ = kept.shape
        once = kept.size + 4 * int(kept.sum()) + 16 * heads * lines
        return once * (2 if self.inverted else 1)


LISTS = {
    case.id: case
    for name in SHAPES
    for case in (
        ListsCase(f"lists-{name}-d0.10", ATTENTION[f"fwd-{name}-bf16-d0.10"]),
        ListsCase(f"lists-{name}-d0.30", ATTENTION[f"fwd-{name}-bf16-d0.30"]),
        ListsCase(f"lists-{name}-d0.10-inverted", ATTENTION[f"fwd-{name}-bf16-d0.10"], True),
    )
}


@dataclass(frozen=True)
class QuantizeCase:
    """Rows of activations rotated by a Hadamard matrix in blocks, and quantized."""

    id: str
    columns: int
    code: str
    group: int | None = None
    rows: int = 4608
    block: int = 128

    @property
    def spec(self) -> Quantize:
        """What is computed."""
        return Quantize(
            rows=self.rows,
            columns=self.columns,
            recipe=Outline((("hadamard", self.block),)),
            format=activations(self.code, self.group),
        )

    @property
    def work(self) -> int:
        """Bytes that must move: every number in, every code and scale out."""
        return 2 * self.rows * self.columns + self.spec.format.nbytes((self.rows, self.columns))


QUANTIZE = {
    case.id: case
    for columns in (1152, 3072, 12288, 15360, 18944)
    for case in (
        QuantizeCase(f"quantize-{columns}-int8", columns, "int8"),
        QuantizeCase(f"quantize-{columns}-fp8", columns, "fp8"),
        QuantizeCase(f"quantize-{columns}-int4-g128", columns, "int4", 128),
    )
}


@dataclass(frozen=True)
class PrepassCase:
    """Everything between a model's projections and 8-bit attention."""

    id: str
    spec: Prepass

    @property
    def work(self) -> int:
        """Bytes that must move, second readings included."""
        return traffic(self.spec).total


WAN = Grid(frames=21, height=30, width=52)
COG = Grid(frames=13, height=30, width=45, text=226)
SIX = ("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")


def _prepass(id: str, grid: Grid, heads: int, head_dim: int, **given: Any) -> PrepassCase:
    """A case with what all have in common."""
    common = {"layout": int8_qk_fp8_pv(), "smooth": True, "tokens": grid, "heads": heads}
    return PrepassCase(id, Prepass(**{**common, "head_dim": head_dim, **given}))


_ALL = {"rope": "interleaved", "pool": (128, 128)}
PREPASS = {
    case.id: case
    for case in (
        _prepass(
            "prepass-W-fp8", WAN, 12, 128, norm="rms", **_ALL,
            order=[orders.axes(WAN, SIX[h % 6]) for h in range(12)],
        ),
        _prepass(
            "prepass-W-fp8-one", WAN, 12, 128, norm="rms", **_ALL, order=orders.axes(WAN, "HWF")
        ),
        _prepass(
            "prepass-W-fp8-token", WAN, 12, 128, norm="rms_token", **_ALL,
            order=[orders.axes(WAN, SIX[h % 6]) for h in range(12)],
        ),
        _prepass("prepass-W-fp8-bare", WAN, 12, 128, order=orders.axes(WAN, "HWF")),
        _prepass(
            "prepass-C-fp8", COG, 48, 64, norm="layer", **_ALL,
            order=[orders.axes(COG, SIX[h % 6]) for h in range(48)],
        ),
    )
}  # fmt: skip
"""Wan2.1-1.3B at 480p with everything, with one order for all heads, with its own norm over all
heads, and without norm, rotation and pooling; CogVideoX-5B."""


@dataclass(frozen=True)
class MatmulCase:
    """A linear layer on quantized operands, with bias, and with GELU or a residual behind it."""

    id: str
    shape: tuple[int, int, int]
    """rows, inner, columns."""
    code: str
    residual: bool
    bits: int = 8
    """Of weights; below eight of a log codebook, with scales of 128 columns of K."""

    @property
    def spec(self) -> Matmul:
        """What is computed."""
        rows, inner, columns = self.shape
        exact = "e4m3" if self.code == "fp8" else "int8"
        few = None if self.bits == 8 else slog(self.bits, None, 128, exact)
        return Matmul(
            rows=rows,
            inner=inner,
            columns=columns,
            x=activations(self.code),
            weight=few or w8("channel", self.code),
            bias=True,
            activation=None if self.residual else "gelu_tanh",
            residual=self.residual,
        )


MATMUL = {
    case.id: case
    for (m, k, n), residual in (
        ((4608, 3072, 12288), False),
        ((4608, 12288, 3072), True),
        ((32760, 1536, 8960), False),
    )
    for code in ("int8", "fp8")
    for bits in (8, 4, 3)
    for case in (
        MatmulCase(
            f"matmul-{m}x{k}x{n}-{code}{'' if bits == 8 else f'-w{bits}'}-"
            f"{'residual' if residual else 'gelu'}",
            (m, k, n),
            code,
            residual,
            bits,
        ),
    )
}
"""The feed-forward layers of Flux and of Wan2.1-1.3B at 480p."""


@dataclass(frozen=True)
class WeightOnlyCase:
    """A linear layer of few rows on weights of few bits, x in bfloat16."""

    id: str
    rows: int
    bits: int

    @property
    def spec(self) -> Matmul:
        """What is computed: nothing behind the product."""
        weight = slog(self.bits, None, 128)
        return Matmul(rows=self.rows, inner=3584, columns=18944, weight=weight)


WEIGHT_ONLY = {
    case.id: case
    for bits in (4, 3)
    for rows in (1, 8, 32)
    for case in (WeightOnlyCase(f"w{bits}a16-{rows}x3584x18944", rows, bits),)
}
"""The wide layer of Qwen2.5-7B's feed-forward block while it decodes."""
