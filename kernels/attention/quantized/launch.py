"""Run a quantized template: one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.hopper.config import options as hopper_options
from kdsl.kernels.attention.kept import keep
from kdsl.kernels.attention.launch import LOG2E, describe
from kdsl.kernels.attention.quantized.hopper import launch as hopper
from kdsl.kernels.attention.quantized.portable import constants, layout_of
from kdsl.kernels.launching.place import stream_of
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.launch import Lists

SCALES = ("q_scale", "k_scale", "v_scale", "v_sum")


def launch(
    module: Any,
    spec: Attention,
    config: Config,
    held: Lists,
    operands: tuple[Tensor, ...],
    tables: tuple[Tensor, ...] = (),
    out: Tensor | None = None,
    lse: Tensor | None = None,
    kind: Any = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, head_dim]`` in the spec's dtype, and the log-sum-exp.

    ``operands`` are those that the layout names; scales and sums must be contiguous.  Otherwise as
    `kdsl.kernels.attention.launch.launch`.
    """
    import torch

    given = dict(zip(layout_of(spec).operands, operands, strict=True))
    q = given["q"]
    batch, heads, queries, _ = q.shape
    if out is None:
        out = torch.empty(q.shape, dtype=getattr(torch, spec.dtype), device=q.device)
    if lse is None:
        shape = (batch, heads, queries) if spec.return_lse else (1, 1, 1)
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    stream = stream_of(q.device)
    moving = {**given, "o": out, "lse": lse}
    if config.template == "hopper":
        moving["counter"] = held.counter(stream)
    key = held.key(kind, tables)
    ready = None if key is None else held.prepared.get(key)
    if ready is not None:
        ready(moving, held, tables, stream)
        return out, lse
    fn = module.attention_quantized
    if config.template == "hopper":
        programs, values = hopper.arguments_of(spec, config, held, moving, tables)
        options = hopper_options(config)
    else:
        programs = batch * heads * held.rows * (spec.block[0] // config.block_m)
        values = arguments_of(spec, config, held, moving, tables)
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    kernel = fn[(programs,)](**values, **options, enable_fp_fusion=True)
    if key is not None:
        keep(held.prepared, key, kernel, fn.arg_names, values, programs)
    return out, lse


def arguments_of(
    spec: Attention,
    config: Config,
    held: Lists,
    moving: Mapping[str, Tensor],
    tables: tuple[Tensor, ...],
) -> dict[str, Any]:
    """Every argument of the portable kernel by name."""
    layout = layout_of(spec)
    d0, d1 = head_parts(spec.head_dim)
    values: dict[str, Any] = {**dict.fromkeys(SCALES), **moving}
    values |= dict.fromkeys(("q_tail", "k_tail", "v_tail"))
    for name in "qkvo":
        steps = zip("bhnd", moving[name].stride(), strict=True)
        values |= {f"{name}_{axis}": step for axis, step in steps}
    for name in ("start", "full", "partial", "index", "tiles", "rows"):
        values[name] = getattr(held, name)
    q, k, v = (moving[name] for name in "qkv")
    if config.loads == "descriptor":
        rows = (config.block_m, config.block_n, config.block_n)
        firsts, tails = describe((q, k, v), rows, d0, d1)
        values |= dict(zip(("q", "k", "v"), firsts, strict=True))
        values |= dict(zip(("q_tail", "k_tail", "v_tail"), tails, strict=True))
        if layout.v is not None:
            values["v"] = _turned(v, d0, config.block_n)
            values["v_tail"] = _turned(v, d1, config.block_n) if d1 else None
    return {
        **values,
        "tables": tables,
        **dict(zip(("list_b", "list_h"), held.strides, strict=True)),
        "heads": q.shape[1],
        "queries": q.shape[2],
        "keys": k.shape[2],
        "q_groups": moving["q_scale"].shape[2],
        "k_groups": moving["k_scale"].shape[2],
        "v_groups": moving["v_sum"].shape[2] if "v_sum" in moving else 0,
        "scale_log2": spec.softmax_scale * LOG2E,
        **constants(spec, config),
    }


def _turned(v: Tensor, channels: int, tokens: int) -> Any:
    """A descriptor of tiles of transposed v."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(v, list(v.shape), list(v.stride()), [1, 1, channels, tokens])
