"""Gathered lines are those of the index: in the interpreter here, and on a GPU."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.kernels.lines import launch
from kdsl.runtime.lines import gather
from tests.devices import DEVICE, examples

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8)


@settings(max_examples=examples(40))
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    wide=st.sampled_from([(1, 64), (1, 128), (2, 80), (3, 8), (8,), (1,), (5,)]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from([torch.int32, torch.int64]),
    count=st.integers(0, 200),
    seed=st.integers(0, 99),
)
def test_any_lines(
    sizes: list[int],
    wide: tuple[int, ...],
    dtype: torch.dtype,
    kind: torch.dtype,
    count: int,
    seed: int,
) -> None:
    """One to three tensors, lines of any shape (also those that are no whole words), any numbers in
    any order, none too: bit for bit the lines of the tensors one behind the other."""
    generator = torch.Generator().manual_seed(seed)
    sources = [
        (100 * torch.randn(n, *wide, generator=generator)).to(dtype).to(DEVICE) for n in sizes
    ]
    index = torch.randint(sum(sizes), (count,), generator=generator).to(kind).to(DEVICE)
    whole = torch.cat(sources)
    found = gather(sources, index)
    assert torch.equal(found, whole[index.long()])
    behind = torch.full((count + 2, *wide), 7, dtype=dtype, device=DEVICE)
    assert gather(sources, index, behind[2:]) is not None
    assert torch.equal(behind[2:], found)
    assert bool((behind[:2] == 7).all())


def test_the_kernel_runs(monkeypatch) -> None:
    """Lines of whole words go through the kernel, others do not."""
    called = []
    own = launch.gather_lines
    monkeypatch.setattr(launch, "gather_lines", lambda *given: called.append(1) or own(*given))
    index = torch.tensor([1, 0], device=DEVICE)
    gather([torch.zeros(2, 4, device=DEVICE)], index)
    assert called == [1]
    gather([torch.zeros(2, 1, device=DEVICE)], index)
    assert called == [1]
