"""Keys: what is hard, what is soft, and how far apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.runtime.records import Device, Key, Toolchain, Workload, keys

H100 = Device(name="h100", cc=90, sms=132)
TOOLS = Toolchain(kdsl="0.1", template_hash="t1", triton="3.9.0")


def _workload(**fields: Any) -> Workload:
    given: dict[str, Any] = {
        "op": "attention",
        "program": "p",
        "dtypes": {"q": "bfloat16"},
        "dims": {"batch": 1, "heads": 12, "tokens": 32_760, "head_dim": 128},
        "align": {"q": 16},
        "mask_stats": {"density": 0.1, "partial_share": 0.2, "row_spread": 1.0, "run_length": 4.0},
        "numerics": {"tf32": False},
    }
    return Workload(**{**given, **fields})


def _dims(**sizes: int) -> dict[str, int]:
    return {"batch": 1, "heads": 12, "tokens": 32_760, "head_dim": 128, **sizes}


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "permute"},
        {"program": "p2"},
        {"dtypes": {"q": "float16"}},
        {"dims": _dims(head_dim=64)},
        {"align": {"q": 8}},
        {"align": {}},
        {"numerics": {"tf32": True}},
        {"numerics": {"tf32": 0}},
    ],
)
def test_hard_parts(fields: dict[str, Any]) -> None:
    """Whatever changes the program or the binary changes the hard key; alignment exactly."""
    assert keys.hard(_workload(**fields)) != keys.hard(_workload())


def test_soft_parts_leave_the_hard_key_alone() -> None:
    """Sizes and mask statistics are no hard parts, and the spec's text is none at all."""
    other = _workload(dims=_dims(tokens=7, heads=3), mask_stats={"density": 0.9}, spec_json="{}")
    assert keys.hard(other) == keys.hard(_workload())


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"dims": _dims(tokens=32_768)}, True),
        ({"dims": _dims(tokens=40_000)}, True),
        ({"dims": _dims(tokens=47_000)}, False),
        ({"dims": _dims(heads=24)}, False),
        ({"mask_stats": {**_workload().mask_stats, "density": 0.095}}, True),
        ({"mask_stats": {**_workload().mask_stats, "density": 0.2}}, False),
        ({"mask_stats": {**_workload().mask_stats, "partial_share": 0.8}}, False),
        ({"mask_stats": {**_workload().mask_stats, "row_spread": 2.0}}, False),
        ({"mask_stats": {**_workload().mask_stats, "run_length": 64.0}}, False),
    ],
)
def test_buckets(fields: dict[str, Any], same: bool) -> None:
    """Like sizes and masks share buckets, a doubling or another sort of mask does not."""
    assert (keys.buckets(_workload(**fields)) == keys.buckets(_workload())) == same


SIZES = st.fixed_dictionaries({"tokens": st.integers(0, 2**40), "heads": st.integers(0, 4096)})
MASKS = st.fixed_dictionaries(
    {"density": st.floats(0, 1), "partial_share": st.floats(0, 1), "run_length": st.floats(0, 1e6)}
)
WORKLOADS = st.builds(lambda d, m: _workload(dims=d, mask_stats=m), SIZES, MASKS)


@given(WORKLOADS, WORKLOADS, WORKLOADS)
def test_distance_is_a_metric(a: Workload, b: Workload, c: Workload) -> None:
    """It is symmetric, zero to itself and obeys the triangle inequality."""
    assert keys.distance(a, a) == 0
    assert keys.distance(a, b) == pytest.approx(keys.distance(b, a))
    assert keys.distance(a, c) <= keys.distance(a, b) + keys.distance(b, c) + 1e-9


def test_one_doubling_is_one() -> None:
    """Distances are octaves, whichever size it is."""
    assert keys.distance(_workload(), _workload(dims=_dims(heads=24))) == 1
    assert keys.distance(_workload(), _workload(dims=_dims(tokens=16_380))) == 1


def test_what_only_one_has_is_not_comparable() -> None:
    """A size or statistic that is missing on one side makes the distance infinite."""
    assert keys.distance(_workload(), _workload(mask_stats={})) == math.inf
    assert keys.distance(_workload(), _workload(dims={"tokens": 32_760})) == math.inf


def test_versions_count_where_both_are_known() -> None:
    """A compiler's version differs only from another one; kdsl's and torch's do not count."""

    def changed(**fields: Any) -> list[tuple[str, str, str]]:
        row = Toolchain(**{"kdsl": "0.1", "template_hash": "t1", "triton": "3.9.0", **fields})
        return keys.changes(Key(_workload(), H100, TOOLS), Key(_workload(), H100, row))

    assert changed(kdsl="0.2", torch="2.13", driver="580") == []
    assert changed(triton="3.6.0") == [("triton", "3.9.0", "3.6.0")]
    assert changed(template_hash="t2") == [("template_hash", "t1", "t2")]


def test_differences_are_a_table() -> None:
    """Hard ones first with !, soft ones in another bucket with ~, the rest without a mark."""
    row = Key(
        _workload(program="p2", dims=_dims(tokens=131_072, heads=13)),
        Device(name="a100", cc=80, sms=108),
        Toolchain(kdsl="0.1", triton="3.6.0"),
    )
    assert keys.table(keys.differences(Key(_workload(), H100, TOOLS), row)) == [
        "  field       wanted  row",
        "! program     p       p2",
        "! capability  90      80",
        "  heads       12      13",
        "~ tokens      32760   131072",
        "~ name        h100    a100",
        "~ sms         132     108",
        "~ triton      3.9.0   3.6.0",
    ]
