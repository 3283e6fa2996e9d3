"""Bad input, by name: each case is a clear error that says what would work, or a defined result.

One test a case, from the language to the databases; the details stand in the tests of the parts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdsl
from kdsl import Attention, Grid, masks, orders, workloads
from kdsl.autotune.cli import main as autotune
from kdsl.autotune.store import Store
from kdsl.errors import InputError, KdslError, SpecError, StoreError, UnsupportedError
from kdsl.reference.attention import attention as truth
from kdsl.runtime import arrays, builder, codecache
from kdsl.specs import HEAD_DIMS

VIDEO, OTHER = Grid(frames=3, height=4, width=5), Grid(frames=3, height=5, width=4)
SHAPE = (1, 2, 60, 64)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU, a cache and a database of the test's own."""
    monkeypatch.setattr(builder, "device_target", lambda: None)
    monkeypatch.setattr(arrays, "_said", True)
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "tuning.sqlite"))


def spec(**fields: Any) -> Attention:
    """A small attention over `VIDEO`."""
    plain = {"tokens": VIDEO, "heads": 2, "head_dim": 64, "dtype": "float32", "block": (16, 16)}
    return Attention(**{**plain, **fields})


def tensors(seed: int = 0) -> list[torch.Tensor]:
    """Gaussian q, k, v."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(3)]


WRITTEN: dict[str, tuple[Callable[[], object], str, str]] = {
    "a mask over the wrong grid": (
        lambda: spec(mask=masks.window(OTHER, (1, 3, 3))),
        "the mask speaks of Grid(frames=3, height=5, width=4)",
        "a mask over Grid(frames=3, height=4, width=5)",
    ),
    "a head_dim that no kernel has": (
        lambda: spec(head_dim=72),
        "no attention kernel has head_dim=72",
        f"one of {', '.join(map(str, HEAD_DIMS))}",
    ),
    "an order that is no bijection: the first duplicate": (
        lambda: orders.table([4, 2, 0, 2, 0]),
        "token 2 stands at positions 1 and 3",
        "every token from 0 to 4 once",
    ),
    "an order with a token from outside": (
        lambda: orders.table([0, 5, 1]),
        "position 1 holds token 5",
        "every token from 0 to 2 once",
    ),
    "text of no length": (
        lambda: Grid(frames=3, height=4, width=5, text=-1),
        "text=-1 is not a token count",
        "a Python int of at least 0",
    ),
    "text that the spec's sequence has no room for": (
        lambda: spec(tokens=60, mask=masks.text(Grid(frames=3, height=4, width=5, text=100))),
        "text=100",
        "a mask over Grid(length=60)",
    ),
    "a prefix of negative length": (lambda: masks.prefix(-1), "prefix(-1)", "of at least 0"),
    "a sink of negative length": (lambda: masks.sink(-1), "sink(-1)", "of at least 0"),
    "a band of negative width": (
        lambda: masks.frame_band(VIDEO, -1),
        "frame_band(-1)",
        "of at least 0",
    ),
    "a power": (
        lambda: masks.predicate(lambda q, k: (q - k) ** 2 < 9),
        "no powers of indices",
        "`x * x`",
    ),
    "an array indexed with a symbol": (
        lambda: masks.predicate(lambda q, k: [1, 2, 3][q] == k),
        "does what expressions cannot",
        "kdsl.table(values)[q]",
    ),
    "a ragged list as a table": (
        lambda: kdsl.table([[1], [1, 2]]),
        "lists of different lengths",
        "as many entries in every row",
    ),
    "an array for a mask": (
        lambda: spec(mask=np.ones((4, 4), bool)),
        "is not a mask",
        'masks.blocks("plan")',
    ),
    "a function for a mask": (
        lambda: spec(mask=lambda q, k: q >= k),
        "is not a mask",
        "masks.predicate(function)",
    ),
    "a table of fractions": (
        lambda: kdsl.table([0.5, 1.5]),
        "a table holds integers, got float64",
        "astype(numpy.int32)",
    ),
    "an order of two axes": (
        lambda: orders.table([[0, 1], [1, 0]]),
        "along one axis, got shape (2, 2)",
        "orders.per_head",
    ),
    "a scale that is no number": (lambda: spec(scale="a"), "scale='a'", "a positive number"),
    "a count that is text": (lambda: spec(heads="2"), "heads='2'", "a Python int"),
    "a group that is text": (
        lambda: kdsl.layouts.int8("block", block="a"),  # type: ignore[arg-type]
        "scale group ('a', None)",
        "sizes of at least 1",
    ),
    "more tokens than 32 bits count": (
        lambda: spec(tokens=2**31),
        "2147483648 tokens",
        "at most 1073741824",
    ),
    "JSON of another thing": (
        lambda: Attention.from_json({}),
        "malformed attention spec: no field 'block'",
        "heads",
    ),
    "JSON with more than there is": (
        lambda: Attention.from_json({**spec().to_json(), "foo": 1}),
        "unknown field 'foo'",
        "heads",
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_when_a_spec_is_written(case: str) -> None:
    """What describes nothing computable is refused at once, with what would work."""
    act, what, hint = WRITTEN[case]
    with pytest.raises(SpecError) as caught:
        act()
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_numpy_integers_are_counts() -> None:
    """Sizes that NumPy computed are as good as Python's, and give the very same spec."""
    n = np.int64
    grid = Grid(frames=n(3), height=n(4), width=n(5))
    mask = masks.window(grid, (n(1), n(3), n(3))) | masks.sink(n(2)) | masks.frame_band(grid, n(1))
    made = spec(tokens=grid, heads=n(2), head_dim=n(64), block=(n(16), n(16)), mask=mask)
    plain = masks.window(VIDEO, (1, 3, 3)) | masks.sink(2) | masks.frame_band(VIDEO, 1)
    assert made == spec(mask=plain)
    assert made.fingerprint == spec(mask=plain).fingerprint
    assert spec(tokens=n(60)).query_grid == Grid(60)
    assert orders.cubes(VIDEO, (n(1), n(2), n(2))) == orders.cubes(VIDEO, (1, 2, 2))


