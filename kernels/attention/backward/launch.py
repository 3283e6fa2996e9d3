"""Run the backward template: inverted lists, and one launch for each of its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsl.blocks import Blocks
from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.kept import HELD
from kdsl.kernels.attention.launch import LOG2E, Lists, describe, lists
from kdsl.kernels.launching.prepared import Prepared, kind_of, launch
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATE = Path(__file__).parent / "template.py"
ROWS = 64
"""Queries of one program of `attention_backward_rows`."""


@dataclass(frozen=True)
class Given:
    """What the kernels read, on one device.

    ``q``, ``k``, ``v`` and ``do`` in any strides; ``level`` and ``delta`` as `rows` makes them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    level: Tensor
    delta: Tensor
    tables: tuple[Tensor, ...] = ()
    again: bool = False
    """Whether launches are kept with the lists, and made again for calls like theirs."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The four in the order of the kernels' arguments."""
        return self.q, self.k, self.v, self.do

    def moving(self, **outputs: Tensor) -> dict[str, Tensor]:
        """What changes from call to call, by the arguments' names."""
        inputs = dict(zip(("q", "k", "v", "do"), self.tensors, strict=True))
        return {**inputs, "level": self.level, "delta": self.delta, **outputs}

    def key(self, part: str, config: Config, held: Lists, moving: Mapping[str, Tensor]) -> Any:
        """What two launches of a kernel must have in common to be one made again."""
        if not self.again:
            return None
        return held.key((part, config, kind_of(tuple(moving.values()))), self.tables)


def summed(spec: Attention) -> int:
    """Query heads whose dK and dV one program sums: those of a group, if they agree on a tile.

    The sum stays in float32 registers and is rounded once, and no memory holds parts of it.  Heads
    of a group with different stored orders of the keys cut other tiles, and are summed afterwards.
    """
    orders = spec.kv_order.parts
    if len(orders) == 1:
        return spec.group
    groups = (orders[h : h + spec.group] for h in range(0, spec.heads, spec.group))
    return spec.group if all(len(set(g)) == 1 for g in groups) else 1


def inverted(blocks: Blocks, spec: Attention, device: Any) -> Lists:
    """For each key block the query blocks that visit it; a ragged last query block is partial."""
    return lists(blocks.transpose(), spec.heads, device, summed(spec))


