"""Plans come back from their file as they were, and foreign files are refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsl.blocks import from_maps, unpack
from kdsl.errors import SpecError, StoreError
from kdsl.grid import Grid
from kdsl.plans import DTYPES, KINDS, Payload, Plan, load
from tests.strategies import grids

safetensors = pytest.importorskip("safetensors.numpy")

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=5),
              st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
NAMES = st.sampled_from(("full", "partial", "order", "scale.0", "a"))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan: arrays of every dtype that share named axes, empty ones too, and any header."""
    steps = tuple((10 * i, 10 * i + 9) for i in range(draw(st.integers(0, 2))))
    sizes = {"layers": draw(st.integers(0, 3)), "heads": 2, "rows": draw(st.integers(1, 4))}
    if steps:
        sizes["steps"] = len(steps)
    payload = {}
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    for name in draw(st.sets(NAMES, max_size=3)):
        axes = tuple(draw(st.permutations(sorted(sizes)))[: draw(st.integers(0, 3))])
        dtype = draw(st.sampled_from(DTYPES))
        values = rng.integers(0, 2, [sizes[a] for a in axes]).astype(dtype)
        payload[name] = Payload(axes, values)
    return Plan(
        kind=draw(st.sampled_from(KINDS)),
        model=draw(st.text(min_size=1, max_size=9)),
        payload=payload,
        grid=draw(st.one_of(st.none(), grids())),
        orders=tuple(draw(st.permutations(["FHW", "HWF", "cubes(3, 5, 4)"]))[:2]),
        thresholds=draw(st.dictionaries(NAMES, st.floats(-1, 1), max_size=2)),
        steps=steps,
        provenance=draw(st.dictionaries(st.text(max_size=4), JSON, max_size=3)),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plan=plans())
def test_round_trip(plan: Plan, tmp_path: Path) -> None:
    """A plan read from its file is equal: header, names, axes, dtypes and every value."""
    with pytest.MonkeyPatch.context() as patch:
        # Waiting for the disk each time would be most of the test.
        patch.setattr(os, "fsync", lambda _: None)
        plan.save(tmp_path / "plan.safetensors")
    back = load(tmp_path / "plan.safetensors", plan.kind)
    assert back == plan
    assert back.header == plan.header
    for name in plan.payload:
        np.testing.assert_array_equal(back[name], plan[name])
        assert back[name].dtype == plan[name].dtype
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


def example(**changes: Any) -> Plan:
    """A plan of per-head orders and packed block maps."""
    maps = np.random.default_rng(0).integers(0, 2, (2, 3, 5, 7)) == 1
    full, partial = from_maps(maps, None, (16, 16), 80, 112).pack()
    fields: dict[str, Any] = {
        "kind": "attention",
        "model": "wan2.1-1.3b",
        "payload": {
            "full": Payload(("layers", "heads", "rows", "bytes"), full),
            "partial": Payload(("layers", "heads", "rows", "bytes"), partial),
            "order": Payload(("steps", "layers", "heads"), np.zeros((2, 2, 3), np.uint8)),
        },
        "grid": Grid(frames=21, height=30, width=52),
        "orders": ("FHW", "HWF"),
        "thresholds": {"kept": 0.9},
        "steps": ((0, 9), (10, 49)),
        "provenance": {"seed": 7, "clips": 4},
        **changes,
    }
    return Plan(**fields)


def test_packed_maps_come_back_as_blocks(tmp_path: Path) -> None:
    """Bit maps of blocks stored in a plan unpack to the same rows."""
    example().save(tmp_path / "p")
    back = load(tmp_path / "p")
    rows = unpack(back["full"], back["partial"], (16, 16), 80, 112)
    maps = np.random.default_rng(0).integers(0, 2, (2, 3, 5, 7)) == 1
    np.testing.assert_array_equal(rows.kept(partial=False), maps)


def test_any_reader_can_open_it(tmp_path: Path) -> None:
    """The file is plain safetensors, its header JSON with names, not numbers, for orders."""
    example().save(tmp_path / "p")
    from safetensors import safe_open

    with safe_open(tmp_path / "p", framework="numpy") as file:
        header = json.loads(file.metadata()["kdsl"])
    assert header["orders"] == ["FHW", "HWF"]
    assert header["steps"] == [[0, 9], [10, 49]]
    assert header["arrays"]["order"] == {
        "axes": ["steps", "layers", "heads"],
        "shape": [2, 2, 3],
        "dtype": "uint8",
    }


