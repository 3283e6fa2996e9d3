"""`build` and what operators say of themselves on a machine without the GPU they are for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdsl
from kdsl import Attention, Grid, Permute, layouts, masks, orders, targets
from kdsl.blocks import from_maps
from kdsl.errors import (
    ConfigError,
    ConfigNotFound,
    InputError,
    KdslError,
    SpecError,
    StoreError,
    UnsupportedError,
)
from kdsl.runtime import arrays, builder
from kdsl.runtime.bound import KEPT_BINDINGS

GRID = Grid(height=6, width=10)
SPEC = Attention(
    tokens=GRID,
    heads=2,
    head_dim=64,
    dtype="float32",
    mask=masks.window(GRID, (3, 3)),
    order=orders.cubes(GRID, (2, 2)),
    block=(16, 16),
)
MOVE = Permute(tokens=GRID, heads=2, head_dim=64, dtype="float32", order=orders.axes(GRID, "WH"))
MAPPED = Attention(
    tokens=64, heads=2, head_dim=64, dtype="float32", block=(16, 16),
    mask=masks.blocks("plan", block=(16, 16)),
)  # fmt: skip
KEPT = np.eye(4, dtype=bool)[None].repeat(2, 0)
BOTH = pytest.mark.parametrize("spec", [SPEC, MOVE], ids=["attention", "permute"])


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU, an empty database, and the word about the missing GPU said already."""
    monkeypatch.setattr(builder, "device_target", lambda: None)
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "none.db"))
    monkeypatch.setattr(arrays, "_said", True)


def inputs(spec: Any, batch: int = 1) -> tuple[np.ndarray, ...]:
    """Gaussian arrays of a spec."""
    tokens = spec.grid.tokens if isinstance(spec, Permute) else spec.query_grid.tokens
    count = 1 if isinstance(spec, Permute) else 3
    rng = np.random.default_rng(0)
    shape = (count, batch, spec.heads, tokens, spec.head_dim)
    return tuple(rng.standard_normal(shape, dtype=np.float32))


@BOTH
def test_without_a_gpu_the_reference_runs(spec: Any) -> None:
    """Results are those of the reference, in the caller's kind and dtype."""
    op = kdsl.build(spec)
    assert (op.backend, op.target, dict(op.config), op.choice) == ("reference", None, {}, None)
    given = inputs(spec)
    out = op(*given)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, op.reference(*given), atol=1e-6)
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(x) for x in given]
    assert torch.equal(op(*tensors), torch.from_numpy(out))


def test_codes_and_scales_keep_their_types() -> None:
    """A quantizing permute gives int8 codes and float32 scales, of arrays and of tensors."""
    torch = pytest.importorskip("torch")
    spec = Permute(
        tokens=GRID, heads=2, head_dim=64, dtype="float32", order=MOVE.order, layout=layouts.int8()
    )
    (x,) = inputs(spec)
    codes, scales = kdsl.build(spec)(torch.from_numpy(x))
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
    wanted = kdsl.build(spec)(x)
    assert [w.dtype for w in wanted] == [np.int8, np.float32]
    assert torch.equal(codes, torch.from_numpy(wanted[0]))


