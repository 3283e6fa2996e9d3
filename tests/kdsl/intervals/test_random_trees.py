"""The interval reader against dense NumPy, over random mask trees."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, given, settings

from kdsl.expr.bounds import bounds
from kdsl.intervals import classify
from kdsl.masks import Mask
from tests.strategies import Problem, blocks_of, problems

TREES = max(2000, 40 * settings().max_examples)


def check(problem: Problem, mask: Mask, seen: Counter[str]) -> None:
    """Classify and hold every block against the truth; counts what was left undecided."""
    found = classify(
        mask,
        problem.queries,
        problem.keys,
        block=problem.block,
        query_order=problem.query_order,
        key_order=problem.key_order,
        heads=2,
        batch=2,
        tables=problem.tables,
    )
    full, partial = found.kept(partial=False), found.kept(full=False)
    batch, heads = full.shape[:2]
    for b, h in np.ndindex(batch, heads):
        some, every = blocks_of(problem.truth(mask, h, b), problem.block)
        assert not (full[b, h] & ~every).any(), "a block that is not full was called full"
        assert not (some & ~full[b, h] & ~partial[b, h]).any(), "kept pairs were dropped"
        seen["left"] += int((partial[b, h] & (every | ~some)).sum())
        seen["uniform"] += int((every | ~some).sum())
        seen["mixed"] += int((some & ~every).sum())
    if heads == 1:
        assert (problem.truth(mask, 0, 0) == problem.truth(mask, 1, 0)).all()
    if batch == 1:
        assert (problem.truth(mask, 0, 0) == problem.truth(mask, 0, 1)).all()


def test_never_wrong_and_tight_on_random_trees() -> None:
    """Over 2,000 trees no block is wrongly full or empty, and none that is uniform is partial.

    The law allows 1 % of uniform blocks to stay partial; on sequences this short the budget for
    looking inside blocks never ends, so all of them are decided.
    """
    seen: Counter[str] = Counter()

    @settings(max_examples=TREES // 8, suppress_health_check=list(HealthCheck))
    @given(problems(8))
    def trees(problem: Problem) -> None:
        q, k = problem.queries.tokens - 1, problem.keys.tokens - 1
        last = {"q": q, "k": k, "qs": q, "ks": k, "head": 1, "batch": 1}
        for mask in problem.masks:
            seen["trees"] += 1
            for expr in mask.variants:
                ranges = bounds(expr, {name: (0, n) for name, n in last.items()})
                divisions = [n for n in expr.walk() if n.op in ("floordiv", "mod")]
                seen["negative"] += any(ranges[n.args[0].key][0] < 0 for n in divisions)
            check(problem, mask, seen)

    trees()
    assert seen["trees"] >= 2000
    assert seen["negative"] >= 300, "too few divisions of what may be negative"
    assert min(seen["mixed"], seen["uniform"]) >= 10_000
    assert seen["left"] == 0
    print(seen)
