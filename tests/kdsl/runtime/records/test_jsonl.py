"""Reading files that others wrote: what is broken or hostile is named by its line and skipped."""

from __future__ import annotations

import io

import pytest

from kdsl.errors import StoreError
from kdsl.runtime.records import Candidate, Row, jsonl
from kdsl.runtime.records.jsonl import LINE_LIMIT, Problem

GOOD = Candidate(space_hash="s", params={"block_q": 64})


def _read(content: bytes) -> list[Row | Problem]:
    return [found for _, found in jsonl.read(io.BytesIO(content), "x.jsonl")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is no JSON object that"),
        (b"7", "is no JSON object that"),
        (b'{"id": "0"}', "is no JSON object that names its table"),
        (b'{"table": ["x"]}', "something else than text"),
        (b'{"table": "candidate", "id": 1}', "something else than text"),
        (b'{"table": "job"}', "unknown table 'job'"),
        (b'{"table": "../candidate"}', "unknown table '../candidate'"),
        (b'{"table": "candidate", "params": {}}', "candidate: missing 1 required"),
        (b'{"table": "candidate", "space_hash": 1, "params": {}}', "candidate.space_hash"),
        (b'{"table": "candidate", "space_hash": "", "params": {"a": 1e999}}', "no finite number"),
        (b'{"table": "candidate", "space_hash": "", "params": {"a": NaN}}', "NaN is no number"),
        (b'{"table": "candidate", "space_hash": "", "params": {"a": 99999999999999999999}}',
         "no 64-bit integer"),
        (b'{"table": "candidate", "space_hash": "", "params": {"a": ' + b"9" * 5000 + b"}}",
         "is not JSON"),
        (b'{"table": "candidate", "space_hash": "", "space_hash": "b", "params": {}}',
         "a key occurs twice"),
        (b'{"table": "candidate", "space_hash": "", "params": {}, "../x": 1}',
         "a field cannot be called '../x'"),
        (b'{"table": "candidate", "space_hash": "", "params": {}, "extra": {}}',
         "a field cannot be called 'extra'"),
        (GOOD.line().replace("64", "65").encode(), "content and id do not belong together"),
        (b'{"table": "candidate", "space_hash": "\xff"}', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"x":' * 50_000, "is not JSON"),
        (b"x" * (3 * LINE_LIMIT + 5), f"longer than {LINE_LIMIT} bytes"),
    ],
)  # fmt: skip
def test_bad_lines_are_skipped_by_number(line: bytes, reason: str) -> None:
    """The good lines around a bad one are read, and the bad one is named with what is wrong."""
    found = _read(GOOD.line().encode() + b"\n\n" + line + b"\n" + GOOD.line().encode())
    assert found[0] == found[2] == GOOD
    assert isinstance(found[1], Problem)
    assert (found[1].file, found[1].line) == ("x.jsonl", 3)
    assert reason in found[1].reason
    assert len(str(found[1])) < 400


def test_a_newer_file_is_refused_whole() -> None:
    """Half understood is worse than not at all: a newer version's file raises."""
    with pytest.raises(StoreError, match="newer kdsl: schema version 99, this one reads 2"):
        _read(b'{"schema_version":99,"table":"meta"}\n' + GOOD.line().encode())
    with pytest.raises(StoreError, match="schema version 'x'"):
        _read(b'{"schema_version":"x","table":"meta"}\n')


def test_files_are_sorted_and_each_row_once() -> None:
    """The same set of rows gives the same bytes, whatever order it came in."""
    rows = [Candidate(space_hash="s", params={"n": n}) for n in range(9)]
    text = "".join(jsonl.write(rows))
    assert text == "".join(jsonl.write([*reversed(rows), *rows]))
    assert text.splitlines()[0] == '{"schema_version":2,"table":"meta"}'
    assert {row.id for row in _read(text.encode()) if isinstance(row, Row)} == {r.id for r in rows}
