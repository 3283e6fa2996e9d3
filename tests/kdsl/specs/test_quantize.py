"""The quantize spec: round trips, the two hashes, and validation where the spec is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from kdsl import layouts, specs
from kdsl.errors import InputError, SpecError
from kdsl.layouts import Outline, codes, groups, rotations
from kdsl.layouts import format as forms
from kdsl.specs import Quantize
from tests.quantizing import quantizes

NAMES: dict[str, Any] = {
    "Quantize": Quantize,
    **{m.__name__: m for m in (layouts.Format, layouts.Level, layouts.Field, Outline)},
    **{m.__name__: m for m in (layouts.Buffer, layouts.Part, groups.Block)},
    **{m.__name__: m for m in (codes.Int, codes.Float, codes.Lut, codes.TwinLog)},
}
FORMAT = layouts.activations()
SPEC = Quantize(
    rows=64, columns=256, format=FORMAT, recipe=Outline((("signs", 0), ("hadamard", 64)))
)


@given(quantizes(specs.DTYPES))
def test_json_and_repr_read_back_equal(spec: Quantize) -> None:
    """Both forms give the same spec, with the same hashes."""
    held = specs.canonical(spec.to_json())
    again = specs.from_json(spec.to_json())
    assert again == spec
    assert specs.canonical(again.to_json()) == held
    assert (again.fingerprint, again.program) == (spec.fingerprint, spec.program)
    assert eval(repr(spec), dict(NAMES)) == spec


def test_the_program_has_no_sizes_and_no_names() -> None:
    """Rows, columns, eps and the format's name leave the program alone; all else makes another."""
    other = layouts.Format("mine", FORMAT.level, FORMAT.buffers)
    for same in (
        replace(SPEC, rows=65),
        replace(SPEC, columns=512),
        replace(SPEC, eps=1e-5),
        replace(SPEC, format=other),
    ):
        assert same.program == SPEC.program
        assert same.fingerprint != SPEC.fingerprint
    different = {
        SPEC.program,
        *(
            replace(SPEC, **change).program
            for change in (
                {"dtype": "float16"},
                {"format": layouts.activations("fp8")},
                {"format": layouts.activations("int8", 64)},
                {"recipe": Outline((("signs", 0), ("hadamard", 128)))},
                {"norm": "rms"},
                {"norm": "rms", "modulate": True},
                {"activation": "silu"},
            )
        ),
    }
    assert len(different) == 8


def test_a_recipe_counts_by_its_outline() -> None:
    """Values stay out of the spec, and come back by name."""
    x = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float32)
    recipe = rotations.candidates(x, 64)["centred, permuted"]
    spec = Quantize(rows=32, columns=256, format=FORMAT, recipe=recipe)  # type: ignore[arg-type]
    assert spec.recipe == Outline((("mean", 0), ("channels", 0), ("signs", 0), ("hadamard", 64)))
    assert spec.shapes == {"mean_0": (256,), "channels_1": (256,), "signs_2": (256,)}
    again = spec.recipe.recipe(layouts.tables(recipe), 256)
    np.testing.assert_array_equal(again.forward(x), recipe.forward(x))
    assert "standard" not in repr(spec)
    turned = rotations.two_rotations(x, 32, steps=2)
    assert Outline.of(turned).shapes(256) == {
        "rotate_0": (32, 32), "channels_1": (256,), "rotate_2": (32, 32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rows": 0}, "rows=0"),
        ({"columns": True}, "columns=True"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"format": layouts.int8()}, "format="),
        ({"format": layouts.activations("int8", 96)}, "groups of 96 columns do not divide 256"),
        ({"columns": 255, "format": layouts.activations("int4"), "recipe": Outline()}, "no whole"),
        ({"recipe": Outline((("hadamard", 96),))}, "blocks of 96 do not divide 256"),
        ({"recipe": "hadamard"}, "recipe="),
        ({"norm": "batch"}, "norm='batch'"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"norm": "rms", "activation": "silu"}, "both a norm and an activation"),
        ({"modulate": True}, "modulate=True"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"eps": "small"}, "eps='small'"),
        ({"format": layouts.gptq(4, 64, act_order=True)}, "not fitted from numbers alone"),
    ],
)
def test_what_cannot_be_computed_is_refused_where_it_is_written(
    change: dict[str, Any], what: str
) -> None:
    """Each fault is named, with what would work."""
    with pytest.raises(SpecError, match=what.replace("(", r"\(")) as error:
        replace(SPEC, **change)
    assert error.value.hint


@pytest.mark.parametrize(
    "steps",
    [(("turn", 0),), (("hadamard", 0),), (("signs", 8),), (("hadamard", 92),), (("mean",),)],
)
def test_outlines_are_checked(steps: Any) -> None:
    """Unknown kinds, rotations without a block, blocks of what has none, orders that no
    construction reaches."""
    with pytest.raises(SpecError):
        Outline(steps)


def test_malformed_json_is_refused() -> None:
    """A missing field, an unknown one, a value of the wrong kind."""
    held = SPEC.to_json()
    for change in ({"norm": 3}, {"eps": "x"}, {"recipe": [["hadamard"]]}, {"format": {}}):
        with pytest.raises(SpecError):
            specs.from_json({**held, **change})
    with pytest.raises(SpecError, match="unknown field 'head'"):
        specs.from_json({**held, "head": 1})
    del held["norm"]
    with pytest.raises(SpecError, match="no field 'norm'"):
        specs.from_json(held)


def test_values_of_a_recipe_are_checked() -> None:
    """Missing ones, other shapes, NaN, signs that are none, an order that names a channel twice, a
    matrix that turns nothing."""
    outline = Outline((("signs", 0), ("channels", 0), ("rotate", 2)))
    good = {"signs_0": np.ones(4), "channels_1": np.arange(4), "rotate_2": np.eye(2)}
    assert len(outline.recipe(good, 4).steps) == 3
    for name, bad in (
        ("signs_0", np.ones(5)),
        ("signs_0", np.array([1, 1, np.nan, 1])),
        ("signs_0", np.array([1, 1, 0.5, 1])),
        ("channels_1", np.zeros(4, np.int64)),
        ("rotate_2", np.ones((2, 2))),
    ):
        with pytest.raises(InputError):
            outline.recipe({**good, name: bad}, 4)
    with pytest.raises(InputError, match="'channels_1' has no values"):
        outline.recipe({"signs_0": np.ones(4)}, 4)


def test_activations_are_formats_that_are_there_already() -> None:
    """One format has one description, whatever it is asked for by."""
    assert layouts.activations() == layouts.w8("token")
    assert isinstance(layouts.activations("fp8", 128), forms.Format)
    for wrong in (("int3", None, False), ("fp8", None, True)):
        with pytest.raises(SpecError):
            layouts.activations(*wrong)
