"""Run the Hopper template: copies in stored order where a spec has one, descriptors, the counter,
one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.hopper.config import (
    constants,
    layout_of,
    options,
    stores_by_descriptor,
)
from kdsl.kernels.attention.kept import keep
from kdsl.kernels.launching.place import multiprocessors, stream_of
from kdsl.kernels.launching.prepared import kind_of
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


def describe(x: Tensor, rows: int, parts: tuple[int, int]) -> tuple[Any, Any]:
    """Descriptors of two parts of the columns (the second may be 0) of ``[batch, heads, tokens,
    head_dim]``, `rows` rows a tile."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    shape, strides = list(x.shape), list(x.stride())
    first, second = (
        TensorDescriptor(x, shape, strides, [1, 1, rows, n], layout_of(n)) if n else None
        for n in parts
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
    kind: Any = None,
) -> None:
    """Fill ``out``, whose columns lie side by side, and ``lse``, if the spec asks for it."""
    stream = stream_of(tensors[0].device)
    q, k, v = stored(module, spec, held, tensors, tables, stream, kind)
    moving = {"q": q, "k": k, "v": v, "o": out, "lse": lse, "counter": held.counter(stream)}
    kind = kind or (
        module, config, q.shape[0], q.stride(), k.stride(), v.stride(), out.stride(),
        out.data_ptr() % ALIGNMENT, lse.data_ptr() % ALIGNMENT,
    )  # fmt: skip
    key = held.key(kind, tables)
    ready = None if key is None else held.prepared.get(key)
    if ready is not None:
        ready(moving, held, tables, stream)
        return
    programs, values = arguments_of(spec, config, held, moving, tables)
    fn = module.attention_forward
    kernel = fn[(programs,)](**values, **options(config))
    if key is not None:
        keep(held.prepared, key, kernel, fn.arg_names, values, programs)


def stored(
    module: Any,
    spec: Attention,
    held: Lists,
    tensors: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, ...],
    stream: int,
    kind: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with side by side what the kernel fetches together: copies where they are not."""
    import torch

    turned = to_copy(spec)
    if not any(turned):
        return tensors
    q, k, _ = tensors
    copies = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if made else x
        for x, made in zip(tensors, (turned[0], turned[1], turned[1]), strict=True)
    ]
    names = ("q", "k", "v", "q_stored", "k_stored", "v_stored")
    moving = dict(zip(names, (*tensors, *copies), strict=True))
    # With bits of partial blocks there are more tables, for the same tensors.
    key = held.key(("copy", kind or (module, len(tables), kind_of(tensors))), tables)
    ready = None if key is None else held.prepared.get(key)
    if ready is not None:
        ready(moving, held, tables, stream)
    else:
        batch, heads, queries, head_dim = q.shape
        rows = copied_rows(head_dim)
        blocks_q, blocks_k = (-(-n // rows) for n in (queries, k.shape[2]))
        programs_q = batch * heads * blocks_q if turned[0] else 0
        programs_k = batch * k.shape[1] * blocks_k if turned[1] else 0
        d0, d1 = head_parts(head_dim)
        values: dict[str, Any] = {
            **moving, "tables": tables, "heads": heads, "queries": queries, "keys": k.shape[2],
            "q_programs": programs_q, "k_programs": programs_k,
            "GROUP": spec.group, "D0": d0, "D1": d1, "ROWS": rows,
        }  # fmt: skip
        for name, x in zip("qkv", tensors, strict=True):
            values |= {f"{name}_{axis}": n for axis, n in zip("bhn", x.stride()[:3], strict=True)}
        fn, programs = module.attention_copy, programs_q + 2 * programs_k
        kernel = fn[(programs,)](**values, num_warps=4)
        if key is not None:
            keep(held.prepared, key, kernel, fn.arg_names, values, programs)
    return copies[0], copies[1], copies[2]


def copied_rows(head_dim: int) -> int:
    """Tokens of a program that copies: eight loads a thread leave registers for 1,024 threads."""
    return 64 if head_dim <= 128 else 32


def to_copy(spec: Attention) -> tuple[bool, bool]:
    """Whether queries, and whether keys and values, come in another order than they are fetched."""
    ordered = (not order.is_identity for order in (spec.query_order, spec.kv_order))
    queries, keys = (moved and not spec.stored for moved in ordered)
    return queries, keys


def copied_first(spec: Attention) -> tuple[str, ...]:
    """Which of q, k and v are."""
    queries, keys = to_copy(spec)
    return ("q",) * queries + ("k", "v") * keys


def arguments_of(
    spec: Attention,
    config: Config,
    held: Lists,
    moving: Mapping[str, Tensor],
    tables: tuple[Tensor, ...],
) -> tuple[int, dict[str, Any]]:
    """Programs to launch, and every argument of the kernel by name."""
    q, k, v, out = (moving[name] for name in "qkvo")
    batch, heads, queries, head_dim = q.shape
    described = stores_by_descriptor(spec) and describable_tensors((out,))
    n = config.block_n
    values: dict[str, Any] = {}
    for name, x, rows in (("q", q, 64), ("k", k, n), ("v", v, n), ("o", out, 64)):
        parts = describe(x, rows, head_parts(head_dim)) if name != "o" or described else (x, None)
        values |= {name: parts[0], f"{name}_tail": parts[1]}
    total = batch * heads * held.rows * (spec.block[0] // config.block_m)
    programs = total
    if config.workers and q.device.type == "cuda":
        programs = min(total, config.workers * multiprocessors(q.device))
    for name in ("start", "full", "partial", "index", "tiles"):
        values[name] = getattr(held, name)
    strides = (0, 0, 0) if described else out.stride()[:3]
    values |= dict(
        zip(("o_b", "o_h", "o_n", "list_b", "list_h"), (*strides, *held.strides), strict=True)
    )
    return programs, {
        **values,
        "lse": moving["lse"],
        "counter": moving["counter"],
        "tables": tables,
        "heads": heads,
        "rows": held.rows,
        "queries": queries,
        "keys": k.shape[2],
        "total": total,
        "scale_log2": spec.softmax_scale * LOG2E,
        **constants(spec, config, described),
    }
