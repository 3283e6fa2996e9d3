"""Real processes on Gloo, many cases in one group; and kernels in torch for float64."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kdsl.parallel.local import Kernel
from kdsl.parallel.pieces import Piece


def together(
    world: int, task: Callable[..., None], *given: Any, limit_s: float = 30.0
) -> list[str]:
    """Run ``task(rank, *given)`` on every rank of a new group; what each raised, or ``""``."""
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        context = mp.get_context("spawn")
        for rank in range(world):
            arguments = (rank, world, folder, limit_s, task, given)
            processes.append(context.Process(target=_one, args=arguments, daemon=True))
            processes[-1].start()
        for process in processes:
            process.join(240)
            if process.is_alive():
                process.kill()
        said = []
        for rank in range(world):
            file = Path(folder) / f"said{rank}"
            said.append(file.read_text() if file.exists() else "ended without a word")
        return said


def _one(
    rank: int, world: int, folder: str, limit_s: float, task: Callable[..., None], given: Any
) -> None:
    torch.set_num_threads(1)
    said = ""
    try:
        store = dist.FileStore(str(Path(folder) / "store"), world)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=limit_s)
        )
        task(rank, *given)
    except BaseException:
        said = traceback.format_exc()
    (Path(folder) / f"said{rank}").write_text(said)
    # Threads of a group with a lost rank would hold up an orderly end.
    os._exit(0)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def dense(piece: Piece) -> Kernel:
    """A piece's attention in torch, in the tensors' own type, scale 1; on the device alone."""
    wide = np.repeat(np.repeat(piece.kept, piece.block[0], 1), piece.block[1], 2)
    sees = torch.from_numpy(wide[:, : piece.queries, : piece.keys].copy())

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[Any, Any]:
        k, v = (x.repeat_interleave(piece.group, 1) for x in (k, v))
        score = (q @ k.transpose(-1, -2)).masked_fill(~sees, float("-inf"))
        lse = score.logsumexp(-1)
        top = torch.where(lse == float("-inf"), 0.0, lse)
        return torch.exp(score - top[..., None]) @ v, lse

    return kernel
