"""The matmul operator without a GPU: the reference, binding, what it says and refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdsl
from kdsl import layouts
from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.reference.matmul import activated, matmul
from kdsl.runtime.matmul import MatmulOperator
from kdsl.specs import Matmul
from tests.matrices import operands, packed, spec_of

SPEC = spec_of(bias=True, residual=True, activation="gelu_tanh")
GIVEN = operands(SPEC)
FIXED = {n: v for n, v in GIVEN.items() if n.startswith(("weight", "bias"))}
LARGE = spec_of(rows=4608, inner=3072, columns=12288, dtype="bfloat16", bias=True)


def built(spec: Matmul = SPEC, **options: Any) -> MatmulOperator:
    """An operator of a spec."""
    made = kdsl.build(spec, **options)
    assert isinstance(made, MatmulOperator)
    return made


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_the_reference_takes_arrays_and_tensors() -> None:
    """Operands in order, of either kind, e4m3 as tensors or bytes; the result is of their kind in
    the spec's dtype."""
    torch: Any = pytest.importorskip("torch")
    op = built(backend="reference")
    wanted = matmul(SPEC, GIVEN)
    found = op(*GIVEN.values())
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, wanted.astype(np.float16))
    np.testing.assert_array_equal(op.reference(*GIVEN.values()), wanted)
    spec = spec_of("fp8", dtype="bfloat16")
    given = {n: torch.from_numpy(v) for n, v in operands(spec).items()}
    bytes_in = built(spec, backend="reference")(*given.values())
    assert bytes_in.dtype == torch.bfloat16
    for name in ("x_codes", "weight_codes"):
        given[name] = given[name].view(torch.float8_e4m3fn)
    assert torch.equal(built(spec, backend="reference")(*given.values()), bytes_in)


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_operands_are_bound_by_name() -> None:
    """`bind`, `build` and a call take the same names; what is bound is left out of calls; an
    unknown name and a wrong number of operands are named."""
    op = built(backend="reference")
    rest = [v for n, v in GIVEN.items() if n not in FIXED]
    wanted = op(*GIVEN.values())
    for found in (
        op.bind(FIXED)(*rest),
        built(backend="reference", tables=FIXED)(*rest),
        op(*rest, tables=FIXED),
        op.bind({"bias": GIVEN["bias"]}).bind(FIXED)(*rest),
    ):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match=r"takes x_codes, x_scales, residual, got 1 tensors"):
        op.bind(FIXED)(rest[0])
    with pytest.raises(InputError, match="no operand 'weight'"):
        op.bind({"weight": GIVEN["bias"]})
    with pytest.raises(InputError, match="operands by name"):
        op.bind([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("x_codes", np.zeros((37, 209), np.int8), "x_codes has shape"),
        ("x_codes", np.zeros((37, 208), np.uint8), "x_codes is uint8, the spec says int8"),
        ("weight_scales", np.zeros((72, 1), np.float16), "weight_scales is float16"),
        ("bias", np.zeros(72, np.float32), "bias is float32"),
        ("residual", [[1.0]], "residual is a list"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any, said: str) -> None:
    """Shape, dtype and kind of each operand."""
    with pytest.raises(InputError, match=said):
        built(backend="reference")(*{**GIVEN, name: value}.values())


def test_checked_calls_look_for_nan() -> None:
    """`check=True` names the operand and the place."""
    bad = {**GIVEN, "x_scales": GIVEN["x_scales"].copy()}
    bad["x_scales"][3, 0] = np.nan
    with pytest.raises(InputError, match=r"x_scales holds NaN or infinity, first at \[3, 0\]"):
        built(backend="reference")(*bad.values(), check=True)


def test_what_it_says_of_itself() -> None:
    """Backend, configuration, epilogue, work, predicted time, the whole file, for an absent GPU."""
    op = built(LARGE, gpu="h100", backend="gluon")
    said = op.explain()
    for words in ("4608 x 3072 x 12288, int8-token by int8-channel to bfloat16", "not here",
                  "epilogue   scales, bias", "0.348 TFLOP", "template=hopper"):  # fmt: skip
        assert words in said
    bytes_moved = 4608 * 3076 + 12288 * 3076 + 2 * 12288 + 2 * 4608 * 12288
    assert op.cost()["bytes"] == bytes_moved
    peak_us = LARGE.flop / 1978.9e6
    assert peak_us < op.cost()["predicted_us"] < 3 * peak_us
    assert "def matmul_tiles(" in op.source
    assert "int8-channel: value = (code * scale)" in op.show()
    with pytest.raises(UnsupportedError, match="built for h100, which is not here"):
        op(*(np.zeros(s, "float32" if t == "bfloat16" else t) for s, t in LARGE.operands.values()))


def test_fp8_is_slower_where_it_is_emulated() -> None:
    """An A100 multiplies e4m3 as float16: half the rate of its int8."""
    fp8 = replace(LARGE, x=layouts.activations("fp8"), weight=layouts.w8("channel", "fp8"))
    by = [built(s, gpu="a100").cost()["predicted_us"] for s in (LARGE, fp8)]
    assert by[1] > 1.5 * by[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight": layouts.w8("channel", "fp8")}, "e4m3 weights beside int8 x"),
        ({"x": layouts.activations("int8", 104)}, "scales of 104 columns"),
        ({"x": layouts.activations("int4")}, "codes of 4 bits"),
        ({"weight": layouts.a8_asymmetric()}, "zero points of weights"),
        ({"weight": layouts.nf4(16)}, "chains of scales"),
        ({"inner": 131088}, "do not fit int32"),
        ({"weight": packed(4, "fp8", 16)}, "groups of 16"),
        ({"inner": 256, "weight": packed(4, "fp8")}, "entries that int8 does not hold"),
        ({"inner": 256, "weight": layouts.gptq(4, 128)}, "chains of scales"),
        ({"inner": 256, "weight": layouts.compressed_tensors(4, 128)}, "bits in such an order"),
        (
            {"inner": 256, "weight": packed(4), "x": layouts.activations("int8", None, True)},
            "zero points beside groups",
        ),
    ],
)
def test_what_no_kernel_computes(fields: dict[str, Any], said: str) -> None:
    """An error when the operator is built, with a way out; the reference computes it."""
    spec = replace(spec_of(), **fields)
    with pytest.raises(UnsupportedError, match=said) as error:
        built(spec, gpu="h100")
    assert 'backend="reference"' in str(error.value)
    assert built(spec, backend="reference").backend == "reference"


def test_there_is_no_backward() -> None:
    """Asked for, it is refused."""
    with pytest.raises(ConfigError, match="matmul has no backward kernels"):
        kdsl.build(SPEC, backend="reference", backward={"keys": {}})


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_the_code_of_the_page_runs() -> None:
    """docs/matmul.md as a reader would run it: results are near the products in float64; four bits
    uniform over 128 Gaussian weights are off by a tenth."""
    page = (Path(__file__).parents[3] / "docs" / "matmul.md").read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    with np.errstate(over="ignore"):
        wanted = activated("gelu_tanh", names["x"].astype(np.float64) @ names["weight"].T)
    error = np.linalg.norm(names["y"] - wanted) / np.linalg.norm(wanted)
    assert error < 0.02
    plain = names["x"][:2].astype(np.float64) @ names["weight"].T
    assert np.linalg.norm(names["y16"] - plain) < 0.2 * np.linalg.norm(plain)
