"""What tests of quantize share: recipes, formats, specs, and the comparison with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st

from kdsl import layouts
from kdsl.errors import UnsupportedError
from kdsl.kernels.quantize import truth
from kdsl.kernels.quantize.facts import coding, view
from kdsl.kernels.quantize.runner import made_up
from kdsl.layouts import Outline
from kdsl.layouts.codes import Float
from kdsl.reference.quantize import quantize, transformed
from kdsl.specs import Quantize

WIDTHS = (48, 96, 128, 240, 256, 320, 342, 512)
BEFORE = (
    {},
    {"norm": "rms"},
    {"norm": "layer", "modulate": True},
    {"activation": "gelu_tanh"},
    {"activation": "silu"},
)


@st.composite
def outlines(draw: st.DrawFn, columns: int) -> Outline:
    """Steps in any order with up to two rotations, Hadamard and others, also of odd blocks."""
    blocks = [b for b in (4, 12, 16, 20, 32, 48, 64, 128, 256) if columns % b == 0]
    steps: list[tuple[str, int]] = []
    for _ in range(draw(st.integers(0, 2))):
        plain = st.sampled_from(("smooth", "mean", "signs", "channels"))
        steps += [(kind, 0) for kind in draw(st.lists(plain, max_size=3))]
        if blocks and draw(st.booleans()):
            kind = draw(st.sampled_from(("hadamard", "hadamard", "rotate")))
            steps.append((kind, draw(st.sampled_from(blocks))))
    return Outline(tuple(steps))


@st.composite
def formats(draw: st.DrawFn, columns: int) -> layouts.Format:
    """Formats that the kernel writes, by token and by groups."""
    groups = [None, *(g for g in (4, 16, 32, 48, 64, 128, 256) if columns % g == 0)]
    group = draw(st.sampled_from(groups))
    if draw(st.integers(0, 5)) == 0 and group is not None and columns % 8 == 0:
        return layouts.compressed_tensors(draw(st.sampled_from((4, 8))), group)
    code = draw(st.sampled_from(("int8", "fp8", "int4")))
    return layouts.activations(code, group, code != "fp8" and draw(st.booleans()))


@st.composite
def quantizes(draw: st.DrawFn, dtypes: Sequence[str]) -> Quantize:
    """Any spec that the kernel computes."""
    columns = draw(st.sampled_from(WIDTHS))

    def made(recipe: Outline) -> Quantize:
        return Quantize(
            rows=draw(st.integers(1, 9)),
            columns=columns,
            format=draw(formats(columns)),
            recipe=recipe,
            dtype=draw(st.sampled_from(tuple(dtypes))),
            **draw(st.sampled_from(BEFORE)),
        )

    spec = made(draw(outlines(columns)))
    try:
        view(spec)
    except UnsupportedError:
        assume(False)
    return spec


def inputs(spec: Quantize, batch: int | None, seed: int, device: Any = "cpu") -> list[Any]:
    """Rows of very different sizes and columns that stand out; scale and shift if wanted."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    x = torch.randn((*lead, spec.rows, spec.columns), generator=generator)
    x *= torch.randn((*lead, spec.rows, 1), generator=generator).exp()
    x[..., ::7] *= 8
    found = [x]
    if spec.modulate:
        found += [torch.randn((*lead, spec.columns), generator=generator) for _ in range(2)]
    return [t.to(getattr(torch, spec.dtype)).to(device) for t in found]


