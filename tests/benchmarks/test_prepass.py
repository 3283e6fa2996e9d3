"""The prepass suite without a GPU: its cases, its bytes, its plain torch; and that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.cases import PREPASS, SIX
from benchmarks.prepass import exact_error, exact_numbers, made_inputs, plain, relative_error
from kdsl import Grid, orders
from kdsl.kernels.prepass.config import default
from kdsl.reference.prepass import prepass
from kdsl.specs import Prepass
from kdsl.targets import get
from tests.preparing import as_tensors

torch: Any = pytest.importorskip("torch")


def small(name: str) -> Prepass:
    """A case on a grid of 300 tokens."""
    spec, text = PREPASS[name].spec, PREPASS[name].spec.grid.text and 9
    grid = Grid(frames=5, height=6, width=10, text=text)
    order: Any = orders.axes(grid, "HWF")
    if len(spec.stored_order.parts) > 1:
        order = [orders.axes(grid, SIX[h % 6]) for h in range(4)]
    return replace(spec, tokens=grid, heads=4, kv_heads=4, order=order)


def test_cases_are_the_models() -> None:
    """12 x 32,760 x 128 and 48 x 17,776 x 64; an id is its case's, and Hopper has a kernel."""
    for name, case in PREPASS.items():
        assert name == case.id
        spec = case.spec
        assert spec.heads * spec.grid.tokens in (12 * 32760, 48 * 17776)
        assert default(spec, get("h100"))
    numbers = 12 * 32760 * 128
    # 3 bytes a number, and k and v again.
    assert 13 * numbers <= PREPASS["prepass-W-fp8-bare"].work <= 13.1 * numbers
    assert 13 * numbers <= PREPASS["prepass-W-fp8"].work <= 13.7 * numbers


@pytest.mark.parametrize("name", PREPASS)
def test_plain_torch_is_the_reference(name: str) -> None:
    """What torch.compile is given computes the same; a wrong result has a larger error."""
    spec = small(name)
    given = made_inputs(spec, "cpu")
    made = plain(spec, "cpu")(given)
    wanted = as_tensors(spec, prepass(spec, given))
    for key, x in wanted.items():
        assert made[key].shape == x.shape, key
        if x.dtype in (torch.int8, torch.float8_e4m3fn):
            differ = (made[key].view(torch.uint8) != x.view(torch.uint8)).double().mean()
            assert differ < 2e-4, key
        else:
            np.testing.assert_allclose(made[key], x, 1e-4, 1e-5)
    exact = exact_numbers(spec, given)
    limit = exact_error(spec, exact)
    assert 0.001 < limit < 0.1
    assert relative_error(spec, exact, wanted) == pytest.approx(limit, rel=1e-3)
    assert relative_error(spec, exact, made) == pytest.approx(limit, rel=1e-3)
    for key in ("q", "k", "v"):
        wrong = {**wanted, key: wanted[key].view(torch.int8).roll(1, -1).view(wanted[key].dtype)}
        assert relative_error(spec, exact, wrong) > 1.5 * limit


def test_without_a_gpu_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the reason."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["prepass"]) == 2
    assert "benchmarks need a CUDA GPU" in capsys.readouterr().err
