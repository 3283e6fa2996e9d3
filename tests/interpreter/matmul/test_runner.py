"""What the tuner checks candidates with: right kernels pass, each kind of wrong one is found."""

from __future__ import annotations

from typing import Any

import pytest

from kdsl import targets
from kdsl.kernels.matmul.runner import MatmulRunner
from kdsl.runtime import codecache
from kdsl.runtime.tunables import operations, tunable_for
from kdsl.specs import Matmul
from tests.matrices import packed, spec_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
RIGHT = {"bias": True, "residual": True, "activation": "gelu_tanh", "rows": 101}


def ran(spec: Matmul, family: str = "random") -> MatmulRunner:
    """A runner whose kernel ran on poisoned outputs."""
    tunable = tunable_for(spec)
    made: Any = tunable.make_runner("cpu", codecache.load)
    made.prepare(family, 3)
    made.poison()
    made.run(tunable.default(targets.get("a100")))
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", MatmulRunner.families)
@pytest.mark.parametrize(("code", "asymmetric"), [("int8", False), ("int8", True), ("fp8", False)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_right_kernel_passes(family: str, code: str, asymmetric: bool, dtype: str) -> None:
    """Within the bound, and the error is not nothing."""
    check = ran(spec_of(code, asymmetric, dtype=dtype, **RIGHT), family).check()
    assert check.right, check
    assert check.error > 0


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_few_bits_are_checked(bits: int, code: str) -> None:
    """A right kernel passes; one whose group scales, codes or signs are a neighbour's does not."""
    plain: dict[str, Any] = {"inner": 256, "dtype": "float32", "weight": packed(bits, code)}
    for family in MatmulRunner.families:
        one = ran(spec_of(code, **plain), family)
        assert one.check().right
        assert one.check().error > 0
        for name in (n for n in one.operands if n.startswith("weight")):
            held = one.operands[name].clone()
            one.operands[name].copy_(held.roll(1, 1))
            assert not one.check().right, (family, name)
            one.operands[name].copy_(held)


def test_nothing_written_is_found() -> None:
    """Poisoned outputs that a kernel leaves alone are no results, for both families."""
    for family in MatmulRunner.families:
        one = ran(spec_of(**RIGHT), family)
        one.poison()
        assert not one.check().right


@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_one_number_off_is_found(code: str) -> None:
    """A float16 result two units in the last place off, anywhere."""
    one = ran(spec_of(code, **RIGHT), "small")
    assert one.check().right
    row = 7
    one.out[row, 11] *= 1 + 2.0**-9
    check = one.check()
    assert not check.right
    assert check.reason == "a number is off"


@pytest.mark.parametrize(
    "wrong",
    ["x_scales", "weight_scales", "bias", "residual", "x_zeros", "x_codes", "weight_codes"],
)
def test_another_operand_is_found(wrong: str) -> None:
    """A kernel that read one operand's row or column of a neighbour does not pass."""
    one = ran(spec_of("int8", True, **RIGHT), "small")
    assert one.check().right
    t = one.operands[wrong]
    t.copy_(t.roll(1, 0).clone())
    assert not one.check().right


def test_another_activation_is_found() -> None:
    """The two forms of GELU differ by more than float32 loses."""
    plain: dict[str, Any] = {**RIGHT, "dtype": "float32"}
    one = ran(spec_of(**plain))
    other = ran(spec_of(**{**plain, "activation": "gelu_erf"}))
    one.out = other.out
    assert not one.check().right


def test_the_tuner_finds_it() -> None:
    """One operation, sizes that are soft, and a default that is legal on every GPU, also where a
    row is no multiple of 16 bytes."""
    for columns, inner in ((72, 208), (75, 100)):
        spec = spec_of(columns=columns, inner=inner)
        assert operations(spec) == ("matmul",)
        tunable = tunable_for(spec)
        assert tunable.sizes() == {"rows": 37, "inner": inner, "columns": columns}
        for target in targets.known():
            assert tunable.legal(tunable.default(target), target) is None