def test_the_missing_gpu_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call warns, the second and other operators do not."""
    monkeypatch.setattr(arrays, "_said", False)
    op, given = kdsl.build(SPEC), inputs(SPEC)
    with pytest.warns(UserWarning, match="no CUDA GPU here: kdsl runs the NumPy reference"):
        op(*given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op(*given)
        kdsl.build(MOVE)(*inputs(MOVE))


@BOTH
@pytest.mark.parametrize("gpu", [t.name for t in targets.known()])
def test_every_gpu_may_be_absent(spec: Any, gpu: str) -> None:
    """Source, cost, reasons and picture are there; the call says what works instead."""
    op = kdsl.build(spec, gpu=gpu)
    assert op.target is not None
    assert op.target.name == gpu
    assert not op.here
    assert len(op.source) > 1000
    assert op.cost()["predicted_us"] > 0
    assert f"({gpu}, not here)" in op.explain()
    assert "rule" in op.explain()
    assert op.show(head=1)
    with pytest.raises(UnsupportedError, match=f"built for {gpu}, which is not here") as caught:
        op(*inputs(spec))
    assert "op.source" in caught.value.hint


WRONG: dict[str, tuple[Callable[[Any], object], type[KdslError], str]] = {
    "no spec": (lambda s: kdsl.build("spec"), SpecError, "build takes a spec, got str"),  # type: ignore[arg-type]
    "gpu": (lambda s: kdsl.build(s, gpu="h1000"), UnsupportedError, "'h100'"),
    "gpu number": (lambda s: kdsl.build(s, gpu=3), UnsupportedError, "3 is no name of a GPU"),  # type: ignore[arg-type]
    "backend": (lambda s: kdsl.build(s, backend="opencl"), ConfigError, "'triton' or"),
    "mode": (lambda s: kdsl.build(s, mode="best"), ConfigError, "'off' or 'strict'"),
    "mode for a gpu": (lambda s: kdsl.build(s, gpu="a100", mode="best"), ConfigError, "'off' or"),
    "setting": (lambda s: kdsl.build(s, config={"foo": 1}), ConfigError, "unknown setting 'foo'"),
    "setting for a gpu": (
        lambda s: kdsl.build(s, gpu="a100", config={"foo": 1}),
        ConfigError,
        "unknown setting 'foo'",
    ),
    "config": (lambda s: kdsl.build(s, config=[1]), ConfigError, "settings by name"),  # type: ignore[arg-type]
    "tables": (lambda s: kdsl.build(s, tables=[1]), InputError, "tables is a list"),  # type: ignore[arg-type]
    "table": (lambda s: kdsl.build(s, tables={"x": 1}), InputError, "its tables: none"),
    "table of a call": (
        lambda s: kdsl.build(s)(*inputs(s), tables={"x": 1}),
        InputError,
        "the spec has no table 'x'",
    ),
    "strict": (lambda s: kdsl.build(s, gpu="a100", mode="strict"), ConfigNotFound, "autotune"),
}


@BOTH
@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests(case: str, spec: Any) -> None:
    """Both operations refuse the same things, where the reference would run too."""
    act, error, said = WRONG[case]
    with pytest.raises(error) as caught:
        act(spec)
    assert said in str(caught.value)


def test_values_that_no_setting_has() -> None:
    """The choices are in the error, on the way to a kernel and to the reference."""
    for spec, config in ((SPEC, {"num_warps": 3}), (MOVE, {"warps": 3})):
        for gpu in ("a100", None):
            with pytest.raises(ConfigError, match="one of"):
                kdsl.build(spec, gpu=gpu, config=config)
    assert kdsl.build(MOVE, config={"warps": 4})(*inputs(MOVE)).shape == (1, 2, 60, 64)


@BOTH
def test_backends(spec: Any) -> None:
    """The operation's own, the reference, and no other; a kernel needs a GPU to be for."""
    own, other = ("triton", "cuda") if spec is SPEC else ("cuda", "triton")
    assert kdsl.build(spec, gpu="h100", backend=own).backend == own
    op = kdsl.build(spec, gpu="h100", backend="reference")
    assert (op.backend, op.choice) == ("reference", None)
    assert op(*inputs(spec)).shape[0] == 1
    with pytest.raises(UnsupportedError, match=f"no '{other}' backend"):
        kdsl.build(spec, gpu="h100", backend=other)
    with pytest.raises(UnsupportedError, match="there is no GPU here") as caught:
        kdsl.build(spec, backend=own)
    assert 'gpu="a100"' in caught.value.hint


def test_a_given_configuration_is_taken() -> None:
    """What is given counts, the default fills in the rest, and the reason says so."""
    op = kdsl.build(MOVE, gpu="h100", config={"warps": 4})
    assert op.config["warps"] == 4
    assert set(op.config) == {"warps", "rows", "lanes", "vector", "lag"}
    assert "taken, as the caller gave it" in op.explain()
    assert "not asked" in kdsl.build(MOVE, gpu="h100", mode="off").explain()


def built(spec: Any) -> tuple[Any, str]:
    """An operator for an H100 and its words, which also need the gradients' configurations."""
    op = kdsl.build(spec, gpu="h100")
    return op, op.explain()


