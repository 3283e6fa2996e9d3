"""What travels: one all-to-all before attention and one after it, as index arrays and splits.

Everything is counted in *lines*: ``head_dim`` numbers of one token of one head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from kdsl.errors import InputError
from kdsl.parallel.home import Home
from kdsl.parallel.plan import Plan, indices
from kdsl.parallel.work import BlockWork, Longs

Group = tuple[tuple[int, ...], Longs]
"""Heads that use the same tokens, and these tokens."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """One rank's part in one all-to-all-v.

    ``lines[send_index]`` is the send buffer, ``send_splits[d]`` lines of it go to rank d, in that
    order; ``recv_splits[s]`` lines come from rank s; ``received[recv_index]`` are they in the order
    in which they are used.  Splits are Python ints: nothing is read back from a device in a call.
    Lines for the rank itself (its own tokens, and replicated ones) take part as any others.
    """

    send_splits: tuple[int, ...]
    recv_splits: tuple[int, ...]
    send_index: Longs
    recv_index: Longs


@dataclass(frozen=True, eq=False)
class Delivered:
    """What one rank has to work on.

    ``panel_lines`` are the lines of q of each panel, ``key_lines`` those of k of each key head, and
    ``key_blocks`` the delivered key blocks of each, ascending: key block b of a kernel's list
    becomes block ``searchsorted(key_blocks[i], b)`` of the lines of key head i.
    """

    panel_lines: tuple[int, ...]
    key_lines: tuple[int, ...]
    key_blocks: tuple[Longs, ...]

    @property
    def q_lines(self) -> int:
        """Lines of q that the rank computes."""
        return sum(self.panel_lines)

    @property
    def k_lines(self) -> int:
        """Lines of k, and as many of v."""
        return sum(self.key_lines)


@dataclass(frozen=True, eq=False)
class RankExchange(Delivered):
    """What one rank sends and receives around one attention.

    ``inputs`` takes local lines, numbered ``q | k | v``: line ``h * n + i`` of q is local token i
    (of n, see `Home.tokens_of`) of query head h; behind all of q come k and then v in the same way
    over key heads.  Its result is ``q_lines`` lines of q, panel by panel, in each panel head by
    head, tokens ascending in stored order; then ``k_lines`` of k by key head (`Plan.key_heads`, for
    a ring `Plan.ring_heads`), tokens of the delivered key blocks ascending; then as many of v.

    ``outputs`` takes the panels' results, numbered as the q lines were; its result is the local
    output, line ``h * n + i``.  Log-sum-exps travel in the same way, with lines of one number.
    """

    inputs: Exchange
    outputs: Exchange


class Exchanges:
    """All that travels for one plan, rank by rank.

    ``home`` and ``key_home`` say where queries and keys live (one for self-attention).
    ``query_order`` and ``key_order`` give the token at each stored position, int64
    ``[heads or 1, tokens]`` (key heads for keys); None: stored as the model orders them.
    Delivery ``"needed"`` asks for a ``work`` that knows its blocks.
    """

    def __init__(
        self,
        plan: Plan,
        home: Home,
        *,
        key_home: Home | None = None,
        work: BlockWork | None = None,
        query_order: Longs | None = None,
        key_order: Longs | None = None,
    ) -> None:
        self.plan, self.home, self.key_home = plan, home, key_home or home
        self.query_order, self.key_order = query_order, key_order
        shape = plan.shape
        for what, where, tokens in (
            ("queries", self.home, shape.queries),
            ("keys", self.key_home, shape.keys),
        ):
            if where.world != plan.world or where.tokens != tokens:
                raise InputError(
                    f"{what} live on {where.world} ranks with {where.tokens} tokens, the plan has "
                    f"{plan.world} ranks and {tokens} tokens"
                )
        for what, order, heads, tokens in (
            ("query_order", query_order, shape.heads, shape.queries),
            ("key_order", key_order, shape.kv_heads, shape.keys),
        ):
            if order is not None and order.shape not in ((1, tokens), (heads, tokens)):
                raise InputError(f"{what} of shape {order.shape}", hint=f"({heads} or 1, {tokens})")
        self._blocks = tuple(self._delivered(p, work) for p in range(plan.world))

    def _delivered(self, rank: int, work: BlockWork | None) -> tuple[tuple[int, Longs], ...]:
        plan = self.plan
        if plan.delivery == "ring":
            chunk = indices(plan.chunks[rank])
            return tuple((kv, chunk) for kv in plan.ring_heads(rank))
        return tuple(zip(plan.key_heads(rank), plan.keys_of(rank, work), strict=True))

    def of(self, rank: int) -> RankExchange:
        """One rank's part."""
        held = self.delivered(rank)
        return RankExchange(
            held.panel_lines,
            held.key_lines,
            held.key_blocks,
            self._inputs(rank),
            self._outputs(rank),
        )

    def delivered(self, rank: int) -> Delivered:
        """What one rank has to work on, without the index arrays that bring it there."""
        plan = self.plan
        (size, key_size), held = plan.shape.block, self._blocks[rank]
        return Delivered(
            tuple(
                len(p.heads) * len(_tokens(indices(p.rows), size, plan.shape.queries))
                for p in plan.ranks[rank]
            ),
            tuple(len(_tokens(blocks, key_size, plan.shape.keys)) for _, blocks in held),
            tuple(blocks for _, blocks in held),
        )

    def _queries(self, rank: int) -> Iterator[Group]:
        """Query lines of a rank in the order it uses them."""
        size, tokens = self.plan.shape.block[0], self.plan.shape.queries
        for panel in self.plan.ranks[rank]:
            positions = _tokens(indices(panel.rows), size, tokens)
            yield from _ordered(self.query_order, panel.heads, positions)

    def _keys(self, rank: int) -> Iterator[Group]:
        """Key lines of a rank in the order it uses them."""
        size, tokens = self.plan.shape.block[1], self.plan.shape.keys
        held = self._blocks[rank]
        if held and all(blocks is held[0][1] for _, blocks in held):
            heads = tuple(kv for kv, _ in held)
            yield from _ordered(self.key_order, heads, _tokens(held[0][1], size, tokens))
            return
        for kv, blocks in held:
            yield from _ordered(self.key_order, (kv,), _tokens(blocks, size, tokens))

    def _inputs(self, rank: int) -> Exchange:
        shape = self.plan.shape
        here, keys_here = _count(self.home, rank), _count(self.key_home, rank)
        behind = (shape.heads * here, shape.heads * here + shape.kv_heads * keys_here)
        sends: list[Longs] = []
        sizes = []
        for dest in range(self.plan.world):
            queries = self._mine(self.home, rank, self._queries(dest), dest)
            keys = self._mine(self.key_home, rank, self._keys(dest), dest)
            sends += [queries, *(begin + keys for begin in behind)]
            sizes.append(len(queries) + 2 * len(keys))
        came = [_sources(self.home, self._queries(rank), rank)]
        came += [_sources(self.key_home, self._keys(rank), rank)] * 2
        source = np.concatenate(came)
        splits = np.bincount(source, minlength=self.plan.world)
        return Exchange(tuple(sizes), tuple(splits.tolist()), _joined(sends), _inverse(source))

    def _mine(self, home: Home, rank: int, groups: Iterable[Group], dest: int) -> Longs:
        """Local numbers of the lines that a rank sends for another one's use."""
        here, own = _count(home, rank), _local(home, rank)
        out = []
        for heads, tokens in groups:
            # A replicated token is nobody's to send but the user's own.
            mine = home.owner[tokens] == rank
            if rank == dest:
                mine |= home.owner[tokens] < 0
            out.append(_lines(heads, own[tokens[mine]], here))
        return _joined(out)

    def _outputs(self, rank: int) -> Exchange:
        """Results go to where their token lives; replicated tokens to every rank."""
        world, here = self.plan.world, _count(self.home, rank)
        parts: list[list[Longs]] = [[] for _ in range(world)]
        begin = 0
        for heads, tokens in self._queries(rank):
            owner, places = self.home.owner[tokens], tuple(range(len(heads)))
            for dest in range(world):
                chosen = np.flatnonzero((owner == dest) | (owner < 0))
                parts[dest].append(begin + _lines(places, chosen, len(tokens)))
            begin += len(heads) * len(tokens)
        sends = [_joined(part) for part in parts]
        own = _local(self.home, rank)
        slots, splits = [], []
        for source in range(world):
            groups = self._queries(source)
            lines = _joined([_lines(h, own[t[own[t] >= 0]], here) for h, t in groups])
            slots.append(lines)
            splits.append(len(lines))
        slot = _joined(slots)
        place = np.empty(self.plan.shape.heads * here, np.int64)
        place[slot] = np.arange(len(slot))
        return Exchange(tuple(map(len, sends)), tuple(splits), _joined(sends), place)


