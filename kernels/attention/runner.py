"""Run attention to measure it: seeded inputs, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.intervals.classify import head_order
from kdsl.kernels.attention import launch
from kdsl.kernels.attention.config import Config
from kdsl.kernels.lists import packed
from kdsl.kernels.rounding import UNIT
from kdsl.specs import Attention
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.tunable import AttentionTunable

SAMPLED_HEADS, SAMPLED_ROWS = 4, 48
PEAK = 48.0
"""Score of the key that a query of the family ``pointed`` points at: far above all others."""


@dataclass(frozen=True)
class Sample:
    """Some queries of one head, and which keys each of them sees."""

    batch: int
    head: int
    rows: Tensor
    mask: Tensor
    targets: Tensor
    """A key for each query, by turns the last or first one it sees and one it just does not."""
    q_at: Tensor
    """Where the queries lie in q."""
    k_at: Tensor
    """Where each original key lies in k and v."""


class AttentionRunner:
    """Attention of one spec and one set of table values on a device.

    Family ``random`` has Gaussian inputs.  In ``pointed`` each sampled query points at one key at
    the border of what it sees, so hard that its output is that key's value if it sees it and has
    no trace of it otherwise: an index or a mask that is off by one key shows in full.
    """

    families = ("pointed", "random")

    def __init__(self, tunable: AttentionTunable, device: Any, load: Callable[[str], Any]) -> None:
        import torch

        spec, batch = tunable.spec, tunable.batch
        assert tunable.blocks is not None, "every table needs values"
        self.spec = spec
        self.module_of = cache(lambda template: load(tunable.source_of(template)))
        self.lists = launch.lists(tunable.blocks, spec.heads, device)
        plain = launch.table_tensors(spec, tunable.tables, device)
        self.tables_of = cache(
            lambda masks: (
                plain + packed.of_lists(spec, load, self.lists, plain) if masks == "bits" else plain
            )
        )
        dtype = getattr(torch, spec.dtype)
        q_shape = (batch, spec.heads, spec.query_grid.tokens, spec.head_dim)
        k_shape = (batch, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
        shapes = (q_shape, k_shape, k_shape, q_shape)
        self.q, self.k, self.v, self.out = (
            torch.empty(shape, dtype=dtype, device=device) for shape in shapes
        )
        self.lse = torch.empty(q_shape[:3], dtype=torch.float32, device=device)
        self.generator = torch.Generator(device=device)
        self.samples = _samples(tunable, device)

    def prepare(self, family: str, seed: int) -> None:
        """Fill q, k and v."""
        self.generator.manual_seed(seed)
        self.q.normal_(generator=self.generator)
        self.v.normal_(generator=self.generator)
        if family == "random":
            self.k.normal_(generator=self.generator)
            return
        # Signs: every key has the same length, and no other key comes near in direction.
        self.k.random_(0, 2, generator=self.generator).mul_(2).sub_(1)
        length = PEAK / (self.spec.head_dim * self.spec.softmax_scale)
        for s in self.samples:
            keys = self.k[s.batch, s.head // self.spec.group, s.k_at]
            self.q[s.batch, s.head, s.q_at] = keys[s.targets] * length

    def poison(self) -> None:
        """NaN into every output."""
        self.out.fill_(math.nan)
        self.lse.fill_(math.nan)

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        tensors = (self.q, self.k, self.v)
        launch.launch(
            self.module_of(config.template),
            self.spec,
            config,
            self.lists,
            tensors,
            self.tables_of(config.masks),
            self.out,
            self.lse,
        )

    def check(self) -> Check:
        """The worst sampled query, by the norm of its difference over the norm of the truth."""
        allowed = tolerance(self.spec)
        outputs = {"output": self.out} | ({"log-sum-exp": self.lse} if self.spec.return_lse else {})
        for name, x in outputs.items():
            if bool(x.isnan().any()):
                return Check(math.inf, allowed, f"the {name} holds NaN or was not written")
        worst = 0.0
        for s in self.samples:
            truth, lse = self._truth(s)
            off = (self.out[s.batch, s.head, s.rows].double() - truth).norm(dim=-1)
            errors = [off / truth.norm(dim=-1).clamp_min(1e-6)]
            if self.spec.return_lse:
                # Compared as weights: a difference of natural logarithms is a relative error.
                found = self.lse[s.batch, s.head, s.rows].double()
                errors.append((found.nan_to_num() - lse.nan_to_num()).abs())
            worst = max(worst, *(float(e.max()) for e in errors))
        reason = "" if worst <= allowed else "a sampled query is off"
        return Check(worst, allowed, reason)

    def _truth(self, s: Sample) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of a sample in float64."""
        kv = s.head // self.spec.group
        q, k, v = self.q[s.batch, s.head, s.q_at], self.k[s.batch, kv], self.v[s.batch, kv]
        k, v = k[s.k_at], v[s.k_at]
        score = (q.double() @ k.double().T) * self.spec.softmax_scale
        score.masked_fill_(~s.mask, -math.inf)
        weight = score.softmax(-1).nan_to_num()  # a query that sees nothing
        return weight @ v.double(), score.logsumexp(-1)


