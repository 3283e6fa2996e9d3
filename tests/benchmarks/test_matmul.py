"""The matmul suite without a GPU: its cases, its plain torch, its errors; and that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import MATMUL, MatmulCase
from benchmarks.matmul import (
    as_stored,
    epilogue,
    made_inputs,
    most_error,
    relative_error,
)
from kdsl.kernels.matmul.facts import view
from kdsl.layouts import quantize
from kdsl.reference.matmul import matmul

torch: Any = pytest.importorskip("torch")
SMALL = MatmulCase("small", (64, 96, 32), "int8", False)


def test_cases_are_the_issues() -> None:
    """Three layers, each with int8 and e4m3 x and weights of 8, 4 and 3 bits; an id says what is
    computed, and a kernel does."""
    assert len(MATMUL) == 18
    for name, case in MATMUL.items():
        assert name == case.id
        assert view(case.spec).integer == (case.code == "int8")
        assert view(case.spec).bits == case.bits
        assert case.spec.residual == (case.spec.activation is None)
    assert MATMUL["matmul-4608x12288x3072-fp8-residual"].spec.inner == 12288


@pytest.mark.parametrize("code", ["int8", "fp8"])
@pytest.mark.parametrize("residual", [False, True])
def test_plain_torch_is_the_reference(code: str, residual: bool) -> None:
    """Codes, scales and epilogue of the peers are what the spec means; a wrong result is found."""
    case = replace(SMALL, code=code, residual=residual)
    given = made_inputs(case, "cpu")
    x, sx, w, sw = given.coded[code]
    operands = {
        "x_codes": as_stored(x), "x_scales": sx, "weight_codes": as_stored(w),
        "weight_scales": sw, "bias": given.bias, "residual": given.residual,
    }  # fmt: skip
    held = {n: t for n, t in operands.items() if n in case.spec.operands}
    wanted = torch.from_numpy(matmul(case.spec, held)).bfloat16()
    assert relative_error(case, given, "kdsl", wanted) < 0.0025
    peer = "torch._int_mm" if code == "int8" else "torch._scaled_mm"
    assert relative_error(case, given, peer, wanted) < 0.0025
    y = ((x.double() * sx) @ (w.double() * sw).T).float()
    assert relative_error(case, given, "kdsl", epilogue(case, y, given)) < 0.0025
    assert relative_error(case, given, "kdsl", wanted.roll(1, 0)) > most_error(case, "kdsl")
    assert 0.001 < relative_error(case, given, "torch bf16", wanted) < 0.1


@pytest.mark.parametrize("code", ["int8", "fp8"])
@pytest.mark.parametrize("bits", [4, 3])
def test_few_bits_are_quantized_as_the_layout_says(code: str, bits: int) -> None:
    """Plain torch finds the buffers that the format's own quantizer finds, but for entries halfway
    between two; the error is measured against them."""
    case = replace(SMALL, shape=(64, 256, 32), code=code, bits=bits)
    given, fmt = made_inputs(case, "cpu"), case.spec.weight
    wanted = fmt.pack(quantize(fmt, given.weight.float().numpy()), case.spec.weight_shape)
    for name, value in wanted.items():
        mine = given.few[f"weight_{name}"].numpy()
        assert mine.shape == value.shape
        assert (mine != value).mean() < 0.01, name
    x, sx, _, _ = given.coded[code]
    operands = {"x_codes": as_stored(x), "x_scales": sx, **given.few, "bias": given.bias}
    found = torch.from_numpy(matmul(case.spec, operands)).bfloat16()
    assert relative_error(case, given, "kdsl", found) < 0.0025
    assert relative_error(case, given, "kdsl", found.roll(1, 1)) > most_error(case, "kdsl")


def test_limits_follow_from_the_unit() -> None:
    """int8 and bf16 sums lose nothing that shows; e4m3 sums lose more the longer they are."""
    long = MATMUL["matmul-4608x12288x3072-fp8-residual"]
    assert most_error(long, "torch bf16") == most_error(long, "torch._int_mm") == 2**-8
    assert most_error(long, "kdsl") == most_error(long, "torch._scaled_mm") > 0.02
    assert most_error(MATMUL["matmul-4608x12288x3072-int8-residual"], "kdsl") == 2**-8


def test_without_a_gpu_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the reason; unknown cases are named."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["matmul"]) == 2
    assert "benchmarks need a CUDA GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["matmul", "--cases", "matmul-7"])
    assert "unknown 'matmul-7'" in capsys.readouterr().err