@pytest.mark.parametrize(
    "content", [b"no database at all" * 99, b"SQLite format 3\0" + b"\xff" * 999]
)
@BOTH
def test_a_corrupt_database_does_not_stop_who_serves(
    spec: Any, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default mode goes on with the rule and warns of file and remedy; strict raises."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(content)
    monkeypatch.setenv("KDSL_DB", str(broken))
    with pytest.warns(RuntimeWarning, match="move the file away") as said:
        op, text = built(spec)
    assert str(broken) in str(said[0].message)
    assert "database   left out" in text
    assert dict(op.config) == dict(kdsl.build(spec, gpu="h100", mode="off").config)
    for mode in ("strict", "nearest"):
        with pytest.raises(StoreError, match=r"broken\.db"):
            kdsl.build(spec, gpu="h100", mode=mode)


def test_a_folder_in_the_databases_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called one, with the path that would work."""
    monkeypatch.setenv("KDSL_DB", str(tmp_path))
    with pytest.raises(StoreError, match="is a folder") as caught:
        kdsl.build(SPEC, gpu="h100", mode="strict")
    assert caught.value.hint == f"KDSL_DB={tmp_path / 'tuning.db'}"


def test_tables_must_come_and_fit() -> None:
    """Missing, wrongly shaped, ragged and out of range: each is named before anything runs."""
    op, given = kdsl.build(MAPPED), inputs(MAPPED)
    for tables, said in (
        (None, "table 'plan' has no values"),
        ({"plan": KEPT[:, :3]}, "has shape (2, 4, 4), got (2, 3, 4)"),
        ({"plan": [[1], [1, 0]]}, "table 'plan' is no array"),
        ({"plan": KEPT.astype(np.uint8) * 2}, "holds 0..2"),
        ({"plan": KEPT.astype(float)}, "holds integers, got float64"),
    ):
        with pytest.raises(InputError) as caught:
            op(*given, tables=tables)
        assert said in str(caught.value)
        if tables is not None:
            with pytest.raises(InputError):
                kdsl.build(MAPPED, tables=tables)
            with pytest.raises(InputError):
                op.bind(tables)
    out = op(*given, tables={"plan": KEPT})
    np.testing.assert_array_equal(op.bind({"plan": KEPT})(*given), out)
    assert "op.bind" in op.explain()
    assert "density 0.2500" in op.bind({"plan": KEPT}).explain()


def test_rows_of_blocks_for_a_map() -> None:
    """Whole blocks are taken, also one set for all heads; partial ones and other sizes are not."""
    op, given = kdsl.build(MAPPED), inputs(MAPPED)
    wanted = op(*given, tables={"plan": KEPT})
    rows = from_maps(KEPT, None, (16, 16), 64, 64)
    np.testing.assert_array_equal(op(*given, tables={"plan": rows}), wanted)
    one = from_maps(KEPT[0], None, (16, 16), 64, 64)
    np.testing.assert_array_equal(op(*given, tables={"plan": one}), wanted)
    causal = Attention(tokens=64, heads=2, head_dim=64, mask=masks.causal(), block=(16, 16)).rows()
    with pytest.raises(InputError, match="4 blocks of the rows of 'plan' are partial") as caught:
        op(*given, tables={"plan": causal})
    assert "masks.blocks('plan') & mask" in caught.value.hint
    for other in (
        from_maps(KEPT[:, :2, :2], None, (32, 32), 64, 64),
        from_maps(KEPT[:, :, :3], None, (16, 16), 64, 48),
        from_maps(KEPT[:, :3], None, (16, 16), 48, 64),
    ):
        with pytest.raises(InputError, match="the rows of 'plan' are"):
            op(*given, tables={"plan": other})
    documents = Attention(
        tokens=64, heads=2, head_dim=64, dtype="float32", mask=masks.same(kdsl.table("doc", 64))
    )
    with pytest.raises(InputError, match="is no map of blocks"):
        kdsl.build(documents, tables={"doc": rows})


def test_an_order_that_comes_with_the_call() -> None:
    """Permute reads it, refuses other names and missing values, and with check a bad list."""
    spec = Permute(
        tokens=60, heads=2, head_dim=64, dtype="float32", order=orders.table(kdsl.table("at", 60))
    )
    op, (x,) = kdsl.build(spec), inputs(MOVE)
    at = np.random.default_rng(1).permutation(60)
    np.testing.assert_array_equal(op(x, tables={"at": at}), x[:, :, at])
    np.testing.assert_array_equal(op.bind({"at": at})(x), x[:, :, at])
    with pytest.raises(InputError, match="table 'at' has no values"):
        op(x)
    with pytest.raises(KdslError, match="token 5 stands at positions"):
        op(x, tables={"at": np.full(60, 5)}, check=True)
    with pytest.raises(InputError, match=r"head=2"):
        op.bind({"at": at}).show(head=2)


def test_what_an_operator_remembers_is_bounded() -> None:
    """Batch sizes and table values beyond the last few are forgotten, and read anew when needed."""
    ids = masks.same(kdsl.table("doc", (40, 8), low=0, high=3))
    spec = Attention(tokens=8, heads=1, head_dim=64, dtype="float32", mask=ids)
    op: Any = kdsl.build(spec, tables={"doc": np.zeros((40, 8), int)})
    for batch in range(1, 3 * KEPT_BINDINGS):
        op(*inputs(spec, batch))
    assert len(op.plain) <= KEPT_BINDINGS
    assert len(op.bound) <= KEPT_BINDINGS
    plain: Any = kdsl.build(SPEC)
    for batch in range(1, 4):
        plain(*inputs(SPEC, batch))
    assert len(plain.plain) == 1, "rows that do not speak of the batch are the same for all"


def test_permute_shows_where_tokens_go() -> None:
    """Stored positions stand on the grid; columns first here, so they count downwards."""
    grid = Grid(height=2, width=3, text=1, text_at="end")
    spec = Permute(tokens=grid, heads=1, head_dim=8, order=orders.axes(grid, "WH"))
    *_, first, second, text = kdsl.build(spec).show().splitlines()
    assert (first, second, text) == ("0 2 4", "1 3 5", "text at 6 to 6")
    wide = Grid(height=200, width=300)
    flat = Permute(tokens=wide, heads=1, head_dim=8, order=orders.identity(wide))
    lines = kdsl.build(flat).show(width=40, most=10).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "..."
    assert lines[1].endswith(" ...")


def test_tables_of_a_call_come_by_name() -> None:
    """An array in place of a mapping is named, not asked whether it is true."""
    spec = Attention(tokens=256, heads=1, head_dim=64, dtype="float32", mask=masks.blocks("plan"))
    q = np.zeros((1, 1, 256, 64), np.float32)
    with pytest.raises(InputError, match="tables is a ndarray, not values by name"):
        kdsl.build(spec, backend="reference")(q, q, q, tables=np.ones((1, 2, 2), np.uint8))  # type: ignore[arg-type]
