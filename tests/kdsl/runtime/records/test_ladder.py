"""The look-up ladder: one case a rung, with the exact words it explains itself in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from kdsl.errors import ConfigError, ConfigNotFound
from kdsl.runtime.records import (
    Candidate,
    Device,
    Found,
    Key,
    Measurement,
    MemorySource,
    Row,
    Run,
    Toolchain,
    Workload,
    lookup,
)

RUN = Run(started="2026-01-01T00:00:00+00:00")
H100 = Device(name="h100", cc=90, sms=132, power_cap_w=700)
TOOLS = Toolchain(kdsl="0.1", template_hash="t1", triton="3.9.0")
DEFAULT = {"block_q": 128}


def _workload(tokens: int = 32_768, density: float = 0.1, **fields: Any) -> Workload:
    given: dict[str, Any] = {
        "op": "attention",
        "program": "p1",
        "dtypes": {"q": "bfloat16"},
        "dims": {"tokens": tokens, "head_dim": 128},
        "mask_stats": {"density": density},
    }
    return Workload(**{**given, **fields})


KEY = Key(_workload(), H100, TOOLS)


def _row(key: Key, block_q: int, median: float = 800.0, **fields: Any) -> list[Row]:
    """A measurement with all that it refers to; its own row comes last."""
    candidate = Candidate(space_hash=fields.pop("space", "s1"), params={"block_q": block_q})
    kind = fields.pop("kind", "measured")
    near = {"ci_lo_us": median - 1, "ci_hi_us": median + 1} if kind == "measured" else {}
    row = Measurement(
        workload_id=key.workload.id,
        device_id=key.device.id,
        toolchain_id=key.toolchain.id,
        candidate_id=candidate.id,
        run_id=RUN.id,
        **{"kind": kind, "status": "ok", "created": "", "median_us": median, **near, **fields},
    )
    return [*key, RUN, candidate, row]


def _ask(*rows: Iterable[Row], key: Key = KEY, **options: Any) -> Found:
    source = MemorySource(row for some in rows for row in some)
    given: dict[str, Any] = {"legal": lambda config: None, "default": DEFAULT, **options}
    return lookup(key, sources=[source], **given)


def _short(rows: list[Row]) -> str:
    return rows[-1].id[:8]


def test_given() -> None:
    """A configuration of the caller's is taken before anything else is asked, once it is legal."""
    found = _ask(_row(KEY, 64), given={"block_q": 32})
    assert (found.rung, found.source, found.config) == ("given", "given", {"block_q": 32})
    assert found.explain() == "given      taken, as the caller gave it"
    with pytest.raises(ConfigError, match="the configuration that was given cannot be used: no"):
        _ask(given={"block_q": 32}, legal=lambda config: "no")


def test_exact() -> None:
    """The best measured row of this key on this GPU by these tools."""
    best, other = _row(KEY, 64, 800.0), _row(KEY, 32, 900.0)
    found = _ask(other, best)
    assert (found.rung, found.source, found.config) == ("exact", "measured", {"block_q": 64})
    assert (found.expected_us, found.interval_us) == (800.0, (799.0, 801.0))
    assert (found.row_id, found.device, found.distance) == (best[-1].id, "h100", 0.0)
    assert found.explain().splitlines() == [
        "given      no configuration was given",
        f"exact      taken: row {_short(best)}, 800.0 us [799.0, 801.0] on h100",
    ]


def test_exact_by_bucket() -> None:
    """Another size in the same bucket is the same key, and the line says how far it is."""
    row = _row(Key(_workload(32_760), H100, TOOLS), 64, is_default=True)
    found = _ask(row, key=Key(_workload(36_000), H100, TOOLS))
    assert found.rung == "exact"
    assert found.distance == pytest.approx(math.log2(36_000 / 32_760))
    assert found.lines[-1] == (
        f"exact      taken: row {_short(row)}, 800.0 us [799.0, 801.0] on h100, the default, "
        "0.14 octaves away (tokens 36000 here, 32760 there)"
    )


