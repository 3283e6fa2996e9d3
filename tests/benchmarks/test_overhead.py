"""Host overhead: a call is timed whole, whether or not there is a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import overhead


def test_every_template_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Both templates report microseconds; without a GPU the launch alone is left out, and said."""
    found = list(overhead.report(calls=3, rounds=2))
    assert [name for name, *_ in found][:1] == ["portable"]
    assert all(0 < us < 1e5 for *_, us in found)
    if not found[0][1]:
        assert [name for name, *_ in found] == ["portable", "hopper"]


def test_repeated_calls_are_prepared() -> None:
    """The second call of a kind hands the kernel the first one's arguments, with its own tensors;
    another alignment is another kind."""
    import torch

    for template, backend in overhead.TEMPLATES.items():
        op = overhead._operator(backend, template, stubbed=True)
        kernel = op.modules[template].attention_forward.kernel
        handed: list[tuple[object, ...]] = []
        kernel.run = lambda *arguments, handed=handed: handed.append(arguments)
        first, second = (
            [torch.randn(1, 2, 512, 64, dtype=torch.bfloat16) for _ in range(3)] for _ in range(2)
        )
        op(*first)
        assert not handed
        out, lse = op(*second)
        names = op.modules[template].attention_forward.arg_names
        (given,) = handed
        by_name = dict(zip(names, given[-len(names) :], strict=True))
        for name, x in zip(("q", "k", "v", "lse"), (*second, lse), strict=True):
            held = by_name[name]
            assert getattr(held, "base", held) is x
        assert getattr(by_name["o"], "base", by_name["o"]) is out
        assert (by_name["heads"], by_name["queries"]) == (2, 512)
        if template == "portable":
            odd = torch.randn(1 + 2 * 512 * 64, dtype=torch.bfloat16)[1:].view(1, 2, 512, 64)
            op(odd, *second[1:])
            assert len(handed) == 1
