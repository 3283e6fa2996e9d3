"""Fitted weights on disk: they come back, replace data sheets, and change the rows' model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdsl import targets
from kdsl.errors import StoreError
from kdsl.parallel import calibration
from kdsl.parallel.calibration import (
    HandlingEntry,
    KernelEntry,
    LinkEntry,
    fitted,
    load,
    save,
)
from kdsl.parallel.cost import Handling, KernelModel
from kdsl.parallel.topology import Link
from kdsl.parallel.tunable import PartitionTunable
from kdsl.specs import Attention, Partition

GPU = targets.get("h100")
SPEC = Partition(attention=Attention(tokens=4096, heads=8, head_dim=128), world=4, node=2)
KERNEL = KernelEntry(90, "bfloat16", 128, (128, 128), 1, KernelModel(7.0, 0.02, 0.01), 0.03, 40)
NEAR, FAR = (
    LinkEntry("h100", name, Link(alpha, rate), 12)
    for name, alpha, rate in (("nvlink", 8.0, 3.3e5), ("network", 25.0, 3.9e4))
)


def test_fitted_weights_replace_data_sheets(tmp_path: Path) -> None:
    """Entries come back equal, a newer one replaces the older one for the same thing, and costs
    take just what was fitted for their GPU, dtype, block and link."""
    path = tmp_path / "costs.json"
    assert load(path) == ()
    older = replace(KERNEL, model=KernelModel(1.0, 1.0, 1.0))
    other = replace(KERNEL, dtype="float16")
    save([older, other, NEAR], path)
    save([KERNEL, FAR], path)
    assert sorted(map(repr, load(path))) == sorted(map(repr, (KERNEL, other, NEAR, FAR)))
    plain = PartitionTunable(SPEC).costs_on(GPU)
    found = fitted(plain, SPEC, GPU, path=path)
    assert found.kernel == KERNEL.model
    assert (found.topology.inside, found.topology.between) == (NEAR.link, FAR.link)
    assert found.id != plain.id
    assert fitted(plain, SPEC, targets.get("a100"), path=path) == plain
    assert fitted(plain, SPEC, GPU, 2, path).kernel == plain.kernel
    pcie = Partition(attention=SPEC.attention, world=4, node=2, link="pcie")
    assert fitted(plain, pcie, GPU, path=path).topology.inside == plain.topology.inside


def test_what_calls_take_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing, merging and overlap come back, for the GPU, dtype and head dimension they were
    measured with; the user's own entries stand before those that come with kdsl."""
    path = tmp_path / "costs.json"
    own = HandlingEntry("h100", "bfloat16", 128, 1, Handling(90.0, 15.0, 0.8, 0.4), 1.1, 0.3, 14)
    save([own, replace(own, head_dim=64, hidden=0.9)], path)
    plain = PartitionTunable(SPEC).costs_on(GPU)
    found = fitted(plain, SPEC, GPU, path=path)
    assert (found.handling, found.slowdown, found.hidden) == (own.handling, 1.1, 0.3)
    for other in (
        fitted(plain, SPEC, targets.get("h200"), path=path),
        fitted(plain, SPEC, GPU, 2, path),
    ):
        assert other.handling == plain.handling
    monkeypatch.setattr(calibration, "place", lambda: path)
    monkeypatch.setattr(calibration, "shipped", lambda: (replace(own, hidden=0.5), KERNEL))
    both = fitted(plain, SPEC, GPU)
    assert (both.hidden, both.kernel) == (0.3, KERNEL.model)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 9, "entries": []}', '{"version": 1}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """A file that holds no fitted costs, or a newer release's, is an error that names it."""
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"costs\.json"):
        load(path)
