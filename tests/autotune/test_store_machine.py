"""A machine of databases that are written, merged, exported, interrupted and opened again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kdsl.autotune.store import Store, export_jsonl, import_jsonl, merge
from kdsl.autotune.store.compare import compare
from kdsl.runtime.records import Row
from tests.autotune.test_store_laws import in_python, outcomes, ranking

NAMES = st.sampled_from(["a", "b", "c"])


class Interrupted(Exception):
    """A writer that is stopped."""


class Databases(RuleBasedStateMachine):
    """Three databases beside three sets of rows, which say what must be in them."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.stores = {name: Store(self.folder / name) for name in "abc"}
        self.model: dict[str, set[Row]] = {name: set() for name in "abc"}
        self.changed: set[str] = set()

    def _note(self, name: str, rows: set[Row]) -> None:
        self.model[name] |= rows
        self.changed.add(name)

    @rule(name=NAMES, rows=outcomes())
    def add(self, name: str, rows: tuple[Row, ...]) -> None:
        """A measurement with what it refers to, new or known."""
        self.stores[name].add(*rows)
        self._note(name, set(rows))

    @rule(into=NAMES, source=NAMES)
    def merge_a_into_b(self, into: str, source: str) -> None:
        """A database into another one, or into itself."""
        merge(self.stores[into], self.stores[source].place)
        self._note(into, self.model[source])

    @rule(into=NAMES, source=NAMES)
    def through_text(self, into: str, source: str) -> None:
        """The same through a JSONL file."""
        path = self.folder / "x.jsonl"
        export_jsonl(self.stores[source], path)
        assert import_jsonl(self.stores[into], path).problems == ()
        self._note(into, self.model[source])

    @rule(name=NAMES)
    def reopen(self, name: str) -> None:
        """Closed and opened again."""
        self.stores[name].close()
        self.stores[name] = Store(self.folder / name)

    @rule(name=NAMES, rows=outcomes(), before=st.integers(0, 8))
    def interrupt(self, name: str, rows: tuple[Row, ...], before: int) -> None:
        """Adding that is cut off before one of its statements: all of it is there, or none."""
        store, left = self.stores[name], iter(range(before))
        whole: Callable[..., int] = store.link.run

        def run(text: str, values: Any = ()) -> int:
            if next(left, None) is None and text != "ROLLBACK":
                raise Interrupted
            return whole(text, values)

        store.link.run = run  # type: ignore[method-assign]
        try:
            store.add(*rows)
        except Interrupted:
            pass
        else:
            self._note(name, set(rows))
        finally:
            store.link.run = whole  # type: ignore[method-assign]
        self.changed.add(name)

    @invariant()
    def rows_and_ranking_are_those_of_the_sets(self) -> None:
        """No row lost, none twice, none from nowhere; the ranking follows from the set alone."""
        for name in sorted(self.changed):
            stored = list(self.stores[name].rows())
            assert len(stored) == len(set(stored))
            assert set(stored) == self.model[name]
            assert ranking(self.stores[name]) == in_python(self.model[name])
        self.changed.clear()

    def teardown(self) -> None:
        """All merged in two orders, once by twos and once twice, is the union of the sets."""
        try:
            a, b, c = (self.stores[name].place for name in "abc")
            with Store(self.folder / "1") as one, Store(self.folder / "2") as two:
                for place in (a, b, c):
                    merge(one, place)
                with Store(self.folder / "inner") as inner:
                    for place in (c, b, c):
                        merge(inner, place)
                for place in (inner.place, a, a):
                    merge(two, place)
                union = self.model["a"] | self.model["b"] | self.model["c"]
                assert set(one.rows()) == set(two.rows()) == union
                assert ranking(one) == ranking(two)
                found = compare(one, two)
                assert found.same
                assert not found.disagreements
        finally:
            for store in self.stores.values():
                store.close()
            self._folder.cleanup()


TestDatabases = Databases.TestCase
TestDatabases.settings = settings(
    deadline=None, max_examples=max(settings.default.max_examples // 4, 1), stateful_step_count=20
)
