"""What ranks say to each other: torch.distributed, with errors that name the rank.

One process group carries every layout.  An all-to-all with a split of 0 costs nothing, and a ring
sends to its neighbours, so a new plan makes no new groups and nothing can be made in another order
on another rank.  A second group, on Gloo and made once beside it, is for questions: do all ranks
hold the same plan, and who is missing after a call has failed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from kdsl.errors import DistributedError, InputError

LETTER = 2048
"""Bytes of one rank's answer; a longer one is cut off."""


class Channel:
    """The ranks of a process group (None: all of them), seen from one of them.

    Making one is collective over the group.  ``timeout_s`` bounds how long a call waits for the
    others: half of it for the data, half of it to find out who is missing.  On a GPU the data's
    half is the process group's own timeout instead, for waiting on the host would synchronise.
    """

    def __init__(self, group: Any = None, timeout_s: float = 60.0) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise DistributedError(
                "there is no process group",
                hint='torch.distributed.init_process_group("nccl") under torchrun, before this',
            )
        if not timeout_s > 0:
            raise InputError(f"timeout_s={timeout_s!r}", hint="seconds above 0")
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.world = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise DistributedError(
                f"rank {dist.get_rank()} is not in the group",
                where=f"ranks {dist.get_process_group_ranks(self.group)}",
                hint="make it on the group's own ranks alone",
            )
        self.timeout_s, self.failed = float(timeout_s), ""
        limit = timedelta(seconds=timeout_s)
        ranks = dist.get_process_group_ranks(self.group)
        try:
            self._questions = dist.new_group(
                ranks, timeout=limit, backend="gloo", use_local_synchronization=True
            )
        except RuntimeError as error:
            raise DistributedError(
                f"not all of ranks {ranks} came together within {timeout_s:g} s: {_said(error)}",
                hint="make it on every rank of the group at the same time",
            ) from error

    def agree(self, mine: Mapping[str, Any], limit_s: float | None = None) -> None:
        """DistributedError unless every rank says the same; waits on the host.

        It names each rank that does not answer in time, or the ranks and the values that differ.
        """
        answers, silent = self._ask(mine, self.timeout_s if limit_s is None else limit_s)
        if silent:
            self.failed = f"no answer from {_ranks(silent)}"
            raise DistributedError(
                self.failed,
                where=f"rank {self.rank} of {self.world}",
                hint="its own message: it ended, is held up, or raised an error of its own",
            )
        for name in mine:
            held = [answers[p].get(name) for p in range(self.world)]
            differ = [p for p in range(self.world) if held[p] != held[0]]
            if differ:
                self.failed = f"ranks differ in {name}"
                raise DistributedError(
                    f"rank {differ[0]} has {name} {held[differ[0]]}, rank 0 has {held[0]}",
                    where=f"{_ranks(differ)} of {self.world} against rank 0",
                    hint="the same spec, plan, tables and sizes on every rank",
                )

    def all_to_all(
        self,
        received: Any,
        sent: Any,
        recv: Sequence[int],
        send: Sequence[int],
        state: Any,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """One all-to-all-v of the first axis; ``state()`` is what `agree` compares if it fails.

        What ``meanwhile`` does runs beside it.
        """
        import torch.distributed as dist

        def begin() -> Sequence[Any]:
            return [
                dist.all_to_all_single(
                    received, sent, list(recv), list(send), group=self.group, async_op=True
                )
            ]

        works = self.begin(begin, state)
        meanwhile()
        self.wait(works, received, state)

    def passing(self, sent: Any, to: int, received: Any, source: int, state: Any) -> Sequence[Any]:
        """Start to send to one rank and to receive from another; `wait` ends it."""
        import torch.distributed as dist

        def begin() -> Sequence[Any]:
            ops = []
            if sent.numel():
                ops.append(dist.P2POp(dist.isend, sent, group=self.group, group_peer=to))
            if received.numel():
                ops.append(dist.P2POp(dist.irecv, received, group=self.group, group_peer=source))
            return dist.batch_isend_irecv(ops) if ops else []

        return self.begin(begin, state)

    def begin(self, start: Callable[[], Sequence[Any]], state: Any) -> Sequence[Any]:
        """Start something; who is missing if that fails."""
        if self.failed:
            raise DistributedError(
                f"an earlier call failed: {self.failed}", hint="start the ranks anew"
            )
        try:
            return start()
        except RuntimeError as error:
            self._explain(error, state)
            raise

    def wait(self, works: Sequence[Any], tensor: Any, state: Any) -> None:
        """Let the tensor's stream wait (on a GPU), or wait here; who is missing if that fails."""
        try:
            for work in works:
                if tensor.is_cuda:
                    work.wait()
                else:
                    work.wait(timedelta(seconds=self.timeout_s / 2))
        except RuntimeError as error:
            self._explain(error, state)
            raise

    def _explain(self, error: RuntimeError, state: Callable[[], Mapping[str, Any]]) -> None:
        try:
            self.agree(state(), self.timeout_s / 2)
        except DistributedError as reason:
            raise reason from error
        self.failed = _said(error)
        raise DistributedError(
            f"ranks that agree could not exchange: {self.failed}",
            where=f"rank {self.rank} of {self.world}",
        ) from error

    def _ask(
        self, mine: Mapping[str, Any], limit_s: float
    ) -> tuple[list[dict[str, Any]], list[int]]:
        """Everybody's answer, and who gave none."""
        import torch
        import torch.distributed as dist

        text = json.dumps({k: str(v)[:400] for k, v in mine.items()}).encode()[:LETTER]
        letter = torch.zeros(LETTER, dtype=torch.uint8)
        letter[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        boxes = [torch.zeros(LETTER, dtype=torch.uint8) for _ in range(self.world)]
        until = time.monotonic() + limit_s
        others = [p for p in range(self.world) if p != self.rank]
        works: dict[int, list[Any]] = {p: [] for p in others}
        silent = set()

        def hear(p: int) -> Any:
            return dist.irecv(boxes[p], group=self._questions, group_src=p)

        def say(p: int) -> Any:
            return dist.isend(letter, group=self._questions, group_dst=p)

        for start in (hear, say):
            for p in others:
                try:
                    works[p].append(start(p))
                except RuntimeError:
                    silent.add(p)
        for p in others:
            try:
                # Those that answered in time have, whenever their turn to be looked at comes.
                left = max(until - time.monotonic(), 0.05)
                for work in works[p]:
                    work.wait(timedelta(seconds=left))
            except RuntimeError:
                silent.add(p)
        boxes[self.rank] = letter
        answers = [
            {} if p in silent else json.loads(bytes(box.tolist()).rstrip(b"\0") or b"{}")
            for p, box in enumerate(boxes)
        ]
        return answers, sorted(silent)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _said(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
