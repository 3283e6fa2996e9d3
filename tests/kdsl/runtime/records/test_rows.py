"""Rows: their canonical form, their ids, and what they refuse."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import targets
from kdsl.errors import StoreError
from kdsl.runtime.records import Candidate, Device, Measurement, Row, Workload, jsonl
from kdsl.runtime.records.form import canonical, dumps
from kdsl.runtime.records.rows import from_content

WORKLOAD = Workload(
    op="attention",
    program="5f1c",
    dtypes={"q": "bfloat16"},
    dims={"tokens": 32_760, "head_dim": 128},
    mask_stats={"density": 0.1},
)
IDS = dict.fromkeys(("workload_id", "device_id", "toolchain_id", "candidate_id", "run_id"), "0")


def _measured(**fields: Any) -> Measurement:
    given = {"kind": "measured", "status": "ok", "created": "", "median_us": 1.0, **fields}
    return Measurement(**IDS, **given)


def test_canonical_form_is_frozen() -> None:
    """The text that is hashed, and an id: changing either would orphan every stored row."""
    form = canonical({"b": 0.1, "a": [1, True, None, "é"], "c": {"y": -0.0, "x": 2}})
    assert form == (
        '{"a":[1,true,null,"\\u00e9"],"b":"0x1.999999999999ap-4","c":{"x":2,"y":"-0x0.0p+0"}}'
    )
    form = (
        '{"dims":{"head_dim":128,"tokens":32760},"dtypes":{"q":"bfloat16"},'
        '"mask_stats":{"density":"0x1.999999999999ap-4"},"op":"attention","program":"5f1c",'
        '"table":"workload"}'
    )
    assert WORKLOAD.id == hashlib.sha256(form.encode()).hexdigest()[:32]
    assert WORKLOAD.id == "e4bfafd3a3af01e5a34df74bd643169d"


def test_order_of_keys_and_kind_of_number_do_not_matter() -> None:
    """A whole number in a field for real ones is the same real number, and maps have no order."""
    again = Workload(
        mask_stats={"density": 0.1},
        op="attention",
        program="5f1c",
        dims={"head_dim": 128, "tokens": 32_760},
        dtypes={"q": "bfloat16"},
    )
    assert (again, again.id, hash(again)) == (WORKLOAD, WORKLOAD.id, hash(WORKLOAD))
    assert _measured(median_us=3).id == _measured(median_us=3.0).id


def test_fields_at_their_default_do_not_count() -> None:
    """So a later version can add a field with a default and old ids stay what they are."""
    assert set(WORKLOAD.content()) == {"op", "program", "dtypes", "dims", "mask_stats"}


def test_unknown_fields_are_kept_and_count() -> None:
    """A row of a newer version passes through this one unharmed, under its own id."""
    newer = from_content("workload", {**WORKLOAD.content(), "mood": {"x": [0.5]}})
    assert newer.extra == {"mood": {"x": [0.5]}}
    assert newer.id != WORKLOAD.id
    assert json.loads(newer.line())["mood"] == {"x": [0.5]}
    assert from_content("workload", newer.content()) == newer


def test_the_same_content_in_two_tables_has_two_ids() -> None:
    """The table is part of what is hashed."""
    device = Device(name="h100", cc=90, sms=132)
    assert from_content("device", device.content()).id == device.id
    assert canonical({**device.content(), "table": "x"}) != canonical(device.content())


def test_device_of_a_target() -> None:
    """The GPU table fills a device row; the power cap in force is part of its identity."""
    h100 = Device.of(targets.get("h100"))
    assert (h100.name, h100.cc, h100.sms) == ("h100", 90, 132)
    assert Device.of(targets.get("h100"), power_cap_w=500).id != h100.id


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"kind": "guessed"}, "measurement: kind 'guessed'"),
        ({"status": "illegal", "reason": "x"}, "a measured row has no status 'illegal'"),
        ({"status": "wrong"}, "status wrong needs a reason"),
        ({"kind": "predicted", "status": "wrong", "reason": "x"}, "a predicted row has no status"),
        ({"median_us": None}, "status ok needs a median above 0"),
        ({"median_us": 0.0}, "status ok needs a median above 0"),
        ({"median_us": float("nan")}, "measurement.median_us is no finite number"),
        ({"median_us": "1"}, "measurement.median_us is no finite number"),
        ({"ci_lo_us": 2.0}, "interval without the median"),
        ({"n": 2**63}, "measurement.n is no 64-bit integer"),
        ({"n": True}, "measurement.n is no 64-bit integer"),
        ({"samples": [1.0] * 65}, "more than 64 samples"),
        ({"samples": 3}, "measurement.samples"),
        ({"reason": "a\0b"}, "measurement.reason is too long or has NULs"),
        ({"binary_hash": "\ud800"}, "measurement.binary_hash"),
        ({"extra": {"deep": json.loads("[" * 30 + "]" * 30)}}, "measurement.extra is no"),
    ],
)
def test_measurements_refuse(fields: dict[str, Any], what: str) -> None:
    """Each rule of a measurement has its error, which names the field."""
    with pytest.raises(StoreError) as caught:
        _measured(**fields)
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"op": "../../etc/passwd"}, "op '../../etc/passwd'"),
        ({"dims": {"tokens": -1}}, "a size is negative"),
        ({"dims": {"tokens": 1.5}}, "workload.dims is no 64-bit integer"),
        ({"mask_stats": {"densty": 0.1}}, "mask statistic {'densty'} is none of"),
        ({"align": {"q": 3}}, "alignment is none of (1, 2, 4, 8, 16)"),
    ],
)
def test_workloads_refuse(fields: dict[str, Any], what: str) -> None:
    """Each rule of a workload has its error."""
    with pytest.raises(StoreError) as caught:
        from_content("workload", {**WORKLOAD.content(), **fields})
    assert what in caught.value.what


def test_reasons_are_one_line() -> None:
    """A compiler's message of many lines becomes one of at most 500 characters, once for all."""
    row = _measured(status="crash", reason="a\n\n  b\t" + "x" * 999, median_us=None)
    assert row.reason.startswith("a b xxx")
    assert len(row.reason) == 500
    assert from_content("measurement", row.content()) == row


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), NUMBERS, st.text(max_size=9))
CANDIDATES = st.builds(
    Candidate,
    space_hash=st.text(max_size=9).filter(lambda s: "\0" not in s),
    params=st.dictionaries(
        st.text(max_size=9).filter(lambda s: "\0" not in s),
        SCALARS.filter(lambda v: not isinstance(v, str) or "\0" not in v),
        max_size=5,
    ),
)


@given(CANDIDATES)
def test_a_line_says_it_all(row: Row) -> None:
    """What is written comes back: equal, under the same id, as the same bytes."""
    ((number, found),) = jsonl.read(io.BytesIO(row.line().encode()), "x.jsonl")
    assert number == 1
    assert found == row
    assert isinstance(found, Row)
    assert (found.id, found.line()) == (row.id, row.line())
    assert dumps(json.loads(row.line())) == row.line()