def test_exact_prefers_this_very_workload() -> None:
    """Of several workloads in one bucket the one asked for counts, not the fastest."""
    near, this = _row(Key(_workload(32_760), H100, TOOLS), 32, 1.0), _row(KEY, 64, 800.0)
    assert _ask(near, this).config == {"block_q": 64}


def test_soft() -> None:
    """Other versions or another power cap: still measured, and each difference is named."""
    older = Toolchain(kdsl="0.0", template_hash="t0", triton="3.6.0")
    two = _row(Key(_workload(), H100, older), 32)
    capped = Device(name="h100", cc=90, sms=132, power_cap_w=500)
    one = _row(Key(_workload(), capped, TOOLS), 64)
    found = _ask(one, two)
    assert (found.rung, found.source, found.config) == ("soft", "measured*", {"block_q": 64})
    assert found.lines[1:] == (
        "exact      no measured row with this key on h100 by these tools",
        f"soft       taken: row {_short(one)}, 800.0 us [799.0, 801.0] on h100; "
        "power_cap_w was 500.0, is 700.0",
    )
    assert _ask(two).lines[-1].endswith("; template_hash was t0, is t1; triton was 3.6.0, is 3.9.0")


def test_nearest() -> None:
    """A neighbour within one octave in all, the nearest of several."""
    near = _row(Key(_workload(49_152), H100, TOOLS), 64)
    far = _row(Key(_workload(65_536), H100, TOOLS), 32)
    found = _ask(far, near)
    assert (found.rung, found.source, found.config) == ("nearest", "measured~", {"block_q": 64})
    assert found.lines[2:] == (
        "soft       no measured row with this key on h100 by other tools or under another power "
        "cap",
        f"nearest    taken: row {_short(near)}, 800.0 us [799.0, 801.0] on h100, 0.58 octaves away "
        "(tokens 32768 here, 49152 there)",
    )
    assert _ask(far).config == {"block_q": 32}
    assert _ask(_row(Key(_workload(65_537), H100, TOOLS), 32)).rung == "rule"
    assert _ask(far, limit=0.5).rung == "rule"


def test_nearest_counts_the_mask() -> None:
    """The same size with another density is a neighbour, not the same key."""
    found = _ask(_row(Key(_workload(density=0.2), H100, TOOLS), 64))
    assert (found.rung, found.distance) == ("nearest", 0.5)
    assert _ask(_row(Key(_workload(density=0.9), H100, TOOLS), 64)).rung == "rule"


def test_nearest_between_fences() -> None:
    """Neighbours on both sides that disagree: if the default won at one, it is taken."""
    below = _row(Key(_workload(20_000), H100, TOOLS), 128, is_default=True)
    above = _row(Key(_workload(49_152), H100, TOOLS), 64)
    found = _ask(below, above)
    assert found.config == {"block_q": 128}
    assert found.distance == pytest.approx(math.log2(32_768 / 20_000))
    assert found.lines[-1] == (
        f"nearest    taken: row {_short(below)}, 800.0 us [799.0, 801.0] on h100, the default, "
        "which won on one side of this size and lost on the other, 0.71 octaves away "
        "(tokens 32768 here, 20000 there)"
    )
    nobody = _row(Key(_workload(20_000), H100, TOOLS), 32)
    assert _ask(nobody, above).config == {"block_q": 64}
    same = _row(Key(_workload(20_000), H100, TOOLS), 64, is_default=True)
    assert "lost on the other" not in _ask(same, above).explain()


def test_same_capability() -> None:
    """Another GPU of the same compute capability, the one most like this first."""
    h200 = Device(name="h200", cc=90, sms=132)
    pcie = Device(name="h100-pcie", cc=90, sms=114)
    like, other = _row(Key(_workload(), h200, TOOLS), 64), _row(Key(_workload(), pcie, TOOLS), 32)
    found = _ask(other, like)
    assert (found.rung, found.source, found.device) == ("same-cc", "measured^", "h200")
    assert found.lines[3:] == (
        "nearest    no measured row on h100 within 1 octaves",
        f"same-cc    taken: row {_short(like)}, 800.0 us [799.0, 801.0] on h200; "
        "name was h200, is h100",
    )
    a100 = Device(name="a100", cc=80, sms=108)
    assert _ask(_row(Key(_workload(), a100, TOOLS), 64)).rung == "rule"


