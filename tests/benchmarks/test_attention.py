"""The suite's own truth: right gradients pass, in either layout, and wrong ones are found."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from benchmarks.attention import Truth, ours, prepare  # noqa: E402
from benchmarks.cases import BLOCK, LAYOUTS, AttentionCase  # noqa: E402
from benchmarks.peers import Kept, Prepared, own  # noqa: E402

CASE = AttentionCase("small", (1, 2, 2 * BLOCK, 64), "float32", 0.5, backward=True)


def inputs() -> tuple[Any, ...]:
    """q, k, v and the gradient of the output on the CPU."""
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(CASE.shape, generator=g) for _ in range(4))


def plain(tensors: Any, kept: Kept, backward: bool, scale: float = 64**-0.5) -> Prepared:
    """Attention in torch, with tokens before heads."""
    q, k, v = own(tensors, backward, heads_first=False)
    seen = torch.from_numpy(kept).repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[None]

    def run() -> Any:
        score = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
        weight = score.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weight, v)

    return Prepared(run, (q, k, v), heads_first=False)


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_right_gradients_pass() -> None:
    """Ours by the reference and torch's own, heads first and tokens first."""
    tensors, kept = inputs(), CASE.plan()
    truth = Truth(CASE, tensors, kept)
    for make in (ours(CASE), plain):
        assert prepare(make, CASE, tensors, kept, truth).error() < 1e-5


def test_wrong_gradients_are_found() -> None:
    """Another scale, a block too many, a gradient with NaN."""
    tensors, kept = inputs(), CASE.plan()
    truth = Truth(CASE, tensors, kept)

    def other_scale(*given: Any) -> Prepared:
        return plain(*given, scale=0.2)

    assert prepare(other_scale, CASE, tensors, kept, truth).error() > CASE.limit
    more = kept.copy()
    more[:] = True
    assert prepare(plain, CASE, tensors, more, truth).error() > CASE.limit
    grads = [x.clone() for x in prepare(plain, CASE, tensors, kept, truth).run()]
    grads[1][0, 0, 0, 0] = float("nan")
    assert not truth.of_gradients([x.transpose(1, 2) for x in grads]) < CASE.limit


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantized_operands_cost_what_their_format_does(layout: str) -> None:
    """From quantized operands and from 16 bits alike: inside the limit, far above bf16's error."""
    case = AttentionCase("small", (1, 2, 3 * BLOCK, 128), "bfloat16", 0.5, layout=layout)
    g = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(case.shape, generator=g, dtype=torch.bfloat16) for _ in range(4))
    kept = case.plan()
    truth = Truth(case, tensors, kept)
    errors = [
        prepare(ours(case, whole=whole), case, tensors, kept, truth).error()
        for whole in (False, True)
    ]
    assert errors[0] == errors[1]
    assert 0.005 < errors[0] < case.limit
