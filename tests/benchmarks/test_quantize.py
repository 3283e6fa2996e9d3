"""The quantize suite without a GPU: its cases, its bytes, its plain torch; and that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.cases import QUANTIZE
from benchmarks.quantize import LEAST, Made, buffers, coded, exact_error, relative_error, rotated
from kdsl.kernels.quantize.facts import view
from kdsl.reference.quantize import quantize

torch: Any = pytest.importorskip("torch")


def test_cases_are_the_designs() -> None:
    """4,608 rows at the five widths, each to int8 and e4m3 by token and to packed int4; an id says
    what is computed, and a kernel computes it."""
    assert len(QUANTIZE) == 15
    for name, case in QUANTIZE.items():
        assert name == case.id
        assert case.spec.rows == 4608
        assert view(case.spec).block == 128
    assert QUANTIZE["quantize-3072-int8"].work == 4608 * (3 * 3072 + 4)
    assert QUANTIZE["quantize-3072-int4-g128"].work == 4608 * (3072 * 5 // 2 + 4 * 24)


def test_buffers_exceed_the_cache() -> None:
    """Three times the L2 of an H100 and more, and never fewer than a handful."""
    for case in QUANTIZE.values():
        count = buffers(case, 50 << 20)
        assert count * case.work >= 3 * (50 << 20)
        assert count >= LEAST


@pytest.mark.parametrize("code", ["int8", "fp8", "int4-g128"])
def test_plain_torch_is_the_reference(code: str) -> None:
    """What torch.compile is given computes the same codes; a wrong result has a larger error."""
    case = QUANTIZE[f"quantize-1152-{code}"]
    x = torch.randn((4608, 1152), generator=torch.Generator().manual_seed(0)).bfloat16()
    sample = x[:256]
    codes, scales = coded(case, rotated(case, x))
    small = type(case)(case.id, 1152, case.code, case.group, rows=256)
    wanted = quantize(small.spec, sample)
    np.testing.assert_allclose(scales.numpy(), wanted["scales"], rtol=1e-6)
    differ = (codes.numpy() != wanted["codes"]).mean()
    assert differ < 1e-4
    limit = exact_error(case, x)
    assert 0.001 < limit < 0.2
    right = Made(None, torch.from_numpy(wanted["codes"]), torch.from_numpy(wanted["scales"]))
    assert relative_error(case, x, right) == pytest.approx(limit, rel=1e-3)
    wrong = Made(None, right.codes.roll(1, 0), right.scales)
    assert relative_error(case, x, wrong) > 1.5 * limit


def test_without_a_gpu_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the reason; unknown cases are named."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["quantize"]) == 2
    assert "benchmarks need a CUDA GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["quantize", "--cases", "quantize-7"])
    assert "unknown 'quantize-7'" in capsys.readouterr().err
