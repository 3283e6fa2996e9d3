"""What happens to q, k and v between a model's projections and quantized attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from kdsl.errors import SpecError, reading
from kdsl.expr.tables import Table
from kdsl.grid import Grid, as_grid, count
from kdsl.layouts import AttentionLayout
from kdsl.orders import Order, PerHead, identity, per_head
from kdsl.orders import from_json as order_from_json
from kdsl.orders import to_json as order_to_json
from kdsl.specs.attention import HEAD_DIMS, Attention
from kdsl.specs.common import DTYPES, check_length, digest, optional, positive, whole

NORMS = ("rms", "rms_token", "layer")
ROPES = ("interleaved", "half")
POOLED = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Prepass:
    """q, k and v ``[batch, heads, tokens, head_dim]`` into the operands of quantized attention.

    In this order:

    * ``norm`` of q and of k: ``"rms"`` of each head of a token, ``"rms_token"`` over all heads of a
      token together (Wan), both times a weight; ``"layer"`` of each head, with weight and bias
      (CogVideoX).
    * ``rope`` by tables of cosines and sines of the grid's visual tokens, in their original order:
      ``"interleaved"`` turns channels 2i and 2i + 1, ``"half"`` i and i + head_dim / 2.  Text is
      not turned.
    * ``order``: tokens of each head into stored order.
    * ``smooth``: k less its mean over all tokens, which moves all scores of a query alike: the
      output stays, the log-sum-exp falls by the product of query and mean.
    * ``layout``: codes and scales, v as its product reads it (`kdsl.layouts.AttentionLayout`).
    * ``pool``: means of so many stored tokens of q and of k as they were quantized, to choose
      blocks by.

    ``inputs`` names the tensors of a call, ``outputs`` those of its result.  `attention` is the
    spec that takes them.
    """

    tokens: Grid | int
    heads: int
    kv_heads: int | None = None
    head_dim: int
    dtype: str = "bfloat16"
    layout: AttentionLayout
    order: Order | None = None
    norm: str | None = None
    eps: float = 1e-6
    rope: str | None = None
    smooth: bool = False
    pool: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "tokens", as_grid(self.tokens))
        if self.kv_heads is None:
            set_(self, "kv_heads", self.heads)
        for name in ("heads", "kv_heads", "head_dim"):
            set_(self, name, positive(getattr(self, name), name))
        check_length(self.grid.tokens, "tokens")
        if self.heads % self.group_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise SpecError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}",
                hint=f"kv_heads in {divisors}",
            )
        if self.head_dim not in HEAD_DIMS:
            raise SpecError(
                f"no attention kernel has head_dim={self.head_dim}",
                hint=f"one of {', '.join(map(str, HEAD_DIMS))}",
            )
        if not isinstance(self.smooth, bool):
            raise SpecError(f"smooth={self.smooth!r}", hint="True or False")
        for name, known in (("dtype", DTYPES), ("norm", (None, *NORMS)), ("rope", (None, *ROPES))):
            if getattr(self, name) not in known:
                hint = " or ".join(map(repr, known))
                raise SpecError(f"{name}={getattr(self, name)!r}", hint=hint)
        eps = self.eps
        if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < math.inf:
            raise SpecError(f"eps={eps!r}", hint="a number above 0")
        set_(self, "eps", float(eps))
        self._check_layout()
        self._check_order()
        if self.pool is not None:
            sizes = tuple(map(count, self.pool)) if isinstance(self.pool, Sequence) else ()
            if len(sizes) != 2 or not all(n in POOLED for n in sizes):
                raise SpecError(
                    f"pool={self.pool!r}",
                    hint=f"(queries, keys) a block, sizes of {', '.join(map(str, POOLED))}",
                )
            set_(self, "pool", sizes)

    def _check_layout(self) -> None:
        if not isinstance(self.layout, AttentionLayout):
            hint = "kdsl.layouts.int8_qk_fp8_pv()"
            raise SpecError(f"layout={self.layout!r}"[:200], hint=hint)
        if self.layout.v is None and self.dtype == "float32":
            raise SpecError(
                "v stays in the spec's dtype, and quantized attention has none of float32",
                hint="dtype='bfloat16' or 'float16', or a layout with 8-bit v",
            )

    def _check_order(self) -> None:
        if isinstance(self.order, Sequence) and not isinstance(self.order, str):
            object.__setattr__(self, "order", per_head(self.order))
        order = self.order
        if order is None:
            return
        if not isinstance(order, Order):
            raise SpecError(f"order={order!r}", hint='kdsl.orders.axes(grid, "HWF")')
        if order.tokens != self.grid.tokens:
            raise SpecError(
                f"the order is over {order.tokens} tokens, the spec has {self.grid.tokens}",
                where=repr(order),
                hint=f"an order over {self.grid!r}",
            )
        if isinstance(order, PerHead):
            if len(order.orders) != self.heads:
                raise SpecError(f"the order is for {len(order.orders)} heads of {self.heads}")
            starts = range(0, self.heads, self.group)
            if any(len(set(order.orders[s : s + self.group])) > 1 for s in starts):
                raise SpecError(
                    f"groups of {self.group} query heads share keys that are stored in one order, "
                    "and some have several",
                    hint="one order for each group of heads",
                )
        # Two tables of one name show here.
        _ = self.tables

    @property
    def grid(self) -> Grid:
        """The tokens' grid."""
        assert isinstance(self.tokens, Grid)
        return self.tokens

    @property
    def group_heads(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.group_heads

    @property
    def stored_order(self) -> Order:
        """The order of the query heads."""
        return self.order or identity(self.grid)

    @property
    def key_orders(self) -> tuple[Order, ...]:
        """The order of each key head, or the one for all."""
        return self.stored_order.parts[:: self.group if len(self.stored_order.parts) > 1 else 1]

    @property
    def moves(self) -> bool:
        """Whether a token changes its place."""
        return not self.stored_order.is_identity

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Every table of the orders."""
        return self.stored_order.tables

    @property
    def open_tables(self) -> tuple[Table, ...]:
        """Tables whose values come with the call."""
        return tuple(t for t in self.tables if t.values is None)

    @cached_property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of a call by name, in order; those of q, k, v without the batch.

        Tables of cosines and sines may also have ``head_dim`` columns, each number twice.
        """
        heads = {"q": self.heads, "k": self.group_heads, "v": self.group_heads}
        out: dict[str, tuple[int, ...]] = {
            name: (n, self.grid.tokens, self.head_dim) for name, n in heads.items()
        }
        if self.norm is not None:
            for part in ("weight", "bias")[: 2 if self.norm == "layer" else 1]:
                for name in "qk":
                    over = heads[name] if self.norm == "rms_token" else 1
                    out[f"{name}_{part}"] = (over * self.head_dim,)
        if self.rope is not None:
            out |= dict.fromkeys(("cos", "sin"), (self.grid.visual, self.head_dim // 2))
        return out

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors of a result: the layout's operands, k's mean, pooled q and k."""
        mean = ("k_mean",) if self.smooth else ()
        return (*self.layout.operands, *mean, *(("q_pool", "k_pool") if self.pool else ()))

    def shapes(self, batch: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each output by name."""
        tokens, d = self.grid.tokens, self.head_dim
        q, k = (batch, self.heads, tokens, d), (batch, self.group_heads, tokens, d)
        out = self.layout.shapes(q, k, self.dtype)
        if self.smooth:
            out["k_mean"] = ((batch, self.group_heads, d), "float32")
        if self.pool is not None:
            for name, shape, size in zip("qk", (q, k), self.pool, strict=True):
                out[f"{name}_pool"] = ((*shape[:2], -(-tokens // size), d), "float32")
        return out

    def attention(self, **given: Any) -> Attention:
        """The attention that takes this pre-pass's operands: `mask`, `block` and what else is
        given.  SpecError as for any attention; with float32 tensors its ``dtype`` must be given."""
        own = {"order": self.order, "stored": self.moves, "dtype": self.dtype}
        return Attention(
            tokens=self.grid, heads=self.heads, kv_heads=self.group_heads, head_dim=self.head_dim,
            layout=self.layout, **{**own, **given},
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {
            "op": "prepass",
            "tokens": self.grid.to_json(),
            "heads": self.heads,
            "kv_heads": self.group_heads,
            "head_dim": self.head_dim,
            "dtype": self.dtype,
            "layout": self.layout.to_json(),
            "order": order_to_json(self.order) if self.order else None,
            "norm": self.norm,
            "eps": self.eps.hex(),
            "rope": self.rope,
            "smooth": self.smooth,
            "pool": None if self.pool is None else list(self.pool),
        }

    @staticmethod
    @reading("prepass spec")
    def from_json(value: Mapping[str, Any]) -> Prepass:
        """The spec written by `to_json`."""
        whole(value, {"op", *(f.name for f in fields(Prepass))}, "prepass spec")
        return Prepass(
            tokens=Grid.from_json(value["tokens"]),
            heads=value["heads"],
            kv_heads=value["kv_heads"],
            head_dim=value["head_dim"],
            dtype=value["dtype"],
            layout=AttentionLayout.from_json(value["layout"]),
            order=optional(order_from_json)(value["order"]),
            norm=value["norm"],
            eps=float.fromhex(value["eps"]),
            rope=value["rope"],
            smooth=value["smooth"],
            pool=optional(tuple)(value["pool"]),
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the whole spec."""
        return digest(self.to_json())

    @property
    def program(self) -> str:
        """Identity of the generated program: no sizes, constants or tables."""
        lead = ["prepass", self.dtype, self.head_dim, self.layout.to_json(), self.moves]
        text = bool(self.grid.text)
        pool = None if self.pool is None else list(self.pool)
        return digest([*lead, self.norm, self.rope, text, self.smooth, pool])
