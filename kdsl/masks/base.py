"""The mask value, traced predicates, and maps of blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.expr.evaluate import evaluate
from kdsl.expr.index import Index
from kdsl.expr.nodes import Expr, as_expr, boolean, const, make, var
from kdsl.expr.tables import Table, tables_of
from kdsl.grid import Grid, count
from kdsl.masks.chosen import Choice, candidates, choice_of, instead

if TYPE_CHECKING:
    from kdsl.orders import Order

INDEX_NAMES = ("q", "k", "head", "batch", "qs", "ks")


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """Which query sees which key: one truth value over ``q``, ``k``, ``head``, ``batch``.

    ``variants`` holds one expression for all query heads, or one for each.  ``queries`` and
    ``keys`` are the grids that the expressions speak of (None: any), ``order`` the one whose stored
    positions they speak of (block maps only).
    """

    variants: tuple[Expr, ...]
    queries: Grid | None = None
    keys: Grid | None = None
    order: Order | None = None
    key: str = field(init=False)
    choice: Choice | None = field(init=False)
    """What is chosen in the call, where something is."""

    def __post_init__(self) -> None:
        if not self.variants:
            raise SpecError("a mask without expressions", hint="masks.nothing()")
        for expr in self.variants:
            if not expr.is_bool:
                raise SpecError(
                    "a mask is a truth value, this is an integer",
                    where=repr(expr),
                    hint="a comparison such as `q >= k`",
                )
        object.__setattr__(self, "choice", choice_of(self.variants))
        name = "|".join(e.key for e in self.variants)
        object.__setattr__(self, "key", f"{name}|{self.queries!r}|{self.keys!r}|{self.order!r}")

    def head(self, head: int) -> Expr:
        """The expression of one query head."""
        return self.variants[head if len(self.variants) > 1 else 0]

    def tables(self) -> tuple[Table, ...]:
        """Tables that occur, in order of first use."""
        return tables_of(self.variants)

    def block_maps(self) -> tuple[BlockMap, ...]:
        """Block maps that occur and are not resolved to tables yet."""
        nodes = (n for e in self.variants for n in e.walk() if n.op == "blocks")
        return tuple({n.data.name: n.data for n in nodes}.values())

    def check_grids(self, queries: Grid, keys: Grid) -> None:
        """SpecError where the mask speaks of the coordinates of other grids."""
        for what, grid, own in (("queries", self.queries, queries), ("keys", self.keys, keys)):
            if grid is not None and grid != own:
                raise SpecError(
                    f"the mask speaks of {grid!r}, the {what} are {own!r}",
                    where=str(self)[:200],
                    hint=f"a mask over {own!r}",
                )

    def resolve(self, heads: int, query_tokens: int, key_tokens: int) -> Mask:
        """The same mask with its block maps as look-ups in tables of this size.

        So is what the call chooses.
        """

        def change(node: Expr) -> Expr | None:
            if node.op == "chosen":
                found: Choice = node.data
                places = found.resolve(heads, query_tokens, key_tokens)
                batch, head, qs, ks = node.args
                line = batch * heads + head
                return places[line, qs // found.block[0], ks // found.block[1]] != 0
            if node.op != "blocks":
                return None
            rows: BlockMap = node.data
            head, qs, ks = node.args
            kept = rows.resolve(heads, query_tokens, key_tokens)
            head = head if kept.shape[0] > 1 else const(0)
            return kept[head, qs // rows.block[0], ks // rows.block[1]] != 0

        return self.map(lambda e: e.rebuild(change))

    @property
    def capacity(self) -> int | None:
        """Most blocks that a row lists when lists are made on the device; None: as many as are.

        The largest that its maps and its choice name, if each names one.
        """
        nodes = (n for e in self.variants for n in e.walk() if n.op in ("blocks", "chosen"))
        named = [n.data.capacity for n in nodes]
        return max(named) if named and None not in named else None

    @property
    def candidates(self) -> Mask:
        """Pairs for which it matters whether the call chooses their block."""
        return self.map(candidates)

    def settled(self, shared: bool = False) -> Mask:
        """The same mask with a block map, of the same name, in place of what the call chooses.

        With ``shared`` one map serves all heads.
        """

        def as_map(node: Expr) -> Expr:
            _, head, qs, ks = node.args
            return BlockMap(node.data.name, node.data.block, shared)[head, qs, ks]

        return self.map(lambda e: instead(e, as_map))

    def dense(
        self,
        queries: npt.ArrayLike,
        keys: npt.ArrayLike,
        *,
        head: int = 0,
        batch: int = 0,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        stored: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """The mask of some original tokens, ``[queries, keys]``: the truth, for tests and pictures.

        ``stored`` gives their stored positions, which block maps need.
        """
        q, k = np.asarray(queries)[:, None], np.asarray(keys)[None, :]
        indices: dict[str, npt.ArrayLike] = {"q": q, "k": k, "head": head, "batch": batch}
        if stored is not None:
            indices["qs"] = np.asarray(stored[0])[:, None]
            indices["ks"] = np.asarray(stored[1])[None, :]
        return evaluate(self.head(head), indices, tables)

    def _with(self, other: Mask | bool, join: Callable[[Expr, Expr], Expr]) -> Mask:
        other = as_mask(other)
        n = max(len(self.variants), len(other.variants))
        if {len(self.variants), len(other.variants)} - {1, n}:
            raise SpecError(
                f"masks for {len(self.variants)} and {len(other.variants)} heads do not combine"
            )
        pairs = zip(self._spread(n), other._spread(n), strict=True)
        return Mask(
            tuple(join(a, b) for a, b in pairs),
            _agree(self.queries, other.queries, "query grids"),
            _agree(self.keys, other.keys, "key grids"),
            _agree(self.order, other.order, "orders"),
        )

    def _spread(self, n: int) -> tuple[Expr, ...]:
        return self.variants if len(self.variants) == n else self.variants * n

    def map(self, change: Callable[[Expr], Expr]) -> Mask:
        """The same mask with its expressions changed."""
        return replace(self, variants=tuple(change(e) for e in self.variants))

    def __and__(self, other: Mask | bool) -> Mask:
        return self._with(other, lambda a, b: a & b)

    def __or__(self, other: Mask | bool) -> Mask:
        return self._with(other, lambda a, b: a | b)

    def __xor__(self, other: Mask | bool) -> Mask:
        return self._with(other, lambda a, b: a ^ b)

    def __invert__(self) -> Mask:
        return self.map(lambda e: ~e)

    def __bool__(self) -> bool:
        raise SpecError("a mask has no truth value", hint="`&`, `|`, `~`, not `and`, `or`, `not`")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        texts = [repr(e) for e in self.variants]
        return (
            texts[0]
            if len(texts) == 1
            else "\n".join(f"head {h}: {t}" for h, t in enumerate(texts))
        )

    def __repr__(self) -> str:
        from kdsl.masks.written import mask_source

        return mask_source(self)

    def show(self, tokens: int | Grid, keys: int | Grid | None = None, **options: Any) -> str:
        """A picture in characters; see `kdsl.draw.show`."""
        from kdsl.draw import show

        return show(self, tokens, keys, **options)

    def svg(self, tokens: int | Grid, keys: int | Grid | None = None, **options: Any) -> str:
        """A picture as SVG text; see `kdsl.draw.svg`."""
        from kdsl.draw import svg

        return svg(self, tokens, keys, **options)


T = TypeVar("T")


def _agree(a: T | None, b: T | None, what: str) -> T | None:
    if a is not None and b is not None and a != b:
        raise SpecError(f"the masks speak of different {what}", where=f"{a!r} and {b!r}")
    return b if a is None else a


def as_mask(value: object) -> Mask:
    """A mask as it is; True and False as the constant ones; a sequence as one mask a head."""
    if isinstance(value, Mask):
        return value
    if isinstance(value, bool):
        return Mask((boolean(value),))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return per_head(value)
    hint = "masks.causal(), masks.predicate(lambda q, k: ...)"
    if hasattr(value, "shape"):
        hint = 'masks.blocks("plan") with the array of blocks at the call, tables={"plan": array}'
    elif callable(value):
        hint = "masks.predicate(function)"
    raise SpecError(f"{value!r:.200} is not a mask", hint=hint)


def everything() -> Mask:
    """Every query sees every key."""
    return as_mask(True)


def nothing() -> Mask:
    """No query sees any key: outputs 0, log-sum-exp minus infinity."""
    return as_mask(False)


def per_head(masks: Sequence[Mask]) -> Mask:
    """One mask for each query head, head 0 first."""
    given = [as_mask(m) for m in masks]
    if not given or any(len(m.variants) > 1 for m in given):
        raise SpecError("per_head takes one plain mask for each head")
    out = given[0]
    for m in given[1:]:
        # Only to check that the grids and orders agree.
        out = m._with(out, lambda a, _: a)
    return replace(out, variants=tuple(m.variants[0] for m in given))


def predicate(
    rule: Callable[..., object],
    grid: Grid | None = None,
    keys: Grid | None = None,
    order: Order | None = None,
) -> Mask:
    """A mask from a function of indices: ``predicate(lambda q, k: (q - k) % 7 == 0)``.

    The function's parameters are any of ``q, k`` (original tokens), ``head``, ``batch``; it is
    called once with symbols.  With a grid, ``q.frames``, ``q.height``, ``q.width`` are coordinates;
    ``keys`` is the keys' grid where it differs.  Use ``&``, ``|``, ``~``, `where` instead of
    ``and``, ``or``, ``not``, ``if``.  ``order`` is the one whose stored positions ``qs`` and ``ks``
    are, in masks that speak of them.
    """
    if not callable(rule):
        raise SpecError(f"predicate({rule!r})", hint="predicate(lambda q, k: q >= k)")
    names = list(inspect.signature(rule).parameters)
    unknown = [n for n in names if n not in INDEX_NAMES]
    if unknown:
        raise SpecError(
            f"predicate parameter {unknown[0]!r}", hint=f"any of {', '.join(INDEX_NAMES[:4])}"
        )
    keys = keys or grid
    grids = {"q": grid, "k": keys}
    symbols = [Index(n, grids[n]) if n in grids else var(n) for n in names]
    try:
        traced = rule(*symbols)
    except (TypeError, IndexError) as error:
        raise SpecError(
            f"the rule does what expressions cannot: {error}",
            hint="+ - * // % abs, comparisons, & | ~, where, minimum, maximum, and "
            "kdsl.table(values)[q] for an array",
        ) from error
    return Mask((as_expr(traced),), grid, keys, order)


@dataclass(frozen=True)
class BlockMap:
    """Kept blocks as a table known at the call: one map for all query heads, or one for each.

    Its size follows from the spec that uses it.  ``block`` is (queries, keys) a block,
    ``capacity`` the most blocks that a row may list.
    """

    name: str
    block: tuple[int, int]
    shared: bool = False
    capacity: int | None = None

    @property
    def key(self) -> str:
        """Identity within an expression."""
        return repr(self)

    def __getitem__(self, index: tuple[Expr, ...]) -> Expr:
        return make("blocks", tuple(as_expr(i) for i in index), self)

    def resolve(self, heads: int, query_tokens: int, key_tokens: int) -> Table:
        """The table of kept blocks, ``[heads or 1, rows, columns]`` of 0 and 1."""
        rows, columns = -(-query_tokens // self.block[0]), -(-key_tokens // self.block[1])
        return Table(self.name, (1 if self.shared else heads, rows, columns), "uint8", 0, 1)


def block_sizes(block: object) -> tuple[int, int]:
    """(queries, keys) of a mask block; SpecError for what is none."""
    sizes = tuple(n for n in map(count, block) if n) if isinstance(block, Sequence) else ()
    if len(sizes) != 2 or min(sizes) < 16:
        raise SpecError(f"blocks of {block}", hint="at least 16 x 16")
    return sizes


def checked_capacity(capacity: object) -> int | None:
    """A capacity of lists made on the device; SpecError for what is none."""
    counted = None if capacity is None else count(capacity)
    if counted is None and capacity is not None:
        raise SpecError(f"capacity={capacity!r}", hint="blocks a row, at least 1; None: no limit")
    return counted