def test_values_are_identity() -> None:
    """Plans differ by any value and by any part of the header; they never change."""
    different = [
        example(),
        example(model="other"),
        example(kind="partition"),
        example(thresholds={"kept": 0.8}),
        example(orders=("HWF", "FHW")),
        example(provenance={}),
        example(grid=None),
        example(payload={"order": Payload(("steps",), np.zeros(2, np.uint8))}),
        example(payload={"order": Payload(("steps",), np.ones(2, np.uint8))}),
        example(payload={"order": Payload(("steps",), np.ones(2, np.int8))}),
    ]
    assert len({p.fingerprint for p in different}) == len(different)
    assert example() == example()
    mine = np.zeros(2, np.uint8)
    plan = example(payload={"order": Payload(("steps",), mine)})
    mine[0] = 1
    assert plan["order"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        plan["order"][0] = 1


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A writer of the example plan with its header changed."""

    def write(path: Path) -> None:
        plan = example()
        header = json.loads(json.dumps(plan.header))
        change(header)
        arrays = {name: p.values for name, p in plan.payload.items()}
        path.write_bytes(safetensors.save(arrays, metadata={"kdsl": json.dumps(header)}))

    return write


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "the plan cannot be read: No such file or directory"),
    "empty": (lambda p: p.write_bytes(b""), "the plan cannot be read: "),
    "text": (lambda p: p.write_text("{}" * 40), "the plan cannot be read: "),
    "other file": (
        lambda p: p.write_bytes(safetensors.save({"x": np.zeros(2)})),
        "no plan: the file has no kdsl header",
    ),
    "no json": (
        lambda p: p.write_bytes(safetensors.save({}, metadata={"kdsl": "{"})),
        "the plan's header is damaged: ",
    ),
    "no object": (
        lambda p: p.write_bytes(safetensors.save({}, metadata={"kdsl": "[]"})),
        "the plan's header is damaged: ",
    ),
    "newer": (
        damaged(lambda h: h.update(version=2)),
        "a plan of format 2, this library reads 1",
    ),
    "kind": (damaged(lambda h: h.update(kind="weights")), "a plan for 'weights'"),
    "field": (
        damaged(lambda h: h.update(ranks=8)),
        "header fields missing or unknown: ranks",
    ),
    "no model": (
        damaged(lambda h: h.pop("model")),
        "header fields missing or unknown: model",
    ),
    "array": (
        damaged(lambda h: h["arrays"].pop("full")),
        "the header and the file hold different arrays: full",
    ),
    "shape": (
        damaged(lambda h: h["arrays"]["order"].update(shape=[2, 2, 4])),
        "array 'order' is uint8 [2, 2, 3], its header differs",
    ),
    "axes": (
        damaged(lambda h: h["arrays"]["order"].update(axes=["steps", "layers"])),
        "array 'order' of shape (2, 2, 3) has axes ('steps', 'layers')",
    ),
    "steps": (
        damaged(lambda h: h.update(steps=[[0, 9]])),
        "axis 'steps' of array 'order' has 2 entries, elsewhere 1",
    ),
    "malformed": (damaged(lambda h: h.update(steps=[3])), "malformed plan: TypeError"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused(case: str, tmp_path: Path) -> None:
    """What is no plan, a newer one, damaged or contradicts its header raises StoreError."""
    write, wanted = FOREIGN[case]
    write(tmp_path / "p")
    with pytest.raises(StoreError) as caught:
        load(tmp_path / "p")
    assert str(caught.value).startswith(wanted)
    assert str(tmp_path / "p") in str(caught.value)


def test_a_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    """No prefix of a plan's file reads as a plan."""
    example().save(tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    for length in {*range(0, len(data), 97), len(data) - 1}:
        (tmp_path / "p").write_bytes(data[:length])
        with pytest.raises(StoreError):
            load(tmp_path / "p")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    """A caller that wants one kind is told which one the file holds."""
    example().save(tmp_path / "p")
    with pytest.raises(StoreError, match="a plan for 'attention', not for 'partition'"):
        load(tmp_path / "p", "partition")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the old plan stays and nothing is left beside it."""
    example().save(tmp_path / "p")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        example(model="new").save(tmp_path / "p")
    assert load(tmp_path / "p").model == "wan2.1-1.3b"
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    with pytest.raises(StoreError, match="cannot be written"):
        example().save(tmp_path / "nowhere" / "p")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without safetensors the message says what to install."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for act in (lambda: example().save(tmp_path / "p"), lambda: load(tmp_path / "p")):
        with pytest.raises(StoreError, match="pip install safetensors"):
            act()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (
        {"kind": "weights"},
        "plan kind 'weights'\n  try 'attention' or 'quantization' or 'partition'",
    ),
    "version": ({"version": 2}, "plan version 2\n  try 1"),
    "model": ({"model": ""}, "model=''\n  try the name of the model it was made for"),
    "order": ({"orders": (3,)}, 'order name 3\n  try names such as "FHW"'),
    "steps": ({"steps": ((5, 3), (4, 9))}, "steps 5 to 3\n  try inclusive ranges from 0"),
    "nan": (
        {"thresholds": {"kept": float("nan")}},
        "a plan's header holds what JSON does not\n  try text, lists, finite numbers",
    ),
    "dtype": (
        {"payload": {"x": Payload((), np.array(1j))}},
        "array 'x' of complex128\n  try bool, uint8, int8, int16, int32, int64, float16, float32",
    ),
    "name": (
        {"payload": {"X": Payload((), np.array(1))}},
        "name 'X' in a plan\n  try lower case, such as \"rows\"",
    ),
    "axes": (
        {"payload": {"x": Payload(("rows", "rows"), np.zeros((2, 2)))}},
        "array 'x' of float64\n  try bool, uint8, int8, int16, int32, int64, float16, float32",
    ),
    "twice": (
        {"payload": {"x": Payload(("rows", "rows"), np.zeros((2, 2), "f4"))}},
        "array 'x' of shape (2, 2) has axes ('rows', 'rows')",
    ),
    "sizes": (
        {
            "payload": {
                "x": Payload(("rows",), np.zeros(2, "i4")),
                "y": Payload(("rows",), np.zeros(3, "i4")),
            }
        },
        "axis 'rows' of array 'y' has 3 entries, elsewhere 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_messages(case: str) -> None:
    """What a plan refuses when it is made, word for word."""
    changes, wanted = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        example(**changes)
    assert str(caught.value) == wanted
    with pytest.raises(SpecError, match="plan has no array 'scale'\n  try full, order, partial"):
        example()["scale"]