def test_prefix_and_sink_longer_than_the_sequence() -> None:
    """They hold all tokens there are: the result is dense attention."""
    q, k, v = tensors()
    dense = kdsl.build(spec())(q, k, v)
    for mask in (masks.prefix(128), masks.sink(128)):
        assert torch.equal(kdsl.build(spec(mask=mask))(q, k, v), dense)


def test_empty_rows() -> None:
    """Queries that see nothing give 0 and minus infinity."""
    op = kdsl.build(spec(mask=masks.causal(-7), return_lse=True))
    out, lse = op(*tensors())
    assert bool((out[:, :, :7] == 0).all())
    assert bool(lse[:, :, :7].isneginf().all())
    assert bool(lse[:, :, 7:].isfinite().all())


@pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 60), (60, 0)])
def test_sequences_of_no_tokens(queries: int, keys: int) -> None:
    """No queries: an empty result. No keys: zeros. Also for absent GPUs nothing breaks."""
    empty = spec(tokens=None, queries=queries, keys=keys, return_lse=True)
    q, k = torch.zeros(1, 2, queries, 64), torch.zeros(1, 2, keys, 64)
    out, lse = kdsl.build(empty)(q, k, k)
    assert out.shape == q.shape
    assert bool((out == 0).all())
    assert bool(lse.isneginf().all())
    assert "attention" in kdsl.build(empty, gpu="h100").explain()


def test_wrong_dtype_and_device() -> None:
    """The tensor, what it is and what it should be are named."""
    op, (q, k, v) = kdsl.build(spec()), tensors()
    with pytest.raises(InputError, match=r"k is float64, the spec says float32"):
        op(q, k.double(), v)
    with pytest.raises(InputError, match="v is on the meta device"):
        op(q, k, v.to("meta"))
    with pytest.raises(InputError, match="k is a NumPy array, q a torch tensor"):
        op(q, k.numpy(), v)


def test_strides_of_any_kind() -> None:
    """Non-contiguous and expanded tensors give what their contiguous copies give."""
    op, (q, k, v) = kdsl.build(spec()), tensors()
    odd = torch.zeros(1, 2, 60, 67)[..., 2:66].copy_(q)
    swapped = k.transpose(1, 2).contiguous().transpose(1, 2)
    spread = v[:, :1].expand(SHAPE)
    assert not any(x.is_contiguous() for x in (odd, swapped, spread))
    assert torch.equal(op(odd, swapped, spread), op(q, k, spread.contiguous()))


def test_unknown_gpu_and_workload(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest known name is suggested, from Python and from the command line."""
    with pytest.raises(UnsupportedError, match="'a100'"):
        kdsl.build(spec(), gpu="a1000")
    with pytest.raises(KdslError, match=r"wan2\.1-1\.3b-480p"):
        workloads.get("wan2.1-1.3b-480")
    assert autotune(["--gpu", "a1000"]) == 2
    assert autotune(["--gpu", "a100", "--workload", "wan2.1-1.3b-480"]) == 2
    said = capsys.readouterr().err
    assert "'a100'" in said
    assert "wan2.1-1.3b-480p" in said


def test_a_database_that_cannot_be_written(tmp_path: Path) -> None:
    """Its place and the variable that moves it are in the error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught, Store(tmp_path / "file" / "tuning.sqlite"):
        pass
    assert "tuning.sqlite" in str(caught.value)
    assert "KDSL_DB=" in caught.value.hint


def test_a_corrupt_database(tmp_path: Path) -> None:
    """The tuner stops with the remedy; who only builds is warned and goes on."""
    path = tmp_path / "tuning.sqlite"
    path.write_bytes(b"no database" * 999)
    with pytest.raises(StoreError, match="move the file away"), Store(path):
        pass
    with pytest.warns(RuntimeWarning, match="move the file away"):
        op = kdsl.build(spec(), gpu="a100")
    assert op.choice is not None
    assert op.choice.rung == "rule"
    assert path.read_bytes() == b"no database" * 999, "nothing is lost"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Generated code that cannot be written is an error with a way out, and no half file stays."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        codecache.store("x = 1\n")
    assert "free some space" in caught.value.hint
    assert not list((tmp_path / "cache" / "gen").iterdir())


def test_a_tampered_file_in_the_code_cache() -> None:
    """What was changed is never executed."""
    path = codecache.store("x = 1\n")
    path.write_text("raise SystemExit\n")
    with pytest.raises(StoreError, match="was not executed"):
        codecache.load("x = 1\n")


def test_nan_and_infinity() -> None:
    """They travel as in the reference; ``check=True`` names the first; nothing hides one."""
    op, (q, k, v) = kdsl.build(spec(mask=masks.causal())), tensors()
    for value in (float("nan"), float("inf")):
        bad = v.clone()
        bad[0, 1, 30, 3] = value
        out = op(q, k, bad)
        wanted, _ = truth(spec(mask=masks.causal()), q, k, bad)
        np.testing.assert_allclose(out.numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert not bool(out.isfinite().all())
        with pytest.raises(InputError, match=r"v holds NaN or infinity, first at \[0, 1, 30, 3\]"):
            op(q, k, bad, check=True)
    assert torch.equal(op(q, k, v, check=True), op(q, k, v))
