"""The shapes suite: masks of real models beside random blocks of the same number, forward.

Whole models' grids, with orders and text, documents, trees, 64 x 64 blocks, heads of unlike
density, scores that grow.  The row ``random blocks`` is ours on a map that keeps as many blocks of
each row, wherever: what partial blocks, the order and the mask's regularity cost or save is the
ratio to it.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

import kdsl
from benchmarks import rows, timing
from benchmarks.attention import VARIANTS
from kdsl import Attention, Grid, masks, orders
from kdsl.errors import KdslError, UnsupportedError
from kdsl.integrations import flex_attention
from kdsl.kernels.attention.runner import AttentionRunner
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import codecache
from kdsl.work import Check

Tables = dict[str, npt.NDArray[Any]]
WAN = Grid(frames=21, height=30, width=52)
COG = Grid(frames=13, height=30, width=45, text=226)
GROWTH = 2200.0
"""Score of the last of 32,768 keys over the first, in units of log2: 8.6 a block of 128, more than
a row's maximum may be left behind by, so that each step rescales."""


@dataclass(frozen=True)
class Made:
    """A case: spec, values of its tables, and whether scores grow along the keys."""

    spec: Attention
    tables: Tables
    grows: bool = False


def video(grid: Grid, heads: int, head_dim: int, mask: Any, order: Any) -> Made:
    """A mask of one grid in an order, whose tensors come in the model's."""
    spec = Attention(
        tokens=grid, heads=heads, head_dim=head_dim, mask=mask, order=order, return_lse=True
    )
    return Made(spec, {})


def plain(tokens: int, heads: int, head_dim: int, mask: Any, **fields: Any) -> Made:
    """A mask of a line of tokens."""
    return Made(
        Attention(
            tokens=tokens, heads=heads, head_dim=head_dim, mask=mask, return_lse=True, **fields
        ),
        {},
    )