def test_a_slice_is_another_gpu() -> None:
    """What was measured on a whole card does not pass as measured on a slice of it."""
    slice_ = Device(name="h100", cc=90, sms=60, mig="3g.40gb")
    assert _ask(_row(KEY, 64), key=Key(_workload(), slice_, TOOLS)).rung == "same-cc"


def test_predicted() -> None:
    """A prediction for this GPU, template and space, and only after every measured row."""
    guess = _row(KEY, 64, 700.0, kind="predicted", extra={"typical_error": 1.2})
    found = _ask(guess, space_hash="s1")
    assert (found.rung, found.source, found.config) == ("predicted", "predicted", {"block_q": 64})
    assert found.lines[4:] == (
        "same-cc    no measured row on another GPU of compute capability 9.0",
        f"predicted  taken: row {_short(guess)}, 700.0 us, typical error 1.20x",
    )
    assert _ask(guess, space_hash="s2").rung == "rule"
    assert _ask(guess, mode="nearest").rung == "rule"
    assert _ask(guess, key=KEY._replace(toolchain=Toolchain(kdsl="0.1"))).rung == "rule"
    h200 = Device(name="h200", cc=90, sms=132)
    assert _ask(guess, _row(Key(_workload(), h200, TOOLS), 32, 9e9)).rung == "same-cc"
    wrong = _row(
        KEY, 64, status="wrong", reason="off", median_us=None, ci_lo_us=None, ci_hi_us=None
    )
    assert _ask(guess, wrong).rung == "rule"


def test_a_bound_is_worth_less_than_the_rule() -> None:
    """A prediction that nothing measured stands behind gives way to the built-in default, and is
    taken where there is none."""
    guess = _row(KEY, 64, 700.0, kind="predicted")
    found = _ask(guess)
    assert (found.rung, found.config) == ("rule", DEFAULT)
    assert "predicted  passed over: never calibrated on such a card" in found.explain()
    assert "no prediction" not in found.explain()
    alone = lookup(KEY, legal=lambda c: None, sources=[MemorySource(guess)])
    assert (alone.rung, alone.config) == ("predicted", {"block_q": 64})
    assert alone.lines[-1].endswith("700.0 us, never calibrated on such a card")


def test_predictions_of_a_calibration() -> None:
    """A prediction says how far off its like were, and the newest calibration speaks."""
    old, new = (
        _row(
            KEY._replace(
                toolchain=Toolchain(kdsl="0.1", template_hash="t1", extra={"model": name})
            ),
            block_q,
            700.0,
            kind="predicted",
            created=created,
            extra={"typical_error": 1.234},
        )
        for name, block_q, created in (("a", 32, "2026-01-02"), ("b", 64, "2026-01-03"))
    )
    for rows in ((old, new), (new, old)):
        found = _ask(*rows)
        assert (found.rung, found.config) == ("predicted", {"block_q": 64})
        assert found.lines[-1].endswith("700.0 us, typical error 1.23x")


def test_rule() -> None:
    """Nothing fits: the default, and the nearest row with what differs, field by field."""
    a100 = Device(name="a100", cc=80, sms=108)
    row = _row(Key(_workload(65_536, program="p2"), a100, TOOLS), 64)
    found = _ask(row)
    assert (found.rung, found.source, found.config) == ("rule", "default", DEFAULT)
    assert found.explain().splitlines() == [
        "given      no configuration was given",
        "exact      no measured row with this key on h100 by these tools",
        "soft       no measured row with this key on h100 by other tools or under another power "
        "cap",
        "nearest    no measured row on h100 within 1 octaves",
        "same-cc    no measured row on another GPU of compute capability 9.0",
        "predicted  no prediction for h100 of this template and space",
        f"nearest row {_short(row)}, measured on a100, differs in",
        "  field       wanted  row",
        "! program     p1      p2",
        "! capability  90      80",
        "~ tokens      32768   65536",
        "~ name        h100    a100",
        "~ sms         132     108",
        "rule       taken: the built-in default",
    ]
    assert _ask().lines[-2] == "no row of attention at all"
    nothing = _ask(default=None)
    assert (nothing.config, nothing.lines[-1]) == (None, "rule       left to the caller")
    with pytest.raises(ConfigError, match="the built-in default cannot be used: too big"):
        _ask(legal=lambda config: "too big")


