"""One rank's part of a plan, carried out on torch.distributed.

Everything that depends on values of the plan is made before the first call: index tensors on the
device, split sizes as Python ints, a kernel for each piece.  A call gathers lines, exchanges them,
runs kernels and exchanges the results; it reads nothing back from the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdsl.errors import InputError, UnsupportedError
from kdsl.parallel.channel import Channel
from kdsl.parallel.exchange import Exchange, Exchanges
from kdsl.parallel.local import Kernel, Local
from kdsl.parallel.pieces import Calls, Masks, calls_of
from kdsl.parallel.work import BlockWork, Longs
from kdsl.runtime.lines import gather
from kdsl.runtime.merge import merge

SOURCES = 3
"""Tensors that one gather reads from."""


class Picked:
    """Some lines of a buffer: a view where they are neighbours, else a copy of them."""

    def __init__(self, lines: Longs, device: Any) -> None:
        import torch

        self.count = len(lines)
        self.first = int(lines[0]) if self.count else 0
        neighbours = bool((lines == self.first + np.arange(self.count)).all())
        # Half of the bytes that an index of 64 bits has.
        narrow = lines.astype(np.int32) if lines.max(initial=0) < 2**31 else lines
        self.index = None if neighbours else torch.from_numpy(narrow).to(device)

    def of(self, *buffers: Any) -> Any:
        """The lines ``[count, ...]`` of buffers ``[lines, ...]`` one behind the other."""
        if self.index is not None:
            return gather(buffers, self.index)
        return _joined(buffers).narrow(0, self.first, self.count)

    def into(self, out: Any, *buffers: Any) -> None:
        """Copy them to ``out``."""
        if self.index is None:
            out.copy_(self.of(*buffers))
        else:
            gather(buffers, self.index, out)


class Sending:
    """An `Exchange` on a device, seen from one rank.

    What a rank sends to itself stays out of the all-to-all: it is gathered behind what comes from
    the others, while that travels.
    """

    def __init__(
        self, exchange: Exchange, rank: int, device: Any, recv: Sequence[Longs] | None = None
    ) -> None:
        begin, own = sum(exchange.send_splits[:rank]), exchange.send_splits[rank]
        index = exchange.send_index
        self.send_splits, self.recv_splits = (
            tuple(0 if p == rank else n for p, n in enumerate(splits))
            for splits in (exchange.send_splits, exchange.recv_splits)
        )
        self.send = Picked(np.delete(index, slice(begin, begin + own)), device)
        self.kept = Picked(index[begin : begin + own], device)
        self.arriving = sum(self.recv_splits)
        first = sum(exchange.recv_splits[:rank])
        place = np.arange(self.arriving + own)
        place[first + own :] -= own
        place[first : first + own] = self.arriving + np.arange(own)
        wanted = [exchange.recv_index] if recv is None else recv
        self.parts = [Picked(place[lines], device) for lines in wanted]

    def exchanged(
        self, lines: Sequence[Any], channel: Channel, state: Any, anchor: Any = None
    ) -> Any:
        """What is there for this rank: what arrives, sender by sender, then its own; ``parts`` pick
        from it.  ``lines`` are tensors whose lines are numbered through.

        Gradients go back where ``anchor``, or any line without one, asks for them: on all ranks or
        on none.
        """
        from kdsl.parallel import gradients

        if gradients.wanted(*(lines if anchor is None else [anchor])):
            start = lines[0] if anchor is None else anchor
            return gradients.exchanged(self, lines, channel, state, start)
        sent = self.send.of(*lines).contiguous()
        # A tensor of its own: sending and receiving in one place would mix them up.
        received = sent.new_empty((self.arriving + self.kept.count, *sent.shape[1:]))
        channel.all_to_all(
            received[: self.arriving], sent, self.recv_splits, self.send_splits, state,
            lambda: self.kept.into(received[self.arriving :], *lines),
        )  # fmt: skip
        return received


class Execution:
    """Attention by a plan, from local shards to local shards; `Exchanges` says how both look.

    ``local`` makes kernels (`kdsl.parallel.local.Operators`).  All ranks make one at the same time.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        work: BlockWork,
        channel: Channel,
        local: Local,
        *,
        device: Any = "cpu",
        with_lse: bool = False,
    ) -> None:
        plan = exchanges.plan
        if plan.world != channel.world:
            raise InputError(
                f"a plan for {plan.world} ranks in a group of {channel.world}",
                hint="a plan made for this group",
            )
        plan.check(work)
        self.plan, self.channel, self.with_lse = plan, channel, with_lse
        self.home, self.key_home = exchanges.home, exchanges.key_home
        channel.agree(_told(exchanges, work, with_lse))
        rank, ring = channel.rank, plan.delivery == "ring"
        queries, keys = (len(h.tokens_of(rank)) for h in (self.home, self.key_home))
        shape = plan.shape
        self.wanted = {
            "q": (shape.heads, queries),
            "k": (shape.kv_heads, keys),
            "v": (shape.kv_heads, keys),
        }
        near = plan.mesh.ring_group(rank) if ring else (rank,)
        mine = {p: exchanges.of(p) for p in near}
        parts = [mine.get(p, mine[rank]) for p in range(plan.world)]
        self.calls: Calls = calls_of(plan, rank, parts, Masks(work))
        part = mine[rank]
        index, q_lines, k_lines = part.inputs.recv_index, part.q_lines, part.k_lines
        wanted = [index[lines] for lines in self.calls.queries]
        if ring:
            wanted.append(index[q_lines:])
        else:
            for step in (s for s in self.calls.steps[0] if s):
                wanted += [index[q_lines + step.keys], index[q_lines + k_lines + step.keys]]
        self.inputs = Sending(part.inputs, rank, device, wanted)
        order = np.concatenate([*self.calls.queries, np.zeros(0, np.int64)])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        out = part.outputs
        self.outputs = Sending(
            Exchange(out.send_splits, out.recv_splits, place[out.send_index], out.recv_index),
            rank,
            device,
        )
        self.kernels: list[list[Kernel | None]] = [
            [local(step.piece) if step else None for step in steps] for steps in self.calls.steps
        ]
        self.last = [
            max((s for s, kernel in enumerate(of_piece) if kernel), default=0)
            for of_piece in zip(*self.kernels, strict=True)
        ]
        """The last step of a ring in which each panel has keys."""
        self.chunks = [2 * mine[p].k_lines for p in self.calls.sources] if ring else []
        self.of_chunk = (
            [
                [
                    (Picked(s.keys, device), Picked(mine[p].k_lines + s.keys, device))
                    if s
                    else None
                    for s in steps
                ]
                for p, steps in zip(self.calls.sources, self.calls.steps, strict=True)
            ]
            if ring
            else []
        )
        self.done = 0
        self.seen: tuple[Any, ...] = ()
        self.agreed: set[tuple[Any, ...]] = set()
        """Sizes and dtypes of calls that every rank is known to make alike."""

    def state(self) -> dict[str, Any]:
        """What every rank must say alike."""
        return {
            "plan hash": self.plan.hash,
            "batch, head_dim and dtype": self.seen,
            "number of calls": self.done,
        }

    def __call__(self, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
        """Local output like q ``[batch, heads, local tokens, head_dim]``, and with ``with_lse`` its
        log-sum-exp ``[batch, heads, local tokens]`` (else None).
        """
        import torch

        self._check(q, k, v)
        self._check_gradients(q, k, v)
        batch, heads, here, dim = q.shape
        self.done, self.seen = self.done + 1, (batch, dim, str(q.dtype))
        if self.seen not in self.agreed:
            self.channel.agree(self.state())
            self.agreed.add(self.seen)
        # Lines come first, so that the lines of one rank are one stretch of memory.
        turned = [_as_lines(x) for x in (q, k, v)]
        arrived = self.inputs.exchanged(turned, self.channel, self.state)
        outs, lses = (self._ring if self.chunks else self._gathered)(arrived, batch, dim)
        back = self._back(outs, arrived.new_empty((0, batch, dim)), arrived)
        out = back.view(heads, here, batch, dim).permute(2, 0, 1, 3)
        if not self.with_lse:
            return out, None
        kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        back = self._back(lses, arrived.new_empty((0, batch), dtype=kind), arrived)
        return out, back.view(heads, here, batch).permute(2, 0, 1)

    def _gathered(self, arrived: Any, batch: int, dim: int) -> tuple[list[Any], list[Any]]:
        """All keys are here: one kernel a piece."""
        import torch

        kind = torch.float64 if arrived.dtype == torch.float64 else torch.float32
        picks = iter(self.inputs.parts[len(self.calls.queries) :])
        outs, lses = [], []
        for i, (heads, tokens) in enumerate(self.calls.shapes):
            kernel, step = self.kernels[0][i], self.calls.steps[0][i]
            if kernel is None or step is None:
                outs.append(arrived.new_zeros((heads * tokens, batch, dim)))
                lses.append(torch.full_like(outs[-1][..., 0], float("-inf"), dtype=kind))
                continue
            q = _tensor(self.inputs.parts[i].of(arrived), heads)
            k, v = (_tensor(next(picks).of(arrived), len(step.piece.kv_heads)) for _ in "kv")
            out, lse = kernel(q, k, v)
            outs.append(_as_lines(out))
            lses.append(_as_lines(lse))
        return outs, lses

    def _ring(self, arrived: Any, batch: int, dim: int) -> tuple[list[Any], list[Any]]:
        """Chunks of keys go around; each is worked on while the next one travels."""
        import torch

        kind = torch.float64 if arrived.dtype == torch.float64 else torch.float32
        parts, calls = self.inputs.parts, self.calls
        mesh, rank, steps = self.plan.mesh, self.channel.rank, len(calls.sources)
        queries = [_tensor(parts[i].of(arrived), n) for i, (n, _) in enumerate(calls.shapes)]
        totals: list[Any] = [None] * len(queries)
        # A copy of its own, since it is sent while nothing else may change.
        chunk = parts[-1].of(arrived).contiguous()
        below, above = (mesh.source(rank, s) for s in (1, steps - 1))
        for s in range(steps):
            works: Sequence[Any] = []
            if s + 1 < steps:
                coming = chunk.new_empty((self.chunks[s + 1], batch, dim))
                works = self.channel.passing(chunk, above, coming, below, self.state)
            for i, q in enumerate(queries):
                kernel, step, picks = self.kernels[s][i], calls.steps[s][i], self.of_chunk[s][i]
                if kernel is None or step is None or picks is None:
                    continue
                k, v = (_tensor(x.of(chunk), len(step.piece.kv_heads)) for x in picks)
                out, lse = kernel(q, k, v)
                if totals[i] is None:
                    # One part needs no merging; where it stays alone it is the result as it is.
                    totals[i] = (out, lse)
                else:
                    total, log_total = totals[i]
                    dtype = q.dtype if s == self.last[i] else kind
                    totals[i] = merge(total, log_total, out, lse, dtype)
            if works:
                self.channel.wait(works, coming, self.state)
            if s + 1 < steps:
                chunk = coming
        outs, lses = [], []
        for q, total in zip(queries, totals, strict=True):
            out = torch.zeros_like(q) if total is None else total[0].to(q.dtype)
            empty = torch.full_like(q[..., 0], float("-inf"), dtype=kind)
            outs.append(_as_lines(out))
            lses.append(_as_lines(empty if total is None else total[1]))
        return outs, lses

    def _back(self, results: list[Any], none: Any, arrived: Any) -> Any:
        """Lines of this rank's own tokens from all ranks' results."""
        lines = results if len(results) <= SOURCES else [_joined(results)]
        received = self.outputs.exchanged(lines or [none], self.channel, self.state, arrived)
        return self.outputs.parts[0].of(received)

    def _check_gradients(self, q: Any, k: Any, v: Any) -> None:
        from kdsl.parallel.gradients import wanted

        if self.chunks and wanted(q, k, v):
            raise UnsupportedError(
                "gradients do not go back around a ring",
                hint="SparseSequenceParallel(..., gradients=True), which plans without, or "
                "torch.no_grad()",
            )

    def _check(self, q: Any, k: Any, v: Any) -> None:
        rank, wanted = self.channel.rank, self.wanted
        for name, x in zip("qkv", (q, k, v), strict=True):
            found = tuple(x.shape)
            ends = (q.shape[0], q.shape[-1])
            if len(found) != 4 or found[1:3] != wanted[name] or (found[0], found[3]) != ends:
                heads, tokens = wanted[name]
                raise InputError(
                    f"{name} of rank {rank} has shape {found}",
                    where="[batch, heads, local tokens, head_dim]",
                    hint=f"({ends[0]}, {heads}, {tokens}, {ends[1]})",
                )
            if x.dtype != q.dtype or x.device != q.device:
                raise InputError(
                    f"{name} of rank {rank} is {x.dtype} on {x.device}, q {q.dtype} on {q.device}"
                )


def _joined(lines: Sequence[Any]) -> Any:
    """Tensors of lines as one."""
    import torch

    return lines[0] if len(lines) == 1 else torch.cat(list(lines))


def _told(exchanges: Exchanges, work: BlockWork, with_lse: bool) -> dict[str, Any]:
    """All that splits depend on, what says most first."""
    plan, shape = exchanges.plan, exchanges.plan.shape
    hasher = hashlib.sha256(np.ascontiguousarray(work.rows).tobytes())
    if work.blocks is not None:
        hasher.update(work.bits.tobytes())
    for order in (exchanges.query_order, exchanges.key_order):
        hasher.update(b"none" if order is None else np.ascontiguousarray(order).tobytes())
    return {
        "heads": f"{shape.heads} (of keys {shape.kv_heads})",
        "tokens": f"{shape.queries} (of keys {shape.keys})",
        "block": shape.block,
        "shards": (exchanges.home.shards, exchanges.home.replicated),
        "shards of keys": (exchanges.key_home.shards, exchanges.key_home.replicated),
        "family": f"{plan.family}, {plan.delivery}, {plan.mesh}",
        "plan hash": plan.hash,
        "mask or order": hasher.hexdigest()[:16],
        "log-sum-exp": with_lse,
    }


def _tensor(lines: Any, heads: int) -> Any:
    """Lines ``[heads * tokens, batch, head_dim]`` as ``[batch, heads, tokens, head_dim]``."""
    return lines.view(heads, -1, *lines.shape[1:]).permute(2, 0, 1, 3)


def _as_lines(x: Any) -> Any:
    """``[batch, heads, tokens, ...]`` as lines ``[heads * tokens, batch, ...]``."""
    axes = (1, 2, 0, *range(3, x.dim()))
    return x.permute(axes).reshape(x.shape[1] * x.shape[2], x.shape[0], *x.shape[3:])
