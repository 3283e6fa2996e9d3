"""The best of a group: ties break the same way everywhere."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kdsl.runtime.records import Candidate, Device, Measurement, Toolchain, Trial, ranked

DEVICE = Device(name="h100", cc=90, sms=132)
TOOLS = Toolchain(kdsl="0.1")


def _trial(name: str, median: float = 1.0, **fields: Any) -> Trial:
    candidate = Candidate(space_hash="s", params={"name": name})
    row = Measurement(
        workload_id="w",
        device_id=DEVICE.id,
        toolchain_id=TOOLS.id,
        candidate_id=candidate.id,
        run_id=fields.pop("run", "r"),
        **{"kind": "measured", "status": "ok", "created": "", "median_us": median, **fields},
    )
    return Trial(row, candidate, DEVICE, TOOLS)


def _wrong(name: str, **fields: Any) -> Trial:
    return _trial(name, status="wrong", reason="off by 1", median_us=None, **fields)


def _names(trials: list[Trial], condemned: tuple[str, ...] = ()) -> list[object]:
    return [s.trial.candidate.params["name"] for s in ranked(trials, condemned)]


def test_lowest_median_wins_without_overlap() -> None:
    """Intervals that do not meet leave the order to the medians."""
    fast = _trial("fast", 1.0, ci_lo_us=0.9, ci_hi_us=1.1)
    slow = _trial("slow", 1.3, ci_lo_us=1.2, ci_hi_us=1.4, is_default=True)
    assert _names([slow, fast]) == ["fast", "slow"]
    assert _names([]) == []


def test_ties_prefer_the_default_then_fewer_resources() -> None:
    """Overlapping intervals: default, shared memory, registers, shorter params, in this order."""
    span = {"ci_lo_us": 0.5, "ci_hi_us": 3.0}
    default = _trial("default", 1.5, **span, shared_bytes=900, is_default=True)
    small = _trial("small", 1.4, **span, shared_bytes=100, registers=90)
    fewer = _trial("fewer", 1.6, **span, shared_bytes=100, registers=80)
    unknown = _trial("unknown", 1.0, **span)
    longer = _trial("longer name", 1.0, **span)
    outside = _trial("outside", 3.5, ci_lo_us=3.1, ci_hi_us=4.0, is_default=True)
    trials = [outside, longer, unknown, small, fewer, default]
    assert _names(trials) == ["default", "fewer", "small", "unknown", "longer name", "outside"]


def test_runs_are_pooled_by_their_lower_median() -> None:
    """One lucky run does not win: a candidate stands by the middle of its runs."""
    lucky = [_trial("lucky", m, run=str(m)) for m in (0.5, 2.0, 2.1)]
    steady = [_trial("steady", m, run=str(m)) for m in (1.0, 1.1)]
    first, second = ranked(lucky + steady)
    assert (first.trial.measurement.median_us, first.runs) == (1.0, 2)
    assert (second.trial.measurement.median_us, second.runs) == (2.0, 3)


def test_who_was_timed_once_is_held_against_a_warm_card() -> None:
    """The fastest lose 10 % when they are timed again; one that was timed once in between does not
    pass them for that, one that was faster by more does, and each stands by what it measured."""
    again = [_trial("first", m, run=str(i)) for i, m in enumerate((10.0, 11.0, 11.1))]
    again += [_trial("second", m, run=str(i)) for i, m in enumerate((10.1, 11.5, 11.6))]
    assert _names([*again, _trial("once", 10.4)]) == ["first", "once", "second"]
    ranking = ranked([*again, _trial("once", 9.0)])
    assert [s.trial.candidate.params["name"] for s in ranking] == ["once", "first", "second"]
    assert ranking[0].trial.measurement.median_us == 9.0
    assert ranking[0].heat == 11.0 / 10.0
    assert [s.heat for s in ranking[1:]] == [1.0, 1.0]


def test_who_was_timed_once_is_not_tied() -> None:
    """Fewer resources decide among those that were timed again, not for one that was not."""
    span = {"ci_lo_us": 0.5, "ci_hi_us": 20.0}
    again = [_trial("first", 10.0, run=r, **span, shared_bytes=900) for r in "ab"]
    again += [_trial("second", 10.1, run=r, **span, shared_bytes=800) for r in "ab"]
    once = _trial("once", 10.2, **span, shared_bytes=1)
    assert _names([*again, once]) == ["second", "first", "once"]


def test_wrong_results_outrank_all_times() -> None:
    """A candidate that was ever wrong is out, and so is its binary elsewhere."""
    assert _names([_trial("a", 1.0), _trial("b", 2.0), _wrong("a")]) == ["b"]
    shared = {"binary_hash": "beef"}
    assert _names([_trial("a", 1.0, **shared), _wrong("c", **shared), _trial("b", 2.0)]) == ["b"]
    assert _names([_trial("a", 1.0, **shared), _trial("b", 2.0)], ("beef",)) == ["b"]
    assert _names([_trial("a", 1.0), _wrong("c")]) == ["a"]


@given(st.data())
def test_order_does_not_matter(data: st.DataObject) -> None:
    """Any order of the same rows gives the same ranking, with many ties among them."""
    times = st.sampled_from([1.0, 1.1, 2.0])
    trials = data.draw(
        st.lists(
            st.builds(
                lambda name, median, wide, run, default, shared: _trial(
                    name,
                    median,
                    run=run,
                    is_default=default,
                    shared_bytes=shared,
                    ci_lo_us=median - wide,
                    ci_hi_us=median + wide,
                ),
                st.sampled_from("abcd"),
                times,
                st.sampled_from([0.0, 0.5]),
                st.sampled_from("xy"),
                st.booleans(),
                st.sampled_from([None, 1, 2]),
            ),
            max_size=12,
            unique_by=lambda t: t.measurement.id,
        )
    )
    shuffled = data.draw(st.permutations(trials))
    assert ranked(trials) == ranked(shuffled)