def random_blocks(
    tokens: int, heads: int, head_dim: int, share: npt.NDArray[np.float64], block: int = 128
) -> Made:
    """Random blocks and the diagonal, with a density for each head."""
    n, rng = -(-tokens // block), np.random.default_rng(1)
    kept = (rng.random((heads, n, n)) < share[:, None, None]) | np.eye(n, dtype=np.bool_)
    size = (block, block)
    made = plain(tokens, heads, head_dim, masks.blocks("plan", block=size), block=size)
    return Made(made.spec, {"plan": kept.astype(np.uint8)})


def documents(tokens: int) -> Any:
    """Two dozen documents one behind the other, causal within each."""
    ids = np.sort(np.random.default_rng(0).integers(0, 24, tokens)).astype(np.int32)
    return masks.same(ids) & masks.causal()


def branches(tokens: int) -> Any:
    """A shared prefix of a quarter, eight branches, four leaves on each: depth-first positions."""
    start, end = np.zeros(tokens, np.int32), np.full(tokens, tokens, np.int32)
    rest, at = tokens - tokens // 4, tokens // 4
    for branch in range(8):
        size = rest // 8
        lo, hi = at + branch * size, at + (branch + 1) * size
        inner = lo + size // 4
        start[lo:inner], end[lo:inner] = lo, hi
        for leaf in range(4):
            width = (hi - inner) // 4
            a, b = inner + leaf * width, inner + (leaf + 1) * width if leaf < 3 else hi
            start[a:b], end[a:b] = a, b
    return masks.tree(start, end)


def even(heads: int, density: float) -> npt.NDArray[np.float64]:
    """The same density for each head."""
    return np.full(heads, density)


def skewed(heads: int, density: float) -> npt.NDArray[np.float64]:
    """One head with ten times the density of the others; the mean is the same."""
    share = np.ones(heads)
    share[0] = 10.0
    return share * density / share.mean()


def growing() -> Made:
    """Random blocks whose scores grow along the keys, so that every step moves every maximum."""
    made = random_blocks(32768, 12, 128, even(12, 0.1))
    return Made(made.spec, made.tables, grows=True)


SHAPES: Mapping[str, Callable[[], Made]] = {
    "wan-window": lambda: video(
        WAN, 12, 128, masks.window(WAN, (5, 9, 9)) | masks.frame_band(WAN, 0),
        orders.cubes(WAN, (3, 6, 8)),
    ),
    "wan-3d": lambda: video(
        WAN, 12, 128, masks.window(WAN, (7, 13, 17)), orders.cubes(WAN, (3, 6, 8))
    ),
    "wan-radial": lambda: video(WAN, 12, 128, masks.radial(WAN, 300), None),
    "cog-window": lambda: video(
        COG, 48, 64, masks.window(COG, (5, 11, 11)) | masks.text(COG),
        orders.cubes(COG, (1, 10, 15)),
    ),
    "documents": lambda: plain(32768, 12, 128, documents(32768)),
    "tree": lambda: plain(16384, 16, 128, branches(16384)),
    "causal": lambda: plain(16384, 16, 128, masks.causal()),
    "skew": lambda: random_blocks(32768, 12, 128, skewed(12, 0.1)),
    "balanced": lambda: random_blocks(32768, 12, 128, even(12, 0.1)),
    "growing": growing,
    "W64-d0.10": lambda: random_blocks(32768, 12, 128, even(12, 0.1), 64),
    "W64-d0.30": lambda: random_blocks(32768, 12, 128, even(12, 0.3), 64),
    "C64-d0.10": lambda: random_blocks(17920, 48, 64, even(48, 0.1), 64),
    "C64-d0.30": lambda: random_blocks(17920, 48, 64, even(48, 0.3), 64),
}  # fmt: skip
"""Cases by id."""


def suite(peers: Sequence[str], cases: Sequence[str], commit: str) -> Iterator[dict[str, Any]]:
    """Masks of real models, ours beside as many random blocks and FlexAttention; useful FLOP too.

    FlexAttention gets its tensors in the stored order, without the copies that ours may make.
    """
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError("benchmarks need a CUDA GPU", hint="python -m benchmarks table")
    run, versions = uuid.uuid4().hex[:12], rows.versions()
    sources, gpu = rows.sources_hash(), torch.cuda.get_device_name()
    for name in cases or SHAPES:
        made = SHAPES[name]()
        own = Subject(made)
        calls = {"kdsl": own.ours(None)}
        calls |= {p: own.ours(VARIANTS[p]) for p in peers if p in VARIANTS}
        calls["random blocks"] = Subject(twin(own)).ours(None)
        if "FlexAttention" in peers:
            # It gives its log-sum-exp only where asked, which ours does always.
            output = replace(made.spec, tokens=None, return_lse=False)
            calls["FlexAttention"] = Subject(Made(output, made.tables, made.grows)).flex()
        errors: dict[str, float] = {}
        for impl, call in calls.items():
            try:
                found = call.check()
            except (ImportError, KdslError) as reason:
                said = str(reason).splitlines()[0]
                print(f"{name:12} {impl:17} left out: {said}", file=sys.stderr)
                continue
            if not found.right:
                print(f"{name:12} {impl:17} WRONG: {found}, not timed", file=sys.stderr)
                continue
            errors[impl] = found.error
        times = timing.interleaved({impl: calls[impl].run for impl in errors})
        for impl, ms in times.items():
            if not (after := calls[impl].check()).right:
                print(f"{name:12} {impl:17} WRONG after timing: {after}", file=sys.stderr)
                continue
            yield {
                "suite": "shapes", "case": name, "impl": impl, "dtype": made.spec.dtype,
                "ms": round(ms, 5), "work": own.kept_flop, "unit": "flop",
                "error": round(errors[impl], 6), "density": round(own.density, 6),
                "useful": own.kept_flop if impl == "random blocks" else own.useful_flop,
                "partial": 0.0 if impl == "random blocks" else round(own.partial, 4),
                "run": run, "gpu": gpu, "commit": commit, "sources": sources,
                "versions": versions, "date": rows.today(),
            }  # fmt: skip
        del own, calls
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Call:
    """What is timed, and how far its results are off in the worst of the sampled queries."""

    run: Callable[[], Any]
    check: Callable[[], Check]


class Subject:
    """A case on the GPU: seeded inputs, its work, a check of outputs on sampled queries."""

    def __init__(self, made: Made, device: str = "cuda") -> None:
        import torch

        self.spec, self.tables = made.spec, made.tables
        self.tunable = AttentionTunable(made.spec, made.tables)
        self.runner = AttentionRunner(self.tunable, torch.device(device), codecache.load)
        self.runner.prepare("random", 0)
        if made.grows:
            self._grow()
        assert self.tunable.blocks is not None
        blocks, per = self.tunable.blocks, 4.0 * made.spec.head_dim
        heads = made.spec.heads
        counts = np.broadcast_to(blocks.counts, (1, heads, blocks.rows)).sum()
        self.kept_flop = per * float(counts) * made.spec.block[0] * made.spec.block[1]
        self.density = float(counts) / (heads * blocks.rows * blocks.columns)
        self.partial = self.tunable.statistics()["partial_share"]
        self.useful_flop = per * pairs(made.spec, made.tables, device)

    def _grow(self) -> None:
        """Keys along one direction, the later the longer, and queries that point there."""
        import torch

        q, k = self.runner.q, self.runner.k
        steps = torch.linspace(0, 1, k.shape[2], device=k.device)
        log2 = GROWTH * 0.6931471805599453 / self.spec.softmax_scale
        q[..., 0] = 8.0
        k[..., 0] = steps * log2 / 8.0

    def ours(self, backend: str | None) -> Call:
        """The product as a user gets it; built when it is first called."""
        op = cache(lambda: kdsl.build(self.spec, tables=self.tables or None, backend=backend))
        runner = self.runner

        def check() -> Check:
            runner.out, runner.lse = op()(runner.q, runner.k, runner.v)
            return runner.check()

        return Call(lambda: op()(runner.q, runner.k, runner.v), check)

    def flex(self) -> Call:
        """FlexAttention with the same lists and the mask inside partial blocks."""
        import torch
        from torch.nn.attention.flex_attention import flex_attention as flex

        spec, runner = self.spec, self.runner
        blocks = self.tunable.blocks
        assert blocks is not None
        tokens = {
            name: None if order.is_identity else torch.from_numpy(order.index()).cuda()
            for name, order in (("q", spec.query_order), ("k", spec.kv_order))
        }
        q, k, v = (
            x if tokens[name] is None else x[:, :, tokens[name]].contiguous()
            for name, x in (("q", runner.q), ("k", runner.k), ("k", runner.v))
        )

        @cache
        def compiled() -> tuple[Any, Any]:
            mod = flex_attention.mask_mod(spec, self.tables, "cuda")
            torch._dynamo.reset()
            mask = flex_attention.to_block_mask(blocks, mod, device="cuda")
            return torch.compile(flex, dynamic=False), mask

        def run() -> Any:
            call, mask = compiled()
            return call(q, k, v, block_mask=mask)

        def check() -> Check:
            runner.out = out = run()
            if tokens["q"] is not None:
                runner.out = torch.empty_like(out)
                runner.out[:, :, tokens["q"]] = out
            return runner.check()

        return Call(run, check)


def pairs(spec: Attention, tables: Tables, device: str) -> float:
    """Pairs of a query and a key that the mask keeps, over all heads."""
    import torch

    queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
    sees = flex_attention.mask_mod(spec, tables, device)
    columns = torch.arange(keys, device=device)[None]
    item, total = torch.zeros((), dtype=torch.int64, device=device), 0
    each = range(spec.heads) if _by_head(spec) else (0,)
    for head in each:
        for at in range(0, queries, 1024):
            lines = torch.arange(at, min(at + 1024, queries), device=device)[:, None]
            total += int(sees(item, item + head, lines, columns).expand(-1, keys).sum())
    return float(total) * (spec.heads / len(each))


def _by_head(spec: Attention) -> bool:
    """Whether heads may differ in how many pairs they keep."""
    mask = spec.element_mask
    return len(mask.variants) > 1 or bool(spec.mask.block_maps()) or (
        any("head" in e.variables() for e in mask.variants)
    )  # fmt: skip


def twin(of: Subject) -> Made:
    """As many blocks in each row, at random places; blocks, heads and sizes are the same."""
    spec, blocks = of.spec, of.tunable.blocks
    assert blocks is not None
    counts = np.broadcast_to(blocks.counts[0], (spec.heads, blocks.rows))
    rng = np.random.default_rng(2)
    order = rng.random((spec.heads, blocks.rows, blocks.columns)).argsort(-1)
    kept = order < counts[..., None]
    other = Attention(
        tokens=None, queries=Grid(spec.query_grid.tokens), keys=Grid(spec.key_grid.tokens),
        heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim, dtype=spec.dtype,
        mask=masks.blocks("plan", block=spec.block), block=spec.block, return_lse=True,
    )  # fmt: skip
    return Made(other, {"plan": kept.astype(np.uint8)})
