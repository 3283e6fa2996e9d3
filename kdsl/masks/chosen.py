"""Blocks chosen in the call, from means of blocks of queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.expr.nodes import Expr, as_expr, boolean, make, var
from kdsl.expr.tables import Table

if TYPE_CHECKING:
    from kdsl.masks.base import Mask
    from kdsl.orders import Order

MOST_BATCH = 2**15
MOST_PLACES = 2**31 - 1


@dataclass(frozen=True)
class Choice:
    """A map of blocks that the operator makes in each call, from the call's own queries and keys.

    ``rule`` is ``"topk"`` with a count of blocks a row as ``amount``, or ``"topp"`` with a mass.
    ``block`` is (queries, keys) a block.  ``capacity`` bounds what a row may list.
    """

    name: str
    block: tuple[int, int]
    rule: str
    amount: float
    capacity: int | None = None

    def __post_init__(self) -> None:
        counted = self.rule == "topk" and float(self.amount).is_integer() and self.amount >= 1
        if not counted and not (self.rule == "topp" and 0 < self.amount <= 1):
            raise SpecError(
                f"blocks chosen by {self.rule!r} with {self.amount!r}",
                hint="masks.topk(32): a count of at least 1; masks.topp(0.9): above 0, at most 1",
            )
        # The name and the block meet the same rules as those of a table and of a map.
        Table(self.name, 1)

    @property
    def key(self) -> str:
        """Identity within an expression."""
        return repr(self)

    @property
    def text(self) -> str:
        """As it is written: ``topk(32)``."""
        return f"{self.rule}({self.amount:g})"

    def __getitem__(self, index: tuple[Expr, ...]) -> Expr:
        return make("chosen", tuple(as_expr(i) for i in index), self)

    def shape(self, heads: int, queries: int, keys: int) -> tuple[int, int, int]:
        """Heads, rows, columns of the map of one batch item."""
        return heads, -(-queries // self.block[0]), -(-keys // self.block[1])

    def most_batch(self, heads: int, queries: int, keys: int) -> int:
        """Most batch items whose maps fit one table; SpecError where none does."""
        places = max(int(np.prod(self.shape(heads, queries, keys), dtype=np.int64)), 1)
        if places > MOST_PLACES:
            raise SpecError(f"{places} blocks to choose from", hint="larger blocks")
        return min(MOST_BATCH, MOST_PLACES // places)

    def resolve(self, heads: int, queries: int, keys: int) -> Table:
        """The table of chosen blocks, ``[batch * heads, rows, columns]`` for the largest batch."""
        most = self.most_batch(heads, queries, keys)
        _, rows, columns = self.shape(heads, queries, keys)
        return Table(self.name, (most * heads, rows, columns), "uint8", 0, 1)

    def estimate(self, open_: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
        """A map ``[..., rows, columns]`` with as many blocks a row as will be chosen.

        They are spread evenly over those that are open to the choice.  None where the number
        depends on the values (``topp``).
        """
        if self.rule != "topk":
            return None
        number = np.cumsum(open_, axis=-1)
        total = number[..., -1:] if open_.shape[-1] else number
        wanted = np.minimum(int(self.amount), total)
        # The n-th of `total` is taken where the share of those taken steps over an integer.
        step = number * wanted // np.maximum(total, 1)
        before = (number - 1) * wanted // np.maximum(total, 1)
        return open_ & (step > before)


def choice_of(variants: Sequence[Expr]) -> Choice | None:
    """The choice that occurs in expressions.

    SpecError where several do, or where one stands under anything but ``&`` and ``|``: choosing a
    block must never take another one away, or it is not known what there is to choose from.
    """
    found: dict[str, Choice] = {}
    for expr in variants:
        holds: set[str] = set()
        for node in expr.walk():
            if node.op == "chosen":
                found[node.data.key] = node.data
            elif not any(a.key in holds for a in node.args):
                continue
            elif node.op not in ("and", "or"):
                raise SpecError(
                    "blocks chosen in the call combine by `&` and `|` alone",
                    where=repr(node)[:200],
                    hint="masks.topk(32) & ~masks.causal(), not ~(masks.topk(32) & ...)",
                )
            holds.add(node.key)
    if len(found) > 1:
        raise SpecError(
            "a mask chooses blocks in one way",
            where=" and ".join(c.text for c in found.values()),
            hint="the same topk or topp wherever one occurs; heads without any are free",
        )
    return next(iter(found.values()), None)


def instead(expr: Expr, make_: Callable[[Expr], Expr]) -> Expr:
    """The expression with something else in place of what the call chooses."""
    return expr.rebuild(lambda node: make_(node) if node.op == "chosen" else None)


def candidates(expr: Expr) -> Expr:
    """Pairs for which it matters whether their block is chosen: seen if it is, and else not."""
    if all(node.op != "chosen" for node in expr.walk()):
        return boolean(False)
    chosen = instead(expr, lambda _: boolean(True))
    not_chosen = instead(expr, lambda _: boolean(False))
    return chosen & ~not_chosen


def topk(
    count: int,
    order: Order | None = None,
    block: tuple[int, int] = (128, 128),
    *,
    name: str = "topk",
    capacity: int | None = None,
) -> Mask:
    """In each row of blocks the ``count`` best ones, by the product of mean query and mean key.

    Chosen in every call, for each batch item and head; among equal scores the lower column.  The
    means are over the tokens of a block in the stored ``order``, which is the spec's.  Chosen are
    blocks that the rest of the mask leaves open: with ``& masks.causal()`` those that the row sees,
    with ``| masks.text(grid)`` those that are not kept as text anyway.  Fewer are kept where fewer
    are open.  The choice is a constant for gradients.
    """
    return _mask("topk", count, order, block, name, capacity)


def topp(
    mass: float,
    order: Order | None = None,
    block: tuple[int, int] = (128, 128),
    *,
    name: str = "topp",
    capacity: int | None = None,
) -> Mask:
    """In each row the fewest best blocks whose softmax weights reach ``mass`` of the row's.

    The softmax is that of the means' scaled products over the blocks open to the choice, and at
    least one of them is kept; everything else as in `topk`.
    """
    return _mask("topp", mass, order, block, name, capacity)


def _mask(
    rule: str,
    amount: float,
    order: Order | None,
    block: tuple[int, int],
    name: str,
    capacity: int | None,
) -> Mask:
    from kdsl.masks.base import Mask, block_sizes, checked_capacity

    if isinstance(amount, bool) or not isinstance(amount, (int, float, np.number)):
        raise SpecError(f"{rule}({amount!r})", hint="masks.topk(32), masks.topp(0.9)")
    held = int(amount) if rule == "topk" and float(amount).is_integer() else float(amount)
    choice = Choice(name, block_sizes(block), rule, held, checked_capacity(capacity))
    return Mask((choice[var("batch"), var("head"), var("qs"), var("ks")],), order=order)
