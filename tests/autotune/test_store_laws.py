"""Laws of the database, by hypothesis: the best follows from the set of rows alone, whichever way
they come and wherever they are kept. That a merge is a set union, test_store_machine.py shows."""

from __future__ import annotations

import io
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from kdsl.autotune.store import Store, export_jsonl, import_jsonl
from kdsl.runtime.records import (
    Candidate,
    Device,
    Measurement,
    MemorySource,
    Row,
    Run,
    Toolchain,
    Trial,
    Workload,
    jsonl,
    ranked,
)
from tests.postgres import Server

WORKLOADS = [Workload(op="attention", program=p, dtypes={}, dims={}) for p in "ab"]
DEVICES = [Device(name=n, cc=90, sms=132) for n in ("h100", "h200")]
TOOLS = [Toolchain(kdsl="0.1", triton=v) for v in ("3.6.0", "3.9.0")]
RUNS = [Run(started=s) for s in ("1", "2", "3")]
CANDIDATES = [Candidate(space_hash="s", params={"n": n}) for n in (1, 2, 30, 300, 4000)]
# Short params must not go with small ids, or the ties that these decide could not be told apart.
assert sorted(CANDIDATES, key=lambda c: c.id) != CANDIDATES


@st.composite
def outcomes(draw: st.DrawFn, crowded: bool = False) -> tuple[Row, ...]:
    """One measurement with what it refers to, from so few values that ties abound; ``crowded``:
    of one group and few candidates, so that some are timed again and others are not."""
    kinds = (WORKLOADS, DEVICES, TOOLS, CANDIDATES)
    counts = (1, 1, 1, 3) if crowded else (len(some) for some in kinds)
    referents = [draw(st.sampled_from(some[:n])) for some, n in zip(kinds, counts, strict=True)]
    run = draw(st.sampled_from(RUNS))
    fields: dict[str, Any] = {
        "kind": draw(st.sampled_from(["measured", "measured", "predicted"])),
        "status": "ok",
        "median_us": draw(st.sampled_from([1.0, 1.5, 2.0])),
        "is_default": draw(st.booleans()),
        "shared_bytes": draw(st.sampled_from([None, 1, 2])),
        "registers": draw(st.sampled_from([None, 1, 2])),
        "binary_hash": draw(st.sampled_from(["", "beef", "cafe"])),
    }
    spread = draw(st.sampled_from([None, 0.1, 0.5, 0.75]))
    if spread is not None:
        fields |= {"ci_lo_us": fields["median_us"] - spread, "ci_hi_us": 2.0 + spread}
    if fields["kind"] == "measured" and draw(st.integers(0, 9)) == 0:
        fields = {"kind": "measured", "status": "wrong", "reason": "off",
                  "binary_hash": fields["binary_hash"]}  # fmt: skip
    workload, device, tools, candidate = (row.id for row in referents)
    row = Measurement(
        workload_id=workload,
        device_id=device,
        toolchain_id=tools,
        candidate_id=candidate,
        run_id=run.id,
        created="",
        **fields,
    )
    return (*referents, run, row)


DATABASES = (
    st.lists(outcomes(), max_size=25) | st.lists(outcomes(crowded=True), min_size=3, max_size=9)
).map(lambda found: {r for rows in found for r in rows})


def ranking(store: Store) -> list[tuple[Any, ...]]:
    """The view ``standing``."""
    text = (
        "SELECT workload_id, device_id, toolchain_id, kind, measurement_id, runs, "
        "ever_default, place FROM standing "
        "ORDER BY workload_id, device_id, toolchain_id, kind, place"
    )
    return [tuple(row.values()) for row in store.link.fetch(text)]


