"""What tests of the pre-pass share: specs, inputs, the comparison with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from kdsl import layouts, orders
from kdsl.kernels.prepass import truth
from kdsl.layouts import AttentionLayout, Layout
from kdsl.reference import prepass as reference
from kdsl.runtime.prepass import Prepared
from kdsl.specs import Prepass
from kdsl.specs.prepass import NORMS, ROPES
from tests.strategies import grids, order_of

LAYOUTS = [
    layouts.int8_qk_fp8_pv(),
    layouts.int8_qk_fp8_pv("thread", v_stored="channels"),
    layouts.int8_qk_fp8_pv("block", 128, 64),
    layouts.int8_qk_int8_pv(),
    layouts.int8_qk_int8_pv("thread", v_stored="lanes"),
    layouts.int8_qk(),
    layouts.int8_qk("block", 16, 32),
    layouts.int4_qk("int8"),
    layouts.int4_qk("int4", "thread"),
    AttentionLayout(
        Layout("int8", (1, None)), Layout("int8", (2, None)), Layout("int8", (None, 1)),
        "int8", "channels",
    ),
]  # fmt: skip


@st.composite
def prepasses(draw: st.DrawFn, dtypes: Sequence[str], most: int = 300) -> Prepass:
    """Any spec that the kernels compute: grids that no tile divides, text at either end, groups of
    query heads, an order for each group."""
    grid = draw(grids(most))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2)))
    heads = kv_heads * group
    dtype, layout = draw(st.sampled_from(tuple(dtypes))), draw(st.sampled_from(LAYOUTS))
    if layout.v is None and dtype == "float32":
        layout = layouts.int8_qk_fp8_pv()
    order = None
    if draw(st.booleans()):
        some = [draw(order_of(grid)) for _ in range(draw(st.integers(1, 2)))]
        order = orders.per_head([some[h // group % len(some)] for h in range(heads)])
    sizes = st.sampled_from((16, 32, 64, 128))
    return Prepass(
        tokens=grid,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((64, 64, 80, 96, 128))),
        dtype=dtype,
        layout=layout,
        order=order,
        norm=draw(st.sampled_from((None, *NORMS))),
        eps=draw(st.sampled_from((1e-6, 1e-5))),
        rope=draw(st.sampled_from((None, *ROPES))),
        smooth=draw(st.booleans()),
        pool=draw(st.sampled_from((None, (draw(sizes), draw(sizes))))),
    )


def inputs(spec: Prepass, batch: int, seed: int, device: Any = "cpu", wide: bool = False) -> Any:
    """Seeded tensors by name: q, k and v views of one projection, k with means of its own; with
    ``wide`` tables of cosines and sines that hold each number twice."""
    g = torch.Generator().manual_seed(seed)
    dtype, tokens, d = getattr(torch, spec.dtype), spec.grid.tokens, spec.head_dim
    heads = [spec.inputs[n][0] for n in "qkv"]
    fused = torch.randn((batch, tokens, sum(heads) * d), generator=g)
    fused *= torch.randn((batch, tokens, 1), generator=g).mul(0.5).exp()
    out, first = {}, 0
    for name, n in zip("qkv", heads, strict=True):
        part = fused[..., first * d : (first + n) * d]
        if name == "k":
            part += 3 * torch.randn(n * d, generator=g)
        first += n
    fused = fused.to(dtype).to(device)
    first = 0
    for name, n in zip("qkv", heads, strict=True):
        part = fused[..., first * d : (first + n) * d]
        out[name] = part.view(batch, tokens, n, d).transpose(1, 2)
        first += n
    for name, shape in spec.inputs.items():
        if name not in out:
            out[name] = torch.randn(shape, generator=g).to(device)
    if spec.rope is not None:
        angle = out["cos"].clone()
        out["cos"], out["sin"] = (_wide(spec, t, wide) for t in (angle.cos(), angle.sin()))
    return out


def _wide(spec: Prepass, table: Any, wide: bool) -> Any:
    if not wide:
        return table
    if spec.rope == "interleaved":
        return table.repeat_interleave(2, dim=-1)
    return torch.cat([table, table], dim=-1)


def by_name(spec: Prepass, made: Prepared) -> dict[str, Any]:
    """A result's tensors by name, on the CPU."""
    found = dict(zip(spec.layout.operands, made.operands, strict=True))
    found |= {n: getattr(made, n) for n in ("k_mean", "q_pool", "k_pool")}
    return {n: x.cpu() for n, x in found.items() if x is not None}


def index_of(spec: Prepass, tables: Mapping[str, Any] | None = None) -> Any:
    """Original tokens by stored position, ``[heads, tokens]``; None where none moves."""
    if not spec.moves:
        return None
    index = np.atleast_2d(spec.stored_order.index(tables))
    index = np.broadcast_to(index, (spec.heads, spec.grid.tokens))
    return torch.from_numpy(index.copy())


def as_tensors(spec: Prepass, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's outputs as a kernel writes them."""
    out = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in arrays.items()}
    if spec.layout.weights == "e4m3":
        out["v"] = out["v"].view(torch.float8_e4m3fn)
    if spec.layout.v is None:
        out["v"] = out["v"].to(getattr(torch, spec.dtype))
    return out


def check(
    spec: Prepass,
    made: Prepared,
    given: Mapping[str, Any],
    tables: Mapping[str, Any] | None = None,
) -> None:
    """A result is the reference's, but for codes at a border between two of them.

    Reference and result are both held against exact numbers with their bounds: a code may differ
    only where these allow either.
    """
    given = {n: x.cpu() for n, x in given.items()}
    wanted = reference.prepass(spec, given, tables)
    found, index = by_name(spec, made), index_of(spec, tables)
    assert list(found) == list(spec.outputs)
    shapes = spec.shapes(given["q"].shape[0])
    for name, x in found.items():
        shape, dtype = shapes[name]
        assert (tuple(x.shape), str(x.dtype)) == (shape, f"torch.{dtype}"), name
    for what, out in (("kernel", found), ("reference", as_tensors(spec, wanted))):
        share, why = truth.check(spec, given, index, out)
        assert share <= 1, f"{what}: {why}: {share:.4g} of what is allowed"
    for name in ("q", "k"):
        apart = found[name].int() - torch.from_numpy(wanted[name]).int()
        assert apart.numel() == 0 or int(apart.abs().max()) <= 1, f"codes of {name}"


def check_truths(spec: Prepass, given: Mapping[str, Any]) -> None:
    """The reference and the torch truth compute the same numbers, in float64."""
    stored = reference.stored(spec, given)
    index = index_of(spec)
    for name, shared in (("q", 1), ("k", spec.group)):
        for item in range(given["q"].shape[0]):
            root = truth._root_of_tokens(spec, given[name][item])
            for head in range(given[name].shape[1]):
                numbers = truth.transformed(spec, given, name, item, head, root)
                if name == "k" and spec.smooth:
                    numbers, _ = truth.smoothed(spec, numbers)
                value = numbers.value if index is None else numbers.value[index[head * shared]]
                size = np.abs(stored[name][item, head]).max(initial=1e-9)
                np.testing.assert_allclose(value, stored[name][item, head], 1e-9, 1e-9 * size)
