"""Plans of attention: for each layer and head a token order, for each range of steps its blocks.

Blocks are packed one bit each, without padding: a layer's ``[heads, rows, columns]`` in row-major
order, least significant bit first.  Ranges of sampling steps share their blocks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import masks, orders
from kdsl.errors import InputError, SpecError, StoreError
from kdsl.grid import Grid, count
from kdsl.masks import Mask
from kdsl.orders import Order
from kdsl.plans.container import Payload, Plan, load
from kdsl.specs import Attention

TABLE = "plan"
"""Name of the table of kept blocks in the specs."""
LISTED = "table("
"""How names of orders begin that are lists of tokens: ``table(0)`` is the plan's first list."""

ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
"""Kept blocks in each byte."""

Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]

ARRAYS = {
    "block": (("sides",), "int32"),
    "order": (("layers", "heads"), "int16"),
    "blocks": (("steps", "layers", "bytes"), "uint8"),
}
"""What every plan of attention holds: axes and dtype."""


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Orders and blocks of a model's attention layers, read from a `Plan`.

    Made by `attention_plan` or `AttentionPlan.load`; everything but the blocks themselves is
    checked when it is made, and blocks when they are first asked for, before anything is launched.
    """

    plan: Plan

    def __post_init__(self) -> None:
        plan = self.plan
        if plan.kind != "attention" or plan.grid is None or not plan.steps:
            raise SpecError(
                f"a plan of kind {plan.kind!r}, grid {plan.grid!r}, {len(plan.steps)} ranges",
                hint='kind "attention" with a grid and ranges of steps',
            )
        for name, (axes, dtype) in ARRAYS.items():
            held = plan.payload.get(name)
            if held is None or held.axes != axes or held.values.dtype.name != dtype:
                raise SpecError(f"the plan has no {name!r} of {dtype} {list(axes)}")
        if plan["block"].shape != (2,) or plan["block"].min() < 1:
            raise SpecError(f"blocks of {plan['block'].tolist()} tokens", hint="[64, 64]")
        chosen = plan["order"]
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(plan.orders):
            raise SpecError(
                f"a head has order {int(chosen.max())}, the plan names {len(plan.orders)}",
                where=", ".join(plan.orders),
            )
        size = -(-self.heads * self.rows * self.columns // 8)
        if plan["blocks"].shape[2] != size:
            raise SpecError(
                f"{plan['blocks'].shape[2]} bytes of blocks a layer",
                where=f"{self.heads} heads, {self.rows} x {self.columns} blocks",
                hint=f"{size} bytes: a bit a block",
            )
        if any(a[1] + 1 != b[0] for a, b in zip(plan.steps, plan.steps[1:], strict=False)):
            raise SpecError("the ranges of steps leave gaps or overlap", where=str(plan.steps))
        if plan.steps[0][0]:
            raise SpecError("the ranges of steps do not begin with step 0", where=str(plan.steps))
        _ = self.named  # lists that are no bijections show here

    @staticmethod
    def load(
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        grid: Grid | None = None,
        layers: int | None = None,
        heads: int | None = None,
    ) -> AttentionPlan:
        """The plan in a file, which must be for this model, grid, layers and heads if given.

        StoreError where it is damaged or for something else.
        """
        try:
            made = AttentionPlan(load(path, "attention"))
        except SpecError as error:
            raise StoreError(
                f"a bad plan: {error.what}",
                where=f"{path}: {error.where}" if error.where else str(path),
                hint=error.hint,
            ) from error
        for what, wanted, found in (
            ("model", model, made.plan.model),
            ("grid", grid, made.grid),
            ("layers", layers, made.layers),
            ("heads", heads, made.heads),
        ):
            if wanted is not None and wanted != found:
                raise StoreError(
                    f"a plan for {what} {found!r}, not for {wanted!r}",
                    where=str(path),
                    hint="the plan that was calibrated for this model and grid",
                )
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; see `Plan.save`."""
        self.plan.save(path)

    @property
    def grid(self) -> Grid:
        """The tokens that the plan is for."""
        assert self.plan.grid is not None
        return self.plan.grid

    @property
    def layers(self) -> int:
        """Attention layers."""
        return int(self.plan["order"].shape[0])

    @property
    def heads(self) -> int:
        """Query heads of each layer."""
        return int(self.plan["order"].shape[1])

    @property
    def block(self) -> tuple[int, int]:
        """(queries, keys) a block."""
        queries, keys = self.plan["block"].tolist()
        return queries, keys

    @property
    def rows(self) -> int:
        """Blocks along the queries."""
        return -(-self.grid.tokens // self.block[0])

    @property
    def columns(self) -> int:
        """Blocks along the keys."""
        return -(-self.grid.tokens // self.block[1])

    @property
    def sampling_steps(self) -> int:
        """Steps of the sampler that the plan was calibrated with."""
        return self.plan.steps[-1][1] + 1

    @cached_property
    def named(self) -> tuple[Order, ...]:
        """The orders behind ``plan.orders``; SpecError where a list is no bijection."""
        return tuple(self._by_name(name) for name in self.plan.orders)

    def _by_name(self, name: str) -> Order:
        if not name.startswith(LISTED):
            return orders.by_name(name, self.grid)
        lists = self.plan.payload.get("tables")
        number = name[len(LISTED) : -1]
        if lists is None or not number.isdigit() or int(number) >= len(lists.values):
            raise SpecError(f"the plan holds no list for order {name!r}")
        return orders.table(lists.values[int(number)], self.grid)

    def range_of(self, step: int, steps: int | None = None) -> int:
        """Number of the range that a sampling step lies in.

        ``steps`` is how many steps the sampler takes, if not as many as the plan's: the step at the
        same share of the way is taken.
        """
        last = self.sampling_steps if steps is None else steps
        if count(step, 0) is None or not 0 <= step < last:
            raise InputError(f"sampling step {step!r}", hint=f"0 to {last - 1}")
        at = step * self.sampling_steps // last
        return next(i for i, (_, end) in enumerate(self.plan.steps) if at <= end)

    def order(self, layer: int) -> Order:
        """The stored order of a layer: one for all heads where they agree, else one for each."""
        self._check_layer(layer)
        chosen = [self.named[i] for i in self.plan["order"][layer]]
        return chosen[0] if len(set(chosen)) == 1 else orders.per_head(chosen)

    def bits(self, layer: int, step: int, steps: int | None = None) -> Bits:
        """The blocks of a layer at a step, packed; read-only, and checked as `kept` is."""
        self._check_layer(layer)
        number = self.range_of(step, steps)
        if (number, layer) not in self._seen:
            self._unpacked(number, layer)
        return np.asarray(self.plan["blocks"][number, layer])

    def kept(self, layer: int, step: int, steps: int | None = None) -> Bools:
        """The map ``[heads, rows, columns]`` of kept blocks, in the layer's stored order.

        InputError where a row keeps nothing: its queries would be lost in silence.
        """
        self._check_layer(layer)
        return self._unpacked(self.range_of(step, steps), layer)

    @cached_property
    def _seen(self) -> set[tuple[int, int]]:
        """Ranges and layers whose blocks were looked at."""
        return set()

    def _unpacked(self, number: int, layer: int) -> Bools:
        shape = (self.heads, self.rows, self.columns)
        bits = self.plan["blocks"][number, layer]
        kept = np.unpackbits(bits, count=math.prod(shape), bitorder="little")
        out = kept.view(np.bool_).reshape(shape)
        if (number, layer) not in self._seen:
            empty = np.argwhere(~out.any(-1))
            if len(empty):
                head, row = empty[0].tolist()
                raise InputError(
                    f"{len(empty)} rows of blocks keep nothing, first row {row} of head {head}",
                    where=f"the plan for {self.plan.model!r}, layer {layer}, steps "
                    f"{self.plan.steps[number]}",
                    hint="a plan whose every row keeps a block, such as one by kdsl.calibrate",
                )
            self._seen.add((number, layer))
        return out

    def check(self) -> None:
        """Look at the blocks of all layers and ranges now; InputError as `kept` raises it."""
        for number in range(len(self.plan.steps)):
            for layer in range(self.layers):
                self._unpacked(number, layer)

    def spec(
        self, layer: int, *, head_dim: int, dynamic: Mask | None = None, **fields: Any
    ) -> Attention:
        """Attention of a layer over the blocks that come with each call, for `kdsl.build`.

        ``dynamic`` is a mask whose pairs are seen besides the plan's blocks, such as blocks that
        are chosen at run time; ``fields`` are `Attention`'s.
        """
        order = self.order(layer)
        mask = masks.blocks(TABLE, order=order, block=self.block)
        if dynamic is not None:
            mask = mask | dynamic
        return Attention(
            tokens=self.grid,
            heads=self.heads,
            head_dim=head_dim,
            mask=mask,
            order=order,
            block=self.block,
            **fields,
        )

    def tables(self, layer: int, step: int, steps: int | None = None) -> dict[str, Bits]:
        """What a call at a step takes: ``op(q, k, v, tables=plan.tables(layer, step))``."""
        return {TABLE: self.kept(layer, step, steps).view(np.uint8)}

    def at(
        self, step: int, steps: int | None = None, **spec: Any
    ) -> Iterator[tuple[Attention, dict[str, Bits]]]:
        """(spec, tables) of every layer at a step; ``spec`` are arguments of `spec`."""
        for layer in range(self.layers):
            yield self.spec(layer, **spec), self.tables(layer, step, steps)

    def density(self, layer: int | None = None) -> float:
        """Kept blocks over all blocks, mean over steps; of one layer or of all."""
        picked = self.plan["blocks"] if layer is None else self.plan["blocks"][:, layer]
        ones = ONES[picked].sum(-1, dtype=np.int64)
        spans = np.array([b - a + 1 for a, b in self.plan.steps], np.float64)
        each = ones.reshape(len(spans), -1).mean(1) / (self.heads * self.rows * self.columns)
        return float(each @ spans / spans.sum())

    def show(self, layer: int, head: int, **options: Any) -> str:
        """The candidate orders of a head side by side in characters; `plans.pictures.show`."""
        from kdsl.plans.pictures import show

        return show(self, layer, head, **options)

    def svg(self, layer: int, head: int, **options: Any) -> str:
        """The candidate orders of a head side by side as SVG; see `plans.pictures.svg`."""
        from kdsl.plans.pictures import svg

        return svg(self, layer, head, **options)

    def _check_layer(self, layer: int) -> None:
        if count(layer, 0) is None or layer >= self.layers:
            raise InputError(f"layer {layer!r}", hint=f"0 to {self.layers - 1}")


def attention_plan(
    model: str,
    grid: Grid,
    block: tuple[int, int],
    order: Sequence[Sequence[Order]],
    kept: Iterator[Bools] | Sequence[Bools],
    *,
    steps: Sequence[tuple[int, int]] = ((0, 0),),
    thresholds: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    extra: Mapping[str, Payload] | None = None,
    candidates: Sequence[Order] = (),
) -> AttentionPlan:
    """A plan from the order of every layer and head, and maps of kept blocks.

    ``order`` is ``[layers][heads]``; ``kept`` yields ``[heads, rows, columns]`` for each range of
    steps and in it for each layer; ``candidates`` are orders that ``extra`` arrays speak of by
    position, named first.
    """
    names: dict[str, int] = {}
    lists: list[npt.NDArray[Any]] = []
    for each in (*candidates, *(o for layer in order for o in layer)):
        names.setdefault(_named(each, lists), len(names))
    layers, heads = len(order), len(order[0]) if order else 0
    rows, columns = (-(-grid.tokens // b) for b in block)
    numbers = [[names[_named(o, lists)] for o in layer] for layer in order]
    packed = np.zeros((len(steps), layers, -(-heads * rows * columns // 8)), np.uint8)
    given = iter(kept)
    for number, layer in np.ndindex(len(steps), layers):
        found = next(given, None)
        if found is None or found.shape != (heads, rows, columns):
            raise SpecError(
                f"blocks of layer {layer}, steps {steps[number]}: "
                f"{'missing' if found is None else found.shape}",
                hint=f"[{heads}, {rows}, {columns}]",
            )
        packed[number, layer] = np.packbits(found, bitorder="little")
    payload = {
        "block": Payload(("sides",), np.array(block, np.int32)),
        "order": Payload(("layers", "heads"), np.array(numbers, np.int16).reshape(layers, heads)),
        "blocks": Payload(("steps", "layers", "bytes"), packed),
        **(extra or {}),
    }
    if lists:
        payload["tables"] = Payload(("lists", "tokens"), np.stack(lists).astype(np.int32))
    return AttentionPlan(
        Plan(
            kind="attention",
            model=model,
            payload=payload,
            grid=grid,
            orders=tuple(names),
            thresholds=thresholds or {},
            steps=tuple(steps),
            provenance=provenance or {},
        )
    )


def _named(order: Order, lists: list[npt.NDArray[Any]]) -> str:
    """The name of an order; a list of tokens joins ``lists`` and goes by its place there."""
    if not isinstance(order, orders.Listed):
        return orders.name_of(order)
    index = order.index()
    for i, known in enumerate(lists):
        if np.array_equal(known, index):
            return f"{LISTED}{i})"
    lists.append(index)
    return f"{LISTED}{len(lists) - 1})"


def shared_steps(steps: int, distinct: float = 0.5) -> tuple[tuple[int, int], ...]:
    """Ranges of sampling steps: each of the first ``distinct`` share alone, the rest as one.

    PAROAttention (arXiv 2506.16054) shares one mask over the second half of the steps.
    """
    if count(steps) is None or not 0 <= distinct <= 1:
        raise SpecError(f"{steps!r} steps, {distinct!r} of them distinct", hint="30 and 0.5")
    alone = min(math.ceil(steps * distinct), steps)
    ranges = [(i, i) for i in range(alone)]
    return (*ranges, (alone, steps - 1)) if alone < steps else tuple(ranges)