def in_python(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """The view ``standing``, computed by ``ranked`` from the rows alone."""
    source = MemorySource(rows)
    groups: defaultdict[tuple[str, ...], list[Trial]] = defaultdict(list)
    for workload in WORKLOADS:
        for trial in source.trials(workload.id):
            row = trial.measurement
            for kind in ("measured", "predicted"):
                if kind == row.kind or row.status == "wrong":
                    groups[row.workload_id, row.device_id, row.toolchain_id, kind].append(trial)
    return [
        (*key, standing.trial.measurement.id, standing.runs, standing.default, place)
        for key in sorted(groups)
        for place, standing in enumerate(ranked(groups[key], source.condemned()), start=1)
    ]


def _file(folder: Path, name: str, rows: Iterable[Row]) -> Path:
    with Store(folder / name) as store:
        store.add(*rows)
    return folder / name


def test_some_databases_have_a_warm_card() -> None:
    """Among the examples there are candidates whose time is scaled before it is compared."""

    def scaled(rows: set[Row]) -> bool:
        trials = MemorySource(rows).trials(WORKLOADS[0].id)
        return any(s.heat != 1.0 for s in ranked(list(trials)))

    find(st.lists(outcomes(crowded=True), min_size=3, max_size=9).map(
        lambda found: {r for rows in found for r in rows}
    ), scaled, settings=settings(max_examples=200, database=None))  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(DATABASES)
def test_sql_and_python_agree(rows: set[Row]) -> None:
    """The view and the function give the same ranking, place by place."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "t.db") as store:
        store.add(*rows)
        assert ranking(store) == in_python(rows)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(DATABASES)
def test_both_databases_rank_alike(server: Server, rows: set[Row]) -> None:
    """PostgreSQL gives the ranking of the rules, and so SQLite's; rows come back to the bit."""
    url = server.new()
    with Store(url) as store:
        store.add(*rows)
        assert ranking(store) == in_python(rows)
        assert set(store.rows()) == rows
    name = url.rpartition("/")[2]
    server.ask(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def scratch(server: Server) -> str:
    """A database of a server that fills up."""
    return server.new()


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.floats(allow_nan=False, allow_infinity=False),
    extra=st.dictionaries(st.from_regex("later_[a-z]{1,8}", fullmatch=True), VALUES, max_size=3),
    text=WORDS,
)
def test_values_survive_both_databases(
    scratch: str, number: float, extra: dict[str, Any], text: str
) -> None:
    """Any number, text or nested value that a row may hold comes back under the same id from text,
    from SQLite and from PostgreSQL: smallest and largest floats, minus zero, foreign scripts."""
    row = Device(name="x", cc=1, sms=1, power_cap_w=number, extra={**extra, "later": text})
    lines = "".join(jsonl.write([row])).encode()
    assert [found for _, found in jsonl.read(io.BytesIO(lines), "x")] == [row]
    with tempfile.TemporaryDirectory() as folder:
        for place in (Path(folder) / "t.db", scratch):
            with Store(place) as store:
                store.insert([("", row)])
                assert row in set(store.rows())


@pytest.mark.parametrize(
    "resources",
    [
        [(3, 9)] * 5,
        [(3, None), (3, 9), (3, 8), (None, 1), (None, None)],
        [(None, 2), (4, 2), (0, 7), (0, 0), (None, None)],
    ],
)
def test_sql_and_python_break_ties_alike(
    tmp_path: Path, resources: list[tuple[int | None, int | None]]
) -> None:
    """Less shared memory, fewer registers, unknown last, shorter params, then the smaller id."""
    shared = (WORKLOADS[0], DEVICES[0], TOOLS[0], RUNS[0])
    workload, device, tools, run = (row.id for row in shared)
    found: list[Row] = list(shared)
    for candidate, (smem, registers) in zip(CANDIDATES, resources, strict=True):
        row = Measurement(
            workload_id=workload,
            device_id=device,
            toolchain_id=tools,
            candidate_id=candidate.id,
            run_id=run,
            kind="measured",
            status="ok",
            created="",
            median_us=1.0,
            shared_bytes=smem,
            registers=registers,
        )
        found += [candidate, row]
    with Store(tmp_path / "t.db") as store:
        store.add(*found)
        text = "SELECT candidate_id FROM standing ORDER BY place"
        in_sql = [row[0] for row in store.link.raw.execute(text)]
    order = sorted(
        zip(resources, CANDIDATES, strict=True),
        key=lambda pair: (
            *(10**9 if r is None else r for r in pair[0]),
            len(str(pair[1].params["n"])),
            pair[1].id,
        ),
    )
    assert in_sql == [candidate.id for _, candidate in order]
    trials = MemorySource(found).trials(workload)
    assert in_sql == [s.trial.candidate.id for s in ranked(trials)]


@settings(deadline=None, max_examples=25)
@given(DATABASES, st.randoms())
def test_text_is_as_good_as_the_database(rows: set[Row], random: Any) -> None:
    """Through JSONL in any order of lines come the same rows and the same best."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Store(folder / "a.db") as store, Store(folder / "b.db") as other:
            store.add(*rows)
            export_jsonl(store, folder / "a.jsonl")
            lines = (folder / "a.jsonl").read_text().splitlines(keepends=True)
            random.shuffle(lines)
            (folder / "b.jsonl").write_text("".join(lines))
            assert import_jsonl(other, folder / "b.jsonl").problems == ()
            assert set(other.rows()) == rows
            assert ranking(other) == ranking(store)