def tolerance(spec: Attention) -> float:
    """Largest relative error of a right kernel.

    Weights and outputs are rounded to the dtype, at random, which gives about one unit; sums over
    channels and keys run in float32, and their errors grow with the root of the length.
    """
    roots = math.sqrt(spec.head_dim) + math.sqrt(spec.key_grid.tokens)
    return 4 * UNIT[spec.dtype] + 16 * UNIT["float32"] * roots


def _samples(tunable: AttentionTunable, device: Any) -> list[Sample]:
    import torch

    spec, rng = tunable.spec, np.random.default_rng(0)
    if not spec.query_grid.tokens or not spec.key_grid.tokens:
        return []
    heads = {0, spec.heads - 1, *rng.integers(0, spec.heads, SAMPLED_HEADS - 2).tolist()}
    out = []
    for number, head in enumerate(sorted(heads)):
        batch = number % tunable.batch
        rows = sampled_rows(rng, spec.query_grid.tokens, spec.block[0])
        mask = seen(spec, head, batch, tunable.tables, rows)
        q_at, k_at = rows, np.arange(spec.key_grid.tokens)
        if spec.stored:
            q_order, k_order = (head_order(o, head) for o in (spec.query_order, spec.kv_order))
            q_at = q_order.inverse_index(tunable.tables)[rows]
            k_at = k_order.inverse_index(tunable.tables)
        targets = np.array([border_target(rng, m, bool(i % 2)) for i, m in enumerate(mask)])
        arrays = (torch.from_numpy(x).to(device) for x in (rows, mask, targets, q_at, k_at))
        out.append(Sample(batch, head, *arrays))
    return out


def sampled_rows(rng: np.random.Generator, tokens: int, block: int) -> npt.NDArray[np.int64]:
    """Both ends, both sides of a block's border, and any others."""
    border = min(block, tokens - 1)
    some = rng.integers(0, tokens, SAMPLED_ROWS - 4)
    return np.unique(np.array([0, border - 1 if border else 0, border, tokens - 1, *some]))


def seen(
    spec: Attention,
    head: int,
    batch: int,
    tables: Mapping[str, npt.NDArray[Any]] | None,
    queries: npt.NDArray[np.int64] | None = None,
    keys: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.bool_]:
    """Which original keys original queries of a head see, ``[queries, keys]``; None for all."""
    q_at, k_at = (
        head_order(order, head).inverse_index(tables) for order in (spec.query_order, spec.kv_order)
    )
    rows = np.arange(spec.query_grid.tokens) if queries is None else queries
    columns = np.arange(spec.key_grid.tokens) if keys is None else keys
    return spec.element_mask.dense(
        rows, columns, head=head, batch=batch, tables=tables, stored=(q_at[rows], k_at[columns])
    )


def border_target(rng: np.random.Generator, sees: npt.NDArray[np.bool_], hidden: bool) -> int:
    """A key at a border of what a query sees, on the one side or the other; any key if none."""
    edge = np.nonzero(np.diff(sees))[0]
    beside = np.concatenate([edge, edge + 1])
    wanted = beside[sees[beside] != hidden]
    return int(rng.choice(wanted)) if len(wanted) else int(rng.integers(len(sees)))
