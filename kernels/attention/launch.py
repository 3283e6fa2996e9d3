"""Run an attention template: device lists, descriptors, one launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.blocks import Blocks
from kdsl.expr.tables import Table
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.config import Config, head_parts, table_dtype
from kdsl.kernels.attention.hopper import launch as hopper
from kdsl.kernels.attention.kept import keep
from kdsl.kernels.launching.place import place, stream_of
from kdsl.kernels.lists.launch import strides
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Lists:
    """Rows of blocks and the order of tiles on a device, int32."""

    start: Tensor
    full: Tensor
    partial: Tensor
    index: Tensor
    tiles: Tensor
    rows: int
    counters: dict[int, Tensor] = field(default_factory=dict)
    """By stream: 0, from which persistent programs count up to the next tile."""

    prepared: dict[Any, Any] = field(default_factory=dict)
    """Launches that were made before, by what must be equal to make one again."""

    in_call: bool = False
    """Whether they were made in the call: counters and launches are then of all such lists."""

    def key(self, kind: Any, tables: tuple[Tensor, ...]) -> Any:
        """What a launch depends on of the call's ``kind``, of the lists and of tables; None where
        it is not to be made again."""
        if kind is None or not self.in_call:
            return kind
        if any(x.data_ptr() % 16 for x in (*self.tensors, *tables)):
            return None
        return (kind, self.rows, self.strides)

    def counter(self, stream: int) -> Tensor:
        """A counter at 0 that no launch on another stream uses at the same time.

        A launch leaves its counter at 0 again, so that launches of one stream can share one.
        Graphs may run beside each other wherever they were captured: each launch in one gets its
        own.
        """
        import torch

        device = self.start.device
        if device.type != "cuda" or place(device.type).capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        if stream not in self.counters:
            self.counters[stream] = torch.zeros(1, dtype=torch.int32, device=device)
        return self.counters[stream]

    @property
    def tensors(self) -> list[Tensor]:
        """What lies on the device, in the order of the fields."""
        return [self.start, self.full, self.partial, self.index, self.tiles]

    @property
    def strides(self) -> tuple[int, int]:
        """Entries between batch items and between heads; 0 where they share rows."""
        return strides(self.start)


def lists(blocks: Blocks, heads: int, device: Any, summed: int = 1) -> Lists:
    """Upload rows of blocks; a ragged last key block counts as partial, for it must be bounded.

    ``summed`` neighbouring heads make one tile, as in the gradients of grouped keys.
    """
    import torch

    full, partial = blocks.full, blocks.partial
    if blocks.keys % blocks.block[1] and len(blocks.index):
        last = np.clip(blocks.start + full - 1, 0, len(blocks.index) - 1)
        # Full columns ascend, so the ragged one is the last: moving the border by one is enough.
        ragged = (full > 0) & (blocks.index[last] == blocks.columns - 1)
        full, partial = full - ragged, partial + ragged

    def up(x: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.int32)).to(device)

    index = blocks.index if len(blocks.index) else np.zeros(1, np.int32)
    return Lists(
        up(blocks.start),
        up(full),
        up(partial),
        up(index),
        up(tile_order(blocks, heads, summed)),
        blocks.rows,
    )


def tile_order(blocks: Blocks, heads: int, summed: int = 1) -> Any:
    """``head * rows + row``: heads with most blocks first, and in each its longest rows.

    Long rows first keep the end of the launch short; heads together keep their keys in the L2.
    """
    counts = np.broadcast_to(blocks.counts.sum(0), (heads, blocks.rows))
    counts = counts.reshape(heads // summed, summed, blocks.rows).sum(1)
    by_head = np.argsort(-counts.sum(1), kind="stable")
    by_row = np.argsort(-counts[by_head], axis=1, kind="stable")
    return (by_head[:, None] * blocks.rows + by_row).reshape(-1)


def launch(
    module: Any,
    spec: Attention,
    config: Config,
    held: Lists,
    tensors: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, ...] = (),
    out: Tensor | None = None,
    lse: Tensor | None = None,
    kind: Any = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, queries, head_dim]`` and log-sum-exp ``[batch, heads, queries]``.

    ``module`` is the generated file.  The log-sum-exp is filled only if the spec asks for it.
    Calls of one ``kind`` have tensors of equal shapes, strides and alignment, and no outputs given.
    """
    import torch

    q, k, v = tensors
    batch, heads, queries, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    if lse is None:
        shape = (batch, heads, queries) if spec.return_lse else (1, 1, 1)
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    if config.template == "hopper":
        hopper.launch(module, spec, config, held, tensors, tables, out, lse, kind)
        return out, lse
    moving = {"q": q, "k": k, "v": v, "o": out, "lse": lse}
    key = held.key(kind, tables)
    ready = None if key is None else held.prepared.get(key)
    if ready is not None:
        ready(moving, held, tables, stream_of(q.device))
        return out, lse
    programs = batch * heads * held.rows * (spec.block[0] // config.block_m)
    values = arguments_of(spec, config, held, moving, tables)
    fn = module.attention_forward
    kernel = fn[(programs,)](
        **values, num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True
    )
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
    d0, d1 = head_parts(spec.head_dim)
    described = config.loads == "descriptor"
    values: dict[str, Any] = {**moving, "q_tail": None, "k_tail": None, "v_tail": None}
    for name in "qkvo":
        strides = zip("bhnd", moving[name].stride(), strict=True)
        values |= {f"{name}_{axis}": step for axis, step in strides}
    for name in ("start", "full", "partial", "index", "tiles", "rows"):
        values[name] = getattr(held, name)
    q, k, v = (moving[name] for name in "qkv")
    if described:
        rows = (config.block_m, config.block_n, config.block_n)
        firsts, tails = describe((q, k, v), rows, d0, d1)
        values |= dict(zip(("q", "k", "v"), firsts, strict=True))
        values |= dict(zip(("q_tail", "k_tail", "v_tail"), tails, strict=True))
    return {
        **values,
        "tables": tables,
        **dict(zip(("list_b", "list_h"), held.strides, strict=True)),
        "heads": q.shape[1],
        "queries": q.shape[2],
        "keys": k.shape[2],
        "scale_log2": spec.softmax_scale * LOG2E,
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "DESCRIBED": described,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "LSE": spec.return_lse,
        "STORED": spec.stored,
        "PRECISION": "ieee",
    }


def describe(
    tensors: tuple[Tensor, ...], rows: tuple[int, ...], d0: int, d1: int
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Descriptors of tiles of so many rows, over the two parts of the head dimension."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    def over(x: Tensor, n: int, columns: int) -> Any:
        return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, n, columns])

    first = tuple(over(x, n, d0) for x, n in zip(tensors, rows, strict=True))
    if not d1:
        return first, (None,) * len(first)
    return first, tuple(over(x, n, d1) for x, n in zip(tensors, rows, strict=True))


def table_tensors(
    spec: Attention, tables: Mapping[str, Any] | None, device: Any
) -> tuple[Tensor, ...]:
    """Tables in the order the leaves take them, on a device, contiguous."""
    held = leaf_tables.table_values(spec, tables or {})
    return tuple(table_tensor(t, held[t.name], device) for t in leaf_tables.tables(spec))


def table_tensor(table: Table, values: Any, device: Any) -> Tensor:
    """One table as the leaves take it; values of the host are checked."""
    import torch

    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.array(table.checked(values)))
    held: Tensor = values.to(device=device, dtype=getattr(torch, table_dtype(table)))
    return held.contiguous()
