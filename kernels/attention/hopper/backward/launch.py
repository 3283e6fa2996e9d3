"""Run the Hopper backward: descriptors, sums, one launch for each kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.backward.config import (
    constants,
    launch_options,
    parts,
    row_layout,
    rows,
    step_of,
)
from kdsl.kernels.attention.hopper.launch import LOG2E, describable_tensors, describe
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.backward.launch import Given
    from kdsl.kernels.attention.launch import Lists

SETTLING_WARPS = 4


def keys_into(
    module: Any,
    spec: Attention,
    config: Config,
    turned: Lists,
    given: Given,
    dk: Tensor,
    dv: Tensor,
    sums: Tensor | None = None,
) -> None:
    """Fill dK and dV, and add dQ to ``sums``, if given; ``turned`` are inverted lists."""
    part: Part = "keys" if sums is None else "all"
    level, delta = (_described_rows(x, step_of(config, part)) for x in (given.level, given.delta))
    made = _storable(dk), _storable(dv)
    values = _arguments(
        spec, config, part, turned, given, dict(zip(("dk", "dv"), made, strict=True))
    )
    values["steps"] = 0 if sums is None else sums.shape[2]
    programs = given.k.shape[0] * spec.group_heads * turned.rows * _tiles(spec.block[1], config)
    module.attention_backward_keys[(programs,)](
        **values, level=level, delta=delta, sums=sums, columns=turned.rows,
        **launch_options(config),
    )  # fmt: skip
    _copy_back((dk, dv), made)


def queries_into(
    module: Any, spec: Attention, config: Config, held: Lists, given: Given, dq: Tensor
) -> None:
    """Fill dQ; ``held`` are the forward's lists."""
    made = _storable(dq)
    values = _arguments(spec, config, "queries", held, given, {"dq": made})
    programs = given.q.shape[0] * spec.heads * held.rows * _tiles(spec.block[0], config)
    module.attention_backward_queries[(programs,)](
        **values, level=given.level, delta=given.delta, rows=held.rows, **launch_options(config)
    )
    _copy_back((dq,), (made,))


def all_into(
    module: Any,
    spec: Attention,
    config: Config,
    turned: Lists,
    given: Given,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fill all three gradients.  dQ is added up in the order in which programs come to it."""
    sums = empty_sums(spec, config, given.q)
    keys_into(module, spec, config, turned, given, dk, dv, sums)
    batch, heads, steps, _ = sums.shape
    made = _storable(dq)
    d0, d1 = parts(spec, "all")
    module.attention_backward_settle[(batch * heads * steps,)](
        sums, given.level, made, *made.stride()[:3], heads, dq.shape[2], steps, spec.softmax_scale,
        D0=d0, D1=d1, STEP=step_of(config, "all"), num_warps=SETTLING_WARPS,
    )  # fmt: skip
    _copy_back((dq,), (made,))


def empty_sums(spec: Attention, config: Config, q: Tensor) -> Tensor:
    """Float32 zeros to add dQ in, step by step: ``[batch, heads, steps, step * head_dim]``."""
    import torch

    step = step_of(config, "all")
    shape = (*q.shape[:2], -(-q.shape[2] // step), step * spec.head_dim)
    return torch.zeros(shape, dtype=torch.float32, device=q.device)


def _tiles(block: int, config: Config) -> int:
    """Programs of a mask block."""
    return block // (config.num_warps * 16)


def _arguments(
    spec: Attention,
    config: Config,
    part: Part,
    held: Lists,
    given: Given,
    outputs: dict[str, Tensor],
) -> dict[str, Any]:
    """What both kernels take, by name."""
    cut, tall = parts(spec, part), rows(spec, config, part)
    values: dict[str, Any] = {}
    inputs = {"q": given.q, "k": given.k, "v": given.v, "do": given.do}
    for name, x in {**inputs, **outputs}.items():
        described = describe(_fetchable(x) if name in inputs else x, tall[name], cut)
        values |= {name: described[0], f"{name}_tail": described[1]}
    for name in ("start", "full", "partial", "index", "tiles"):
        values[name] = getattr(held, name)
    list_b, list_h = held.strides
    return {
        **values,
        "tables": given.tables,
        "list_b": list_b,
        "list_h": list_h,
        "heads": spec.heads,
        "queries": given.q.shape[2],
        "keys": given.k.shape[2],
        "scale": spec.softmax_scale,
        "scale_log2": spec.softmax_scale * LOG2E,
        **constants(spec, config, part),
    }


def _fetchable(x: Tensor) -> Tensor:
    """A tensor, or a copy that TMA can fetch."""
    import torch

    if describable_tensors((x,)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _storable(x: Tensor) -> Tensor:
    """A tensor, or other memory of its shape that TMA can store to."""
    import torch

    if describable_tensors((x,)):
        return x
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _copy_back(wanted: Sequence[Tensor], made: Sequence[Tensor]) -> None:
    for x, y in zip(wanted, made, strict=True):
        if x is not y:
            x.copy_(y)


def _described_rows(x: Tensor, step: int) -> Any:
    """A descriptor of a number a query, lines of whole 16 bytes."""
    import torch
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, heads, queries = x.shape
    lines = x.reshape(batch * heads, queries)
    if queries % 4:
        lines = torch.nn.functional.pad(lines, (0, -queries % 4))
    shape, strides = [batch * heads, queries], [lines.stride(0), 1]
    return TensorDescriptor(lines, shape, strides, [1, step], row_layout())
