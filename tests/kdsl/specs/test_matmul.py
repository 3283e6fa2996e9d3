"""The matmul spec: round trips, the two hashes, operands, and validation where it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from kdsl import layouts, specs
from kdsl.errors import SpecError
from kdsl.specs import Matmul
from tests.kdsl.specs.test_quantize import NAMES
from tests.matrices import matmuls, spec_of

SPEC = spec_of(rows=64, inner=256, columns=128, dtype="bfloat16")


@given(matmuls(specs.DTYPES))
def test_json_and_repr_read_back_equal(spec: Matmul) -> None:
    """Both forms give the same spec, with the same hashes."""
    held = specs.canonical(spec.to_json())
    again = specs.from_json(spec.to_json())
    assert again == spec
    assert specs.canonical(again.to_json()) == held
    assert (again.fingerprint, again.program) == (spec.fingerprint, spec.program)
    assert eval(repr(spec), {**NAMES, "Matmul": Matmul}) == spec


def test_the_program_has_no_sizes_and_no_names() -> None:
    """Sizes and the formats' names leave the program alone; all else makes another."""
    weight = SPEC.weight
    other = layouts.Format("mine", weight.level, weight.buffers)
    for change in ({"rows": 65}, {"inner": 512}, {"columns": 8}, {"weight": other}):
        same = replace(SPEC, **change)  # type: ignore[arg-type]
        assert same.program == SPEC.program
        assert same.fingerprint != SPEC.fingerprint
    changes: tuple[dict[str, Any], ...] = (
        {"dtype": "float16"},
        {"bias": True},
        {"residual": True},
        {"activation": "gelu_tanh"},
        {"activation": "gelu_erf"},
        {"x": layouts.activations("int8", None, True)},
        {"weight": layouts.w8("channel", "fp8")},
    )
    assert len({SPEC.program, *(replace(SPEC, **c).program for c in changes)}) == 1 + len(changes)


def test_operands_are_named_in_order() -> None:
    """The buffers of both formats, then bias and residual, with shapes and dtypes."""
    spec = replace(SPEC, x=layouts.a8_asymmetric(), bias=True, residual=True)
    assert list(spec.operands.items()) == [
        ("x_codes", ((64, 256), "int8")),
        ("x_scales", ((64, 1), "float32")),
        ("x_zeros", ((64, 1), "int32")),
        ("weight_codes", ((128, 256), "int8")),
        ("weight_scales", ((128, 1), "float32")),
        ("bias", ((128,), "bfloat16")),
        ("residual", ((64, 128), "bfloat16")),
    ]
    assert spec.flop == 2 * 64 * 256 * 128


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 0}, "rows=0"),
        ({"inner": 2.5}, "inner=2.5"),
        ({"columns": 2**31}, "columns: 2147483648 tokens"),
        ({"x": "int8"}, "x='int8'"),
        ({"weight": layouts.int8()}, "weight=Layout"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"bias": 1}, "bias=1"),
        ({"residual": "yes"}, "residual='yes'"),
        ({"inner": 250, "x": layouts.activations("int8", 128)}, "groups of 128"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(change: dict[str, Any], said: str) -> None:
    """Each field's error names it."""
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        replace(SPEC, **change)


def test_activations_have_one_meaning_of_gelu() -> None:
    """The hint lists both forms: a bare "gelu" would be either."""
    with pytest.raises(SpecError, match="'gelu_tanh' or 'gelu_erf' or 'silu'"):
        replace(SPEC, activation="gelu")


def test_weights_of_eight_bits() -> None:
    """int8 as before, and e4m3 as bytes; another code is refused."""
    assert layouts.w8().name == "int8-channel"
    fp8 = layouts.w8("channel", "fp8")
    assert (fp8.name, fp8.buffers[0].word) == ("fp8-channel", "uint8")
    with pytest.raises(SpecError, match="code='int4'"):
        layouts.w8("channel", "int4")
