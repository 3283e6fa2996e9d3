"""What only a server can do to us: vanish, refuse, be slow, and tell passwords."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kdsl.autotune.cli import main
from kdsl.autotune.store import Store
from kdsl.autotune.store.prune import prune
from kdsl.errors import KdslError, StoreError, UnsupportedError
from kdsl.runtime.records import Key, default_place, default_sources, link, lookup, postgres
from kdsl.runtime.records.link import TryAgain
from tests.autotune.made_up import FakeHardware, write_spec
from tests.autotune.test_store import H100, TOOLS, WORKLOAD, rows
from tests.autotune.writer import rows as written
from tests.postgres import Server


def _end_sessions(server: Server, url: str) -> None:
    name = url.rpartition("/")[2]
    text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
    server.ask(f"{text}'{name}' AND application_name = 'kdsl'")


def test_a_dropped_connection_is_made_again(server: Server) -> None:
    """Sessions that the server ends, between statements or in the middle of adding, cost nothing:
    reads are asked again, the transaction is repeated, each row is there once."""
    with Store(server.new()) as store:
        url = str(store.place)
        store.add(*rows(64))
        _end_sessions(server, url)
        assert set(store.rows()) == set(rows(64))
        _end_sessions(server, url)
        store.add(*rows(32))
        run, ended = store.link.run, []

        def interrupted(text: str, values: tuple[object, ...] = ()) -> int:
            if "INTO measurement" in text and not ended:
                ended.append(True)
                _end_sessions(server, url)
            return run(text, values)

        store.link.run = interrupted  # type: ignore[method-assign, assignment]
        store.add(*rows(16))
        assert ended
        assert set(store.rows()) == {*rows(64), *rows(32), *rows(16)}


def test_a_server_that_stays_away(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """After half a minute the wait ends with an error that says what is safe and how to go on."""
    del server  # where there is no server there is no driver either
    monkeypatch.setattr("kdsl.autotune.store.database.BUSY_S", 0.5)
    with Server() as own:
        store = Store(own.new())
        store.add(*rows(64))
        own.stop()
        with pytest.raises(TryAgain) as caught:
            store.add(*rows(32))
        assert "the server runs" in caught.value.hint or "goes on from there" in caught.value.hint
        assert own.password not in str(caught.value)
        store.close()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda url, server: url.replace(f":{server.port}/", ":1/"), "cannot be reached"),
        (lambda url, server: url + "_not_there", "is not there|cannot be reached"),
        (lambda url, server: url.replace("tuner:", "nobody:"), "refuses|cannot be reached"),
        (lambda url, server: url.replace("127.0.0.1", "no.such.host.invalid"), "be reached"),
        (lambda url, server: url.replace("@127", "@@127"), "tuning database"),
        (lambda url, server: url.replace(f":{server.port}/", ":port/"), "tuning database"),
        (lambda url, server: url + "?no_such_option=1", "tuning database"),
        (lambda url, server: f"postgresql://127.0.0.1:{server.port}/x?user=tuner&password="
         f"wrong{server.password}", "tuning database"),
    ],
)  # fmt: skip
def test_no_error_tells_the_password(
    server: Server,
    change: Callable[[str, Server], str],
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However a URL is wrong, the error names the fault and not the password: neither its text,
    nor the chain of errors behind it, nor what the command line prints."""
    url = change(server.new(), server)
    for use in (lambda: Store(url), lambda: default_sources(url).__enter__()):
        with pytest.raises(StoreError, match=what) as caught:
            use()
        told: BaseException | None = caught.value
        while told is not None:
            assert server.password not in f"{told} {told!r} {told.args}"
            told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    words = ["--gpu", "a100", "--spec", str(write_spec(tmp_path)), "--budget", "1"]
    assert main([*words, "--storage", url], hardware=FakeHardware) == 1
    said = capsys.readouterr()
    assert server.password not in said.out + said.err


