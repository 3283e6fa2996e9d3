"""Reading files that others wrote: what is broken or hostile is named by its line and skipped."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from typing import Any

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


class Endless(io.RawIOBase):
    """So many bytes of a line, then a good one; remembers the longest read."""

    def __init__(self, size: int) -> None:
        self.left, self.tail = size, b"\n" + GOOD.line().encode()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some more."""
        view = memoryview(buffer)
        if self.left:
            count = min(self.left, len(view))
            view[:count] = b"9" * count
            self.left -= count
            return count
        count = min(len(self.tail), len(view))
        view[:count] = self.tail[:count]
        self.tail = self.tail[count:]
        return count


def test_a_line_of_100_megabytes_is_not_held() -> None:
    """It is skipped with its number in memory of a few lines, and the next line is read."""
    stream = io.BufferedReader(Endless(100 << 20))
    tracemalloc.start()
    try:
        found = [row for _, row in jsonl.read(stream, "x.jsonl")]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [str(found[0]), found[1]] == [f"x.jsonl:1: longer than {LINE_LIMIT} bytes", GOOD]
    assert peak < 4 * LINE_LIMIT


HOSTILE = [
    {"space_hash": "s", "params": {}, "id": "../../etc/passwd"},
    {"space_hash": "../../x", "params": {"a/../b": "/etc/passwd"}},
    {"space_hash": "__import__('os').abort()", "params": {}},
    {"space_hash": "s", "params": {}, "__class__": "os.system"},
    {"space_hash": "s", "params": {}, "later": {"py/object": "os.abort"}},
    {"space_hash": "gASVGgAAAAAAAACMAm9zlIwFYWJvcnSUk5QpUpQu", "params": {}},
]


def test_nothing_in_a_line_is_acted_on() -> None:
    """Paths, code and pickles in a line stay text in a row, or the line is refused: nothing is
    opened, run or loaded while it is read."""
    happened: list[str] = []
    watching = False

    def hook(event: str, arguments: object) -> None:
        acts = ("open", "exec", "compile", "import", "os.", "subprocess", "pickle", "marshal")
        if watching and event.startswith(acts):
            happened.append(f"{event} {arguments}")

    sys.addaudithook(hook)  # stays for good, asleep
    text = "".join(json.dumps({"table": "candidate", **line}) + "\n" for line in HOSTILE)
    stream = io.BytesIO(text.encode())
    watching = True
    found = list(jsonl.read(stream, "x.jsonl"))
    watching = False
    assert happened == []
    assert [isinstance(row, Candidate) for _, row in found] == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_newer_file_is_refused_whole() -> None:
    """Half understood is worse than not at all: a newer version's file raises."""
    with pytest.raises(StoreError, match="newer kdsl: schema version 99, this one reads 3"):
        _read(b'{"schema_version":99,"table":"meta"}\n' + GOOD.line().encode())
    with pytest.raises(StoreError, match="schema version 'x'"):
        _read(b'{"schema_version":"x","table":"meta"}\n')


def test_files_are_sorted_and_each_row_once() -> None:
    """The same set of rows gives the same bytes, whatever order it came in."""
    rows = [Candidate(space_hash="s", params={"n": n}) for n in range(9)]
    text = "".join(jsonl.write(rows))
    assert text == "".join(jsonl.write([*reversed(rows), *rows]))
    assert text.splitlines()[0] == '{"schema_version":3,"table":"meta"}'
    assert {row.id for row in _read(text.encode()) if isinstance(row, Row)} == {r.id for r in rows}