def rows(
    module: Any,
    spec: Attention,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    dlse: Tensor | None = None,
    prepared: dict[Any, Prepared] | None = None,
) -> tuple[Tensor, Tensor]:
    """``level`` and ``delta`` of each query, float32 ``[batch, heads, queries]``.

    ``lse`` and ``dlse`` are contiguous, of that shape; ``prepared`` keeps launches.
    """
    import torch

    batch, heads, queries, _ = out.shape
    d0, d1 = head_parts(spec.head_dim)
    level, delta = torch.empty_like(lse), torch.empty_like(lse)
    programs = batch * heads * -(-queries // ROWS)
    moving = {"o": out, "do": do, "lse": lse, "level": level, "delta": delta}
    moving |= {} if dlse is None else {"dlse": dlse}
    key = None if prepared is None else ("rows", *moving, kind_of(tuple(moving.values())))

    def values() -> dict[str, Any]:
        return {
            "dlse": None, **moving, **_strides(("o", out), ("do", do)),
            "heads": heads, "queries": queries,
            "D0": d0, "D1": d1, "BLOCK": ROWS, "DLSE": dlse is not None,
        }  # fmt: skip

    fn, options = module.attention_backward_rows, {"num_warps": 4, "enable_fp_fusion": True}
    launch(fn, programs, key, {} if prepared is None else prepared, moving, values, options)
    return level, delta


def summed_up(spec: Attention, given: Given, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """dK and dV in the shapes of k and v, of what `keys_into` filled."""
    if dk.shape == given.k.shape:
        return dk, dv
    batch, _, tokens, d = given.k.shape
    apart = (batch, spec.group_heads, spec.group, tokens, d)
    dk, dv = (x.view(apart).sum(2).to(given.k.dtype) for x in (dk, dv))
    return dk, dv


def keys_into(
    module: Any,
    spec: Attention,
    config: Config,
    turned: Lists,
    given: Given,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fill what `key_outputs` made."""
    count = summed(spec)
    batch, heads, _, _ = given.q.shape
    programs = batch * (heads // count) * turned.rows * (spec.block[1] // config.block_n)
    moving = given.moving(dk=dk, dv=dv)

    def values() -> dict[str, Any]:
        described = _described(config, {"q": given.q, "do": given.do}, (config.block_m,) * 2)
        return {
            **moving, **described, **_common(spec, config, turned, given), "SUMMED": count,
            **_strides(("dk", dk), ("dv", dv)), "columns": turned.rows,
        }  # fmt: skip

    key = given.key("keys", config, turned, moving)
    launch(
        module.attention_backward_keys, programs, key, turned.prepared, moving, values,
        _options(config), turned, given.tables, HELD,
    )  # fmt: skip


def key_outputs(spec: Attention, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for dK and dV: like k and v, or a part for each query head in float32."""
    import torch

    if summed(spec) == spec.group:
        return torch.empty_like(k), torch.empty_like(v)
    shape = (k.shape[0], spec.heads, *k.shape[2:])
    dk, dv = (torch.empty(shape, dtype=torch.float32, device=k.device) for _ in range(2))
    return dk, dv


def queries_into(
    module: Any, spec: Attention, config: Config, held: Lists, given: Given, dq: Tensor
) -> None:
    """Fill dQ; ``held`` are the forward's lists."""
    m, n = config.block_m, config.block_n
    batch, heads, _, _ = given.q.shape
    programs = batch * heads * held.rows * (spec.block[0] // config.block_m)
    moving = given.moving(dq=dq)

    def values() -> dict[str, Any]:
        inputs = {"q": given.q, "k": given.k, "v": given.v, "do": given.do}
        described = _described(config, inputs, (m, n, n, m))
        return {
            **moving, **described, **_common(spec, config, held, given),
            **_strides(("dq", dq)), "rows": held.rows,
        }  # fmt: skip

    key = given.key("queries", config, held, moving)
    launch(
        module.attention_backward_queries, programs, key, held.prepared, moving, values,
        _options(config), held, given.tables, HELD,
    )  # fmt: skip


def _described(
    config: Config, tensors: Mapping[str, Tensor], rows: tuple[int, ...]
) -> dict[str, Any]:
    """Some tensors as the kernels take them, and their tails."""
    if config.loads == "pointer":
        return {**tensors, **{f"{name}_tail": None for name in tensors}}
    d0, d1 = head_parts(next(iter(tensors.values())).shape[3])
    firsts, tails = describe(tuple(tensors.values()), rows, d0, d1)
    made = dict(zip(tensors, firsts, strict=True))
    return made | {f"{name}_tail": x for name, x in zip(tensors, tails, strict=True)}


def _strides(*tensors: tuple[str, Tensor]) -> dict[str, int]:
    return {
        f"{name}_{axis}": n
        for name, x in tensors
        for axis, n in zip("bhnd", x.stride(), strict=True)
    }


def _common(spec: Attention, config: Config, held: Lists, given: Given) -> dict[str, Any]:
    """What the kernels of dQ and of dK and dV both take."""
    d0, d1 = head_parts(spec.head_dim)
    named = zip(("q", "k", "v", "do"), given.tensors, strict=True)
    list_b, list_h = held.strides
    return {
        **{name: getattr(held, name) for name in HELD}, "tables": given.tables,
        **_strides(*named), "list_b": list_b, "list_h": list_h,
        "heads": given.q.shape[1], "queries": given.q.shape[2], "keys": given.k.shape[2],
        "scale": spec.softmax_scale, "scale_log2": spec.softmax_scale * LOG2E,
        "GROUP": spec.group, "D0": d0, "D1": d1, "MASK_M": spec.block[0], "MASK_N": spec.block[1],
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "DESCRIBED": config.loads == "descriptor", "PRECISION": "ieee",
    }  # fmt: skip


def _options(config: Config) -> dict[str, Any]:
    return {
        "num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True,
    }  # fmt: skip
