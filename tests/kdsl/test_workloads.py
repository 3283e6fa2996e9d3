"""The catalogue of workloads."""

from __future__ import annotations

import numpy as np
import pytest

from kdsl import workloads
from kdsl.errors import SpecError
from kdsl.specs import from_json


@pytest.mark.parametrize("name", workloads.names())
def test_workload_is_a_spec_with_a_sample(name: str) -> None:
    """Each workload makes the same spec every time, and its sample fills its tables."""
    workload = workloads.get(name)
    spec = workload.spec
    assert spec == workload.spec
    assert from_json(spec.to_json()) == spec
    sample = workload.sample()
    assert set(sample) == {t.name for t in spec.open_tables}
    for table in spec.open_tables:
        held = table.checked(sample[table.name])
        assert held.mean() == pytest.approx(workload.density, rel=0.05)
        heads = held.mean((1, 2))
        assert heads[-1] > 2 * heads[0], "heads differ in density, as calibrated ones do"


def test_smallest_workload_comes_first() -> None:
    """The catalogue is ordered by arithmetic, so that a bounded run starts with what is quick."""
    work = []
    for workload in workloads.CATALOGUE:
        spec = workload.spec
        kept = spec.rows(workload.sample()).counts
        blocks = np.broadcast_to(kept, (1, spec.heads, kept.shape[-1])).sum()
        work.append(float(blocks) * spec.block[0] * spec.block[1] * spec.head_dim)
    assert work == sorted(work)


def test_unknown_name_lists_the_known_ones() -> None:
    """A typo gets the nearest name and all names."""
    with pytest.raises(SpecError, match=r"'wan2.1-1.3b-480p'\?") as error:
        workloads.get("wan2.1-1.3b-480")
    assert "flux-dev-1024" in error.value.hint