def _count(home: Home, rank: int) -> int:
    """Tokens of a rank's local tensor."""
    (a, b), (c, d) = home.shards[rank], home.replicated
    return b - a + d - c


def _local(home: Home, rank: int) -> Longs:
    """The local number of each token on a rank; -1 where it is not there."""
    out = np.full(home.tokens, -1, np.int64)
    own = home.tokens_of(rank)
    out[own] = np.arange(len(own))
    return out


def _sources(home: Home, groups: Iterable[Group], rank: int) -> Longs:
    """The rank that each line comes from, in the order of use."""
    parts = []
    for heads, tokens in groups:
        owner = home.owner[tokens]
        parts.append(np.tile(np.where(owner < 0, rank, owner), len(heads)))
    return _joined(parts)


def _lines(heads: tuple[int, ...], local: Longs, here: int) -> Longs:
    """Line numbers of some local tokens of some heads, head by head."""
    return (np.asarray(heads, np.int64)[:, None] * here + local).reshape(-1)


def _tokens(blocks: Longs, size: int, tokens: int) -> Longs:
    """Stored positions in some blocks; the last one may be ragged."""
    at = (blocks[:, None] * size + np.arange(size, dtype=np.int64)).reshape(-1)
    return at[at < tokens]


def _ordered(order: Longs | None, heads: tuple[int, ...], positions: Longs) -> Iterator[Group]:
    """Heads with the tokens at some stored positions; one group where they share an order."""
    if order is None:
        yield heads, positions
    elif len(order) == 1:
        yield heads, np.asarray(order[0][positions], np.int64)
    else:
        for head in heads:
            yield (head,), np.asarray(order[head][positions], np.int64)


def _joined(parts: list[Longs]) -> Longs:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _inverse(source: Longs) -> Longs:
    """Where each line is in a buffer sorted by its source, senders keeping the order of use."""
    out = np.empty(len(source), np.int64)
    # Of 16-bit numbers a stable sort is a radix sort.
    small = source.astype(np.int16) if source.max(initial=0) < 2**15 else source
    out[np.argsort(small, kind="stable")] = np.arange(len(source))
    return out