def check(
    spec: Quantize, found: Sequence[Any], given: Sequence[Any], tables: Mapping[str, Any]
) -> None:
    """A result is the reference's, but for codes at a border between two of them.

    Scales may be off by the bound on their group's largest entry; a code is the reference's, or the
    one beside it where the exact number lies within its own bound of the border between both.
    """
    x = given[0]
    items = [None] if x.ndim == 2 else list(range(len(x)))
    wanted = quantize(spec, *given, tables=tables) if len(given) > 1 else None
    wanted = wanted or quantize(spec, x, tables=tables)
    assert [tuple(t.shape) for t in found] == [v.shape for v in wanted.values()]
    for item in items:
        one = [t if item is None or t.ndim == 1 else t[item] for t in given]
        out = {n: t if item is None else t[item] for n, t in zip(wanted, found, strict=True)}
        ref = {n: v if item is None else v[item] for n, v in wanted.items()}
        _check_item(spec, out, ref, one, tables)


def _check_item(
    spec: Quantize,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    given: Sequence[Any],
    tables: Mapping[str, Any],
) -> None:
    code, fmt = coding(spec.format, spec.columns), spec.format
    recipe = spec.recipe.recipe(tables or {}, spec.columns)
    one = [t.cpu() for t in given]
    by = (one[1], one[2]) if spec.modulate else (None, None)
    numbers = truth.transformed(spec, one[0], *by, recipe)
    exact = transformed(spec, *given, tables=tables)
    finite = np.isfinite(exact)
    value, bound = numbers.value.numpy(), numbers.error.numpy()
    np.testing.assert_array_equal(np.isfinite(value), finite)
    near = 1e-9 * (np.abs(exact[finite]) + bound[finite])
    off = np.abs(value[finite] - exact[finite])
    assert (off <= near + 1e-300).all(), "two truths differ"

    zeros = found[code.zeros].cpu() if code.zeros else None
    share, why = truth.share(
        spec, numbers, found[code.codes].cpu(), found[code.scales].cpu(), zeros
    )
    assert share <= 1, f"{why}: {share:.3g} of what is allowed"

    arrays = {n: t.cpu().numpy() for n, t in found.items()}
    shape = (spec.rows, spec.columns)
    mine, theirs = fmt.unpack(arrays, shape), fmt.unpack(wanted, shape)
    level = fmt.level
    name, scale = level.field.name, level.scale
    assert scale is not None
    group = code.group or spec.columns
    spread = [
        np.repeat(scale.field.code.decode(side[scale.field.name]), group, axis=1).astype(np.float64)
        for side in (mine, theirs)
    ]
    lost = np.isnan(spread[1])
    np.testing.assert_array_equal(np.isnan(spread[0]), lost)
    middle = np.zeros(shape)
    same = np.ones(shape, np.bool_)
    if level.zero is not None:
        zero = [level.zero.field.code.decode(s[level.zero.field.name]) for s in (mine, theirs)]
        assert (np.abs(zero[0] - zero[1]) <= 1 + 1e-5 * np.abs(zero[1])).all()
        middle = np.repeat(zero[1], group, axis=1).astype(np.float64)
        same = np.repeat(zero[0] == zero[1], group, axis=1)
    np.testing.assert_array_equal(mine[name][lost], theirs[name][lost])
    held = [level.field.code.decode(side[name]) for side in (mine, theirs)]
    off = (held[0] != held[1]) & same & ~lost & (spread[1] > truth.LOOSE)
    if not off.any():
        return
    a, b = (side[off] for side in held)
    unit = spread[1][off]
    wide = np.abs(spread[0][off] / unit - 1) * np.abs(exact[off] / unit)
    may = bound[off] / unit + wide + 8 * truth.EPS * (1 + np.abs(middle[off]) + np.abs(a))
    assert (np.abs(exact[off] / unit + middle[off] - (a + b) / 2) <= may).all()
    apart = np.abs(a - b)
    if isinstance(level.field.code, Float):
        ranks = [np.where(s & 0x80, -(s & 0x7F), s) for s in (mine[name][off], theirs[name][off])]
        apart = np.abs(ranks[0] - ranks[1])
    assert (apart == 1).all(), "codes further apart than one"


def values(spec: Quantize, seed: int = 0) -> dict[str, Any]:
    """Values of a spec's recipe."""
    return made_up(spec, seed)
