"""The lists suite: from a ready map of blocks to lists and the order of tiles, in a CUDA graph."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import kdsl
from benchmarks import rows, timing
from benchmarks.cases import LISTS, ListsCase
from kdsl.blocks import Blocks
from kdsl.errors import UnsupportedError


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Rows of every case, once equal to the host's lists; prints the share of the attention's time.

    There are no peers; ``peers`` is there because every suite takes it.
    """
    import torch

    del peers
    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for case in (LISTS[name] for name in cases or LISTS):
        kept = case.attention.plan()
        times = measured(case, kept)
        if times is None:
            print(f"{case.id:22} WRONG lists, not timed", file=sys.stderr)
            continue
        share = times["kdsl"] / times["attention"]
        print(f"{case.id:22} {share:.2%} of the attention's {times['attention']:.4f} ms")
        yield {
            "suite": "lists", "case": case.id, "impl": "kdsl", "dtype": "uint8",
            "ms": round(times["kdsl"], 5), "work": float(case.work), "unit": "byte", "error": 0.0,
            "density": round(float(kept.mean()), 6), "run": run, "gpu": gpu, "commit": commit,
            "sources": sources, "versions": versions, "date": rows.today(),
        }  # fmt: skip
        torch.cuda.empty_cache()


def measured(case: ListsCase, kept: npt.NDArray[np.bool_]) -> dict[str, float] | None:
    """Median milliseconds of the lists and of the attention they serve; None if they are wrong."""
    import torch

    of = case.attention
    op = kdsl.build(of.spec, tables={"plan": kept})
    name = op.program(case.inverted).name
    table = [torch.from_numpy(kept).cuda().view(torch.uint8)]

    def make() -> Any:
        return torch.ops.kdsl.attention_lists(table, name, 1, case.inverted)

    if not _equal(make(), op.blocks()):
        return None
    g = torch.Generator("cuda").manual_seed(of.seed)
    dtype = getattr(torch, of.dtype)
    q, k, v = (torch.randn(of.shape, generator=g, device="cuda", dtype=dtype) for _ in range(3))
    graphs = {"kdsl": captured(make), "attention": captured(lambda: op(q, k, v))}
    return timing.interleaved({name: graph.replay for name, graph in graphs.items()})


def captured(call: Callable[[], Any]) -> Any:
    """A call as a CUDA graph, compiled and warmed up before."""
    import torch

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _equal(made: Sequence[Any], wanted: Blocks) -> bool:
    """Whether lists, and inverted ones if there are any, keep what the host's rows keep."""
    for number, truth in enumerate((wanted, wanted.transpose())[: len(made) // 5]):
        start, full, partial, index = (x.cpu().numpy() for x in made[5 * number : 5 * number + 4])
        found = Blocks(start, full, partial, index, truth.block, truth.queries, truth.keys)
        if not np.array_equal(found.kept(), truth.kept()):
            return False
    return True
