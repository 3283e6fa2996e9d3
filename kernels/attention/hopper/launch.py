"""Run the Hopper template: descriptors, the counter, one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.hopper.config import (
    constants,
    layout_of,
    options,
    stores_by_descriptor,
)
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.launch import Lists

LOG2E = 1.4426950408889634
ALIGNMENT = 16


def describable_tensors(tensors: tuple[Tensor, ...]) -> bool:
    """Whether TMA can fetch from tensors: unit columns, addresses and strides of 16 bytes."""
    for x in tensors:
        steps = [n * x.element_size() for n in x.stride()[:-1]]
        if x.stride(-1) != 1 or x.data_ptr() % ALIGNMENT:
            return False
        if any(n % ALIGNMENT or n <= 0 for n in steps):
            return False
    return True


def describe(x: Tensor, rows: int, head_dim: int) -> tuple[Any, Any]:
    """Descriptors of the two parts of ``[batch, heads, tokens, head_dim]``, `rows` rows a tile."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    shape, strides = list(x.shape), list(x.stride())
    first, second = (
        TensorDescriptor(x, shape, strides, [1, 1, rows, n], layout_of(n)) if n else None
        for n in head_parts(head_dim)
    )
    return first, second


def launch(
    module: Any,
    spec: Attention,
    config: Config,
    held: Lists,
    tensors: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, ...],
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fill ``out``, whose columns lie side by side, and ``lse``, if the spec asks for it."""
    q, k, _ = tensors
    batch, heads, queries, head_dim = q.shape
    described = stores_by_descriptor(spec) and describable_tensors((out,))
    parts = [
        describe(x, rows, head_dim)
        for x, rows in zip(tensors, (64, config.block_n, config.block_n), strict=True)
    ]
    parts.append(describe(out, 64, head_dim) if described else (out, None))
    (q0, q1), (k0, k1), (v0, v1), (o0, o1) = parts
    total = batch * heads * held.rows * (spec.block[0] // config.block_m)
    programs = total
    if config.workers and q.device.type == "cuda":
        programs = min(total, config.workers * multiprocessors(q.device))
    module.attention_forward[(programs,)](
        q0, k0, v0, o0, lse, q1, k1, v1, o1,
        held.start, held.full, held.partial, held.index, held.tiles, held.counter(), tables,
        *((0, 0, 0) if described else out.stride()[:3]), *held.strides,
        heads, held.rows, queries, k.shape[2], total, spec.softmax_scale * LOG2E,
        **constants(spec, config, described), **options(config),
    )  # fmt: skip


def multiprocessors(device: Any) -> int:
    """How many a device has."""
    import torch

    # torch keeps the properties of devices that it was asked about.
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