def test_off_asks_nothing() -> None:
    """Mode off goes straight to the rule, and does not even open a database."""
    found = lookup(KEY, legal=lambda config: None, default=DEFAULT, mode="off", sources=None)
    assert found.lines[1:] == (
        'exact      not asked: mode "off"',
        "rule       taken: the built-in default",
    )
    with pytest.raises(ConfigError, match="no mode 'on'"):
        _ask(mode="on")


def test_strict_raises_with_the_difference() -> None:
    """Strict takes this key alone; a miss shows the nearest row field by field."""
    row = _row(Key(_workload(), H100, Toolchain(kdsl="0.1", triton="3.6.0")), 64)
    with pytest.raises(ConfigNotFound) as caught:
        _ask(row, mode="strict")
    assert str(caught.value).splitlines() == [
        "no measured configuration for this attention on h100",
        "  in  exact      no measured row with this key on h100 by these tools",
        f"      nearest row {_short(row)}, measured on h100, differs in",
        "        field   wanted  row",
        "      ~ triton  3.9.0   3.6.0",
        "  try python -m autotune --gpu h100 --spec my.json, where my.json holds "
        'json.dumps(spec.to_json()); or mode="nearest"',
    ]
    assert _ask(_row(KEY, 64), mode="strict").rung == "exact"


def test_illegal_rows_give_way() -> None:
    """Each candidate is checked again; a refused one gives way to the next, then the next rung."""
    best, other = _row(KEY, 64, 800.0), _row(KEY, 32, 900.0)
    found = _ask(best, other, legal=lambda c: "needs 300 KiB" if c["block_q"] == 64 else None)
    assert found.config == {"block_q": 32}
    assert found.lines[1] == f"exact      row {_short(best)} refused: needs 300 KiB"
    many = [_row(KEY, 1 << n, 800.0 + 10 * n) for n in range(6)]
    guess = _row(KEY, 99, kind="predicted", extra={"typical_error": 1.2})
    found = _ask(*many, guess, legal=lambda c: None if c["block_q"] == 99 else "no")
    assert found.rung == "predicted"
    assert [line[:5] for line in found.lines].count("exact") == 3


def test_failures_and_wrong_rows_are_never_chosen() -> None:
    """Only sound outcomes count; a wrong one condemns its binary across sources."""
    failed = _row(KEY, 64, status="crash", reason="x", median_us=None, ci_lo_us=None, ci_hi_us=None)
    assert _ask(failed).rung == "rule"
    good = _row(KEY, 64, binary_hash="beef")
    other = Key(_workload(1_000), H100, TOOLS)
    wrong = _row(other, 64, status="wrong", reason="off", median_us=None, ci_lo_us=None,
                 ci_hi_us=None, binary_hash="beef")  # fmt: skip
    found = lookup(KEY, legal=lambda c: None, sources=[MemorySource(good), MemorySource(wrong)])
    assert found.rung == "rule"


def test_sources_are_one_pool() -> None:
    """Rows of two sources compete, and the same row in both counts once."""
    slow, fast = _row(KEY, 32, 900.0), _row(KEY, 64, 800.0)
    sources = [MemorySource(slow), MemorySource([*slow, *fast])]
    found = lookup(KEY, legal=lambda c: None, sources=sources)
    assert found.config == {"block_q": 64}
    assert lookup(KEY, legal=lambda c: None, sources=sources[::-1]) == found
    lucky, usual = _row(KEY, 64, 1.0), _row(KEY, 64, 5.0)
    sources = [MemorySource(usual), MemorySource([*usual, *lucky])]
    assert lookup(KEY, legal=lambda c: None, sources=sources).expected_us == 1.0
