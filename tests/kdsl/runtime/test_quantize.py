"""The quantize operator without a GPU: the reference, what it says of itself, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kdsl
from kdsl import layouts
from kdsl.errors import ConfigError, InputError, SpecError, UnsupportedError
from kdsl.layouts import Outline, rotations
from kdsl.reference.quantize import quantize
from kdsl.runtime.quantize import QuantizeOperator
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import Quantize

X = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
SIGNED = Outline((("signs", 0), ("hadamard", 64)))
SPEC = Quantize(rows=8, columns=256, format=layouts.activations(), recipe=SIGNED, dtype="float32")
SIGNS = {"signs_0": np.where(np.arange(256) % 3 == 0, -1.0, 1.0).astype(np.float32)}
BARE = replace(SPEC, recipe=Outline())


def built(spec: Quantize = SPEC, **options: Any) -> QuantizeOperator:
    """An operator of a spec."""
    made = kdsl.build(spec, **options)
    assert isinstance(made, QuantizeOperator)
    return made


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_the_reference_takes_arrays_and_tensors() -> None:
    """Codes and scales in the order of the format, of the kind that came in, in its dtypes."""
    torch: Any = pytest.importorskip("torch")
    op = built(backend="reference", tables=SIGNS)
    wanted = quantize(SPEC, X, tables=SIGNS)
    for found in (op(X), op.reference(X), built(backend="reference")(X, tables=SIGNS)):
        for mine, theirs in zip(found, wanted.values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    codes, scales = op(torch.from_numpy(X)[None])
    assert (codes.dtype, tuple(codes.shape)) == (torch.int8, (1, 8, 256))
    assert (scales.dtype, tuple(scales.shape)) == (torch.float32, (1, 8, 1))
    np.testing.assert_array_equal(codes[0].numpy(), wanted["codes"])
    half = built(replace(BARE, dtype="bfloat16"), backend="reference")
    assert half(torch.from_numpy(X).bfloat16())[0].dtype == torch.int8


def test_what_it_says_of_itself() -> None:
    """Backend, configuration, steps, bytes, predicted time, the whole file, for an absent GPU."""
    op = built(gpu="h100")
    said = op.explain()
    for words in ("8 rows x 256 columns, float32 to int8-token", "signs, hadamard 64", "not here"):
        assert words in said
    assert op.cost()["bytes"] == 8 * 256 * 5 + 8 * 4 + 4 * 256
    assert op.cost()["flop"] == 2 * 8 * 256 * 64
    assert op.cost()["predicted_us"] > 0
    assert "def quantize_tiles(" in op.source
    assert "int8-token: value = (code * scale)" in op.show()
    with pytest.raises(UnsupportedError, match="built for h100, which is not here"):
        op(X)


def test_the_prediction_knows_bytes_from_work() -> None:
    """A wide matrix takes as long as its bytes, float32 operands as long as their products."""
    spec = Quantize(
        rows=32768, columns=3072, format=layouts.activations(), recipe=Outline((("hadamard", 128),))
    )
    bytes_us = built(spec, gpu="h100").cost()["bytes"] / (3352e9 * 0.85) * 1e6
    assert bytes_us < built(spec, gpu="h100").cost()["predicted_us"] < 1.5 * bytes_us
    single = replace(spec, dtype="float32")
    assert built(single, gpu="h100").cost()["predicted_us"] > 1.5 * bytes_us


def test_a_recipe_is_bound_by_name() -> None:
    """`layouts.tables` gives what `bind`, `build` and a call take; what is missing or unknown is
    named, with the way to give it."""
    recipe = rotations.candidates(X, 64)["centred, permuted"]
    spec = replace(SPEC, recipe=Outline.of(recipe))
    op = built(spec, backend="reference").bind(layouts.tables(recipe))
    np.testing.assert_allclose(op.transformed(X), recipe.forward(X.astype(np.float64)), rtol=1e-12)
    with pytest.raises(InputError, match="'signs_0' has no values") as error:
        built(backend="reference")(X)
    assert "layouts.tables(recipe)" in str(error.value)
    with pytest.raises(InputError, match="no values 'signs'"):
        built(backend="reference", tables={"signs": SIGNS["signs_0"]})
    with pytest.raises(InputError, match="not values by name"):
        built(backend="reference", tables=recipe)
    with pytest.raises(InputError, match=r"signs are \+1 and -1"):
        built(backend="reference", tables={"signs_0": np.full(256, 2.0)})


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ((), "quantize takes x, got 0 tensors"),
        ((X, X), "quantize takes x, got 2 tensors"),
        ((X[:, :255],), r"x has shape \(8, 255\)"),
        ((X[:7],), r"x has shape \(7, 256\)"),
        ((X[None, None],), "x has shape"),
        ((X.astype(np.float64),), "x is float64, the spec says float32"),
        (([1, 2],), "x is a list"),
    ],
)
def test_other_tensors_are_refused(tensors: Any, what: str) -> None:
    """Before anything is computed, with what would fit."""
    with pytest.raises(InputError, match=what):
        built(BARE, backend="reference")(*tensors)


@pytest.mark.filterwarnings("ignore:no CUDA GPU here")
def test_modulation_is_checked() -> None:
    """Three tensors, of widths and batches that fit; NaN is found where a check is asked for."""
    spec = replace(BARE, norm="rms", modulate=True)
    op = built(spec, backend="reference")
    assert len(op(X, X[0], X[1])) == 2
    with pytest.raises(InputError, match="takes x, scale, shift, got 1 tensors"):
        op(X)
    with pytest.raises(InputError, match="scale has shape"):
        op(X, X[0, :9], X[1])
    with pytest.raises(InputError, match="shift has shape"):
        op(X[None], X[:1], X[:2])
    bad = X.copy()
    bad[3, 5] = np.nan
    with pytest.raises(InputError, match=r"x holds NaN or infinity, first at \[3, 5\]"):
        op(bad, X[0], X[1], check=True)


def test_what_no_kernel_writes_is_left_to_the_reference() -> None:
    """Formats, blocks, groups and recipes that only NumPy computes: said when the operator is
    built, with the way out."""
    long = Outline((("hadamard", 64), ("hadamard", 64), ("hadamard", 64)))
    cases = {
        "writes no codes": replace(SPEC, format=layouts.nf4(64, nested=False)),
        "writes no bits out of order": replace(SPEC, format=layouts.q4_0()),
        "groups Block": replace(SPEC, format=layouts.block_fp8(8, 128)),
        "two stages": replace(SPEC, recipe=long),
        "no blocks of 256 columns of float32": replace(SPEC, recipe=Outline((("hadamard", 256),))),
    }
    cases["groups of 20 columns do not go with blocks of 60"] = replace(
        SPEC,
        columns=120,
        format=layouts.activations("int8", 20),
        recipe=Outline((("hadamard", 60),)),
    )
    cases["no blocks of 512 columns"] = replace(
        SPEC, columns=512, recipe=Outline((("hadamard", 512),))
    )
    for what, spec in cases.items():
        with pytest.raises(UnsupportedError, match=what) as error:
            built(spec, gpu="h100")
        assert 'backend="reference"' in str(error.value)
        assert built(spec, backend="reference").backend == "reference"


def test_requests_that_cannot_be_met() -> None:
    """Backends that are not there, settings that are none, gradients that nobody computes."""
    with pytest.raises(UnsupportedError, match="no 'cuda' backend"):
        built(gpu="h100", backend="cuda")
    with pytest.raises(UnsupportedError, match="no 'gluon' backend"):
        built(gpu="h100", backend="gluon")
    with pytest.raises(ConfigError, match="block_m"):
        built(gpu="h100", config={"block_m": 7})
    with pytest.raises(ConfigError, match="unknown setting"):
        built(backend="reference", config={"tile": 7})
    with pytest.raises(ConfigError, match="no backward kernels"):
        built(gpu="h100", backward={"keys": {}})
    with pytest.raises(SpecError, match="build takes a spec"):
        kdsl.build(layouts.activations())  # type: ignore[arg-type]
    assert dict(built(gpu="h100", config={"workers": 1}).config)["workers"] == 1


def test_the_database_keys_on_the_program() -> None:
    """Widths are soft parts of the key: what was measured at one serves as a guess at another."""
    from kdsl.kernels.quantize.tunable import QuantizeTunable
    from kdsl.runtime.keying import workload

    one, other = (workload(QuantizeTunable(replace(SPEC, columns=n))) for n in (256, 512))
    assert one.program == other.program
    assert one.dims != other.dims
    assert tunable_for(SPEC).template_hash