def test_no_command_tells_the_password(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command works on a server, and neither prints the password nor stores it; an export of
    it holds none, nor the host's name, nor a misplaced URL's."""
    url, spec = server.new(), str(write_spec(tmp_path))
    text = tmp_path / "x.jsonl"
    commands = [
        ["--gpu", "a100", "--spec", spec, "--budget", "6", "--storage", url],
        ["--gpu", "a100", "--spec", spec, "--budget", "1s", "--seed", "3", "--storage", url],
        ["show", "--storage", url],
        ["doctor", "--storage", url],
        ["export", str(text), "--storage", url],
        ["merge", url, str(text), "--storage", str(tmp_path / "t.db")],
        ["diff", url, str(text)],
        ["prune", "--older", "0", "--keep", "1", "--storage", url],
    ]
    for words in commands:
        code = main(words, hardware=FakeHardware)
        said = capsys.readouterr()
        assert server.password not in said.out + said.err, words
        if words[0] != "doctor":  # the tests' server runs without fsync, and that is told
            assert code == 0, said.err
    for wrong in (["show", url], ["--gpu", "a100", url], ["--gpu", url]):
        with suppress(SystemExit):  # the parser's own way out
            assert main(wrong, hardware=FakeHardware) != 0
        said = capsys.readouterr()
        assert server.password not in said.out + said.err, wrong
    assert server.password not in text.read_text()
    assert server.password.encode() not in (tmp_path / "t.db").read_bytes()
    with Store(url) as store:
        assert server.password not in repr([row.line() for row in store.rows()])


def test_builds_read_a_fleets_database(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """KDSL_DB may name a server; a look-up cannot write to it."""
    url = server.new()
    monkeypatch.setenv("KDSL_DB", url)
    assert default_place() == url
    key = Key(WORKLOAD, H100, TOOLS)
    assert lookup(key, legal=lambda config: None).rung == "rule"  # no tables yet: no error
    with Store() as store:
        store.add(*rows())
    assert lookup(key, legal=lambda config: None).rung == "exact"
    with Store(url, write=False) as store, pytest.raises(StoreError, match="only be read"):
        store.add(*rows(32))


def test_others_tables_are_left_alone(server: Server) -> None:
    """A database that holds something else, such as Optuna's tables, can be used; one whose table
    ``meta`` is somebody else's is refused and stays as it is."""
    url = server.new()
    server.ask("CREATE TABLE studies (x INT)", url.rpartition("/")[2])
    with Store(url) as store:
        store.add(*rows())
    other = server.new()
    server.ask("CREATE TABLE meta (key TEXT, value TEXT)", other.rpartition("/")[2])
    with pytest.raises(StoreError, match="no tuning database"):
        Store(other)


def test_first_starts_at_once(server: Server) -> None:
    """Many that open a new database at the same time make its tables once."""
    url, faults = server.new(), []

    def start(n: int) -> None:
        try:
            with Store(url) as store:
                store.add(*written(str(n), 0))
        except KdslError as error:
            faults.append(error)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with Store(url) as store:
        assert len(list(store.values("measurement"))) == 8


def test_writers_in_each_others_way(server: Server) -> None:
    """Several that add the same rows in opposite orders do not lock each other out."""
    url, faults = server.new(), []
    every = [row for n in range(12) for row in written("same", n)]
    Store(url).close()

    def add(order: int) -> None:
        try:
            with Store(url) as store:
                store.add(*every[::order])
        except KdslError as error:
            faults.append(error)

    threads = [threading.Thread(target=add, args=(1 - 2 * (n % 2),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with Store(url) as store:
        assert set(store.rows()) == set(every)


def test_pruning_while_others_write(server: Server) -> None:
    """Rows that are added during a pruning are all there afterwards, with what they refer to."""
    url = server.new()
    with Store(url) as store:
        for n in range(40):
            store.add(*written("old", n))
        command = [sys.executable, "-m", "tests.autotune.writer", "count", url, "new", "100000"]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                writer.stdout.readline()
                prune(store, older_days=0, keep=1, apply=True)
            writer.send_signal(signal.SIGTERM)
            writer.communicate()
        store.add(*written("after", 0))
        store.link.fetch("SELECT 1")
        stored = {row["id"] for row in store.values("candidate")}
        assert {row["candidate_id"] for row in store.values("measurement")} == stored


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where psycopg is not installed the error says how to get it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UnsupportedError, match="needs psycopg") as caught:
        Store("postgresql://user:hunter2@host/name")
    assert caught.value.hint == "pip install 'kdsl-kernels[postgres]'"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://a:b@h:1/d?password=c", "postgresql://a:***@h:1/d"),
        ("postgres://a@h/d", "postgresql://a@h/d"),
        ("postgresql:///d?host=/run&password=c", "postgresql:///d"),
        ("postgresql://a:b@h:port/d", "postgresql://***"),
    ],
)
def test_what_a_url_is_shown_as(url: str, said: str) -> None:
    """User, host and name help; passwords and options go."""
    assert postgres.shown(url) == said


def test_dialects() -> None:
    """One text serves both: marks become the server's, and its own sign is kept."""
    text = "SELECT 5 % 2 FROM t WHERE x = ? AND y = ?"
    assert link.sql(text) == text
    assert link.sql(text, "postgresql") == "SELECT 5 %% 2 FROM t WHERE x = %s AND y = %s"
