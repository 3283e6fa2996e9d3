"""Run a backward kernel to measure it: seeded inputs, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.kernels.attention import launch as forward
from kdsl.kernels.attention.backward import launch
from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.backward import launch as hopper
from kdsl.kernels.attention.runner import (
    PEAK,
    SAMPLED_HEADS,
    Sample,
    border_target,
    sampled_rows,
    seen,
)
from kdsl.kernels.rounding import UNIT
from kdsl.specs import Attention
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.backward.tunable import BackwardTunable

FLOOR = 0.03
"""Norm below which a gradient is nothing: what numbers of 16 bits lose of tiny weights."""


class BackwardRunner:
    """One backward kernel of one spec and one set of table values on a device.

    A sample is of one part: its rows are queries for dQ, and keys for dK and dV.

    Inputs are made up: ``level`` as of scores of one Gaussian unit, ``delta`` small.
    Family ``random`` has Gaussian tensors.  In ``pointed`` a query and a key at the border of the
    mask point at each other, so hard that a pair too many or too few shows in full.
    """

    families = ("pointed", "random")

    def __init__(self, tunable: BackwardTunable, device: Any, load: Callable[[str], Any]) -> None:
        import torch

        spec, batch = tunable.spec, tunable.batch
        assert tunable.blocks is not None, "every table needs values"
        self.spec, self.part, self.tables = spec, tunable.part, tunable.tables
        self.module = cache(lambda template: load(tunable.source_of(template)))
        """The generated file of a template, imported."""
        if self.part != "queries":
            self.lists = launch.inverted(tunable.blocks, spec, device)
        else:
            self.lists = forward.lists(tunable.blocks, spec.heads, device)
        tables = forward.table_tensors(spec, tunable.tables, device)
        dtype = getattr(torch, spec.dtype)
        own = (batch, spec.heads, spec.query_grid.tokens, spec.head_dim)
        shared = (batch, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
        q, k, v, do = (
            torch.empty(shape, dtype=dtype, device=device) for shape in (own, shared, shared, own)
        )
        level, delta = (torch.empty(own[:3], dtype=torch.float32, device=device) for _ in range(2))
        self.given = launch.Given(q, k, v, do, level, delta, tables)
        self.made: dict[Part, tuple[Tensor, ...]] = {}
        """Gradients by the part that they are checked as."""
        if self.part != "queries":
            self.made["keys"] = launch.key_outputs(spec, k, v)
        if self.part != "keys":
            self.made["queries"] = (torch.empty_like(q),)
        self.generator = torch.Generator(device=device)
        self.samples = [(part, s) for part in self.made for s in _samples(tunable, part, device)]
        density = max(tunable.blocks.density, 1 / max(spec.key_grid.tokens, 1))
        self.level = (math.log(max(density * spec.key_grid.tokens, 1.0)) + 0.5) * forward.LOG2E
        """Of a row of so many scores of one Gaussian unit."""

    def prepare(self, family: str, seed: int) -> None:
        """Fill the inputs."""
        given, spec = self.given, self.spec
        self.generator.manual_seed(seed)
        for x in (given.q, given.v, given.do):
            x.normal_(generator=self.generator)
        given.delta.normal_(0, 0.25, generator=self.generator)
        given.level.fill_(self.level)
        if family == "random":
            given.k.normal_(generator=self.generator)
            return
        # Signs: every key has the same length, and no other key comes near in direction.
        given.k.random_(0, 2, generator=self.generator).mul_(2).sub_(1)
        length = PEAK / (spec.head_dim * spec.softmax_scale)
        for part, s in self.samples:
            queries, keys = s.rows, s.targets
            if part == "keys":
                queries, keys = keys, queries
            given.q[s.batch, s.head, queries] = (
                given.k[s.batch, s.head // spec.group, keys] * length
            )
            given.level[s.batch, s.head, queries] = PEAK * forward.LOG2E

    def poison(self) -> None:
        """NaN into every output."""
        for x in self.outputs:
            x.fill_(math.nan)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """All gradients."""
        return tuple(x for made in self.made.values() for x in made)

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        arguments = (self.module(config.template), self.spec, config, self.lists, self.given)
        into = hopper if config.template == "hopper" else launch
        if self.part == "all":
            hopper.all_into(*arguments, *self.made["queries"], *self.made["keys"])
        elif self.part == "keys":
            into.keys_into(*arguments, *self.made["keys"])
        else:
            into.queries_into(*arguments, *self.made["queries"])

    def check(self) -> Check:
        """The worst sampled line: the norm of its difference over that of the truth, or over what
        its terms amount to at random signs, where they cancel."""
        allowed = max(tolerance(self.spec, part) for part in self.made)
        if any(bool(x.isnan().any()) for x in self.outputs):
            return Check(math.inf, allowed, "a gradient holds NaN or was not written")
        worst = 0.0
        for part, s in self.samples:
            pairs = zip(self.found(part, s), self.truth(part, s), strict=True)
            for found, (truth, size) in pairs:
                off = (found.double() - truth).norm(dim=-1)
                against = truth.norm(dim=-1).maximum(size).clamp_min(FLOOR)
                worst = max(worst, float((off / against).max()))
        return Check(worst, allowed, "" if worst <= allowed else "a sampled gradient is off")

    def found(self, part: Part, s: Sample) -> tuple[Tensor, ...]:
        """What the kernel wrote for a sample."""
        lead = s.head
        if part == "keys":
            lead = s.head // launch.summed(self.spec)
        return tuple(x[s.batch, lead, s.rows] for x in self.made[part])

    def truth(self, part: Part, s: Sample) -> tuple[tuple[Tensor, Tensor], ...]:
        """Gradients of a sample in float64 from the same inputs, and the root of the sum of their
        terms' squares."""
        scale = self.spec.softmax_scale
        if part == "queries":
            _, ds, k, _, _ = self._pairs(s, s.head, s.rows, None, s.mask)
            return (_product(ds * scale, k),)
        count = launch.summed(self.spec)
        first = s.head // count * count
        terms = []
        for head in range(first, first + count):
            mask = s.mask if head == s.head else self._seen_by(s, head)
            p, ds, _, q, do = self._pairs(s, head, None, s.rows, mask.T)
            terms.append((_product(ds.T * scale, q), _product(p.T, do)))
        sums = []
        for of_output in zip(*terms, strict=True):
            values, sizes = zip(*of_output, strict=True)
            sums.append((sum(values[1:], values[0]), sum((x**2 for x in sizes), 0.0 * sizes[0])))
        return tuple((value, squares.sqrt()) for value, squares in sums)

    def _pairs(
        self, s: Sample, head: int, queries: Tensor | None, keys: Tensor | None, sees: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weights and their gradients over some queries and keys (None: all), and k, q, do."""
        given, kv = self.given, head // self.spec.group
        q, do, level, delta = (
            (x[s.batch, head] if queries is None else x[s.batch, head, queries]).double()
            for x in (given.q, given.do, given.level, given.delta)
        )
        k, v = (
            (x[s.batch, kv] if keys is None else x[s.batch, kv, keys]).double()
            for x in (given.k, given.v)
        )
        score = (q @ k.T) * self.spec.softmax_scale
        p = (score - level[:, None] / forward.LOG2E).exp().masked_fill(~sees, 0.0)
        ds = p * (do @ v.T - delta[:, None])
        return p, ds, k, q, do

    def _seen_by(self, s: Sample, head: int) -> Tensor:
        """Who of another head of the group sees the sampled keys, ``[keys, queries]``."""
        import torch

        keys = s.rows.cpu().numpy()
        mask = seen(self.spec, head, s.batch, self.tables, keys=keys).T
        return torch.from_numpy(np.ascontiguousarray(mask)).to(s.rows.device)


def _product(weight: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """``weight @ values``, and the size of each row at random signs."""
    return weight @ values, (weight**2 @ (values**2).sum(-1)).sqrt()


def tolerance(spec: Attention, part: Part) -> float:
    """Largest relative error of a right kernel.

    Weights, their gradients and the result are rounded to the dtype, at random; sums over channels
    and lines run in float32, and their errors grow with the root of the length.  A weight of a long
    row lies among float16's subnormal numbers, which are 2^-24 apart.
    """
    others = spec.key_grid.tokens
    if part == "keys":
        others = spec.query_grid.tokens * spec.group
    roots = math.sqrt(spec.head_dim) + math.sqrt(others)
    tiny = 2.0**-25 * spec.key_grid.tokens if spec.dtype == "float16" else 0.0
    return 6 * UNIT[spec.dtype] + 32 * UNIT["float32"] * roots + tiny


def _samples(tunable: BackwardTunable, part: Part, device: Any) -> list[Sample]:
    import torch

    spec, rng = tunable.spec, np.random.default_rng(0)
    if not spec.query_grid.tokens or not spec.key_grid.tokens:
        return []
    by_keys = part == "keys"
    tokens = spec.key_grid.tokens if by_keys else spec.query_grid.tokens
    heads = {0, spec.heads - 1, *rng.integers(0, spec.heads, SAMPLED_HEADS - 2).tolist()}
    out = []
    for number, head in enumerate(sorted(heads)):
        batch = number % tunable.batch
        lines = sampled_rows(rng, tokens, spec.block[int(by_keys)])
        if by_keys:
            sees = seen(spec, head, batch, tunable.tables, keys=lines).T
        else:
            sees = seen(spec, head, batch, tunable.tables, lines)
        targets = np.array([border_target(rng, m, bool(i % 2)) for i, m in enumerate(sees)])
        others = np.arange(sees.shape[1])
        arrays = (lines, np.ascontiguousarray(sees), targets, lines, others)
        out.append(Sample(batch, head, *(torch.from_numpy(x).to(device) for x in arrays)))
    return out
