"""The ladder a look-up goes down, and what it says on every rung.

``given > exact > soft > nearest > same-cc > predicted > rule``. A rung that is not taken says why;
nothing below the one that is taken is looked at. Measured and predicted rows never compete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kdsl.errors import ConfigError, ConfigNotFound
from kdsl.runtime.records import keys
from kdsl.runtime.records.form import Scalar
from kdsl.runtime.records.groups import Group, fence, gather, on_rung
from kdsl.runtime.records.keys import Key
from kdsl.runtime.records.select import Standing
from kdsl.runtime.records.sources import Source, default_sources

Config = Mapping[str, Scalar]
Legal = Callable[[Config], str | None]
Mode = Literal["off", "strict", "nearest", "predict", "now"]
Rung = Literal["given", "exact", "soft", "nearest", "same-cc", "predicted", "rule"]
_SOURCE = {"given": "given", "exact": "measured", "soft": "measured*", "nearest": "measured~",
           "same-cc": "measured^", "predicted": "predicted", "rule": "default"}  # fmt: skip
_MEASURED: tuple[Rung, ...] = ("exact", "soft", "nearest", "same-cc")
_RUNGS: Mapping[str, tuple[Rung, ...]] = {
    "off": (),
    "strict": ("exact",),
    "nearest": _MEASURED,
    "predict": (*_MEASURED, "predicted"),
    "now": (*_MEASURED, "predicted"),
}
_EMPTY = {
    "exact": "no measured row with this key on {name} by these tools",
    "soft": "no measured row with this key on {name} by other tools or under another power cap",
    "nearest": "no measured row on {name} within {limit:g} octaves",
    "same-cc": "no measured row on another GPU of compute capability {cc}",
    "predicted": "no prediction for {name} of this template and space",
}


@dataclass(frozen=True)
class Found:
    """A configuration and where it comes from. Times in microseconds."""

    rung: Rung
    config: Config | None
    """None on rung ``rule`` if the caller gave no default."""
    lines: tuple[str, ...]
    """What each rung said, down to the one that was taken."""
    row_id: str = ""
    device: str = ""
    expected_us: float | None = None
    interval_us: tuple[float, float] | None = None
    distance: float = 0.0

    @property
    def source(self) -> str:
        """``measured``, with ``*``, ``~`` or ``^`` where it is not quite this; or another word."""
        return _SOURCE[self.rung]

    def explain(self) -> str:
        """The ladder as text."""
        return "\n".join(self.lines)


def lookup(
    key: Key,
    *,
    legal: Legal,
    default: Config | None = None,
    given: Config | None = None,
    mode: Mode = "predict",
    space_hash: str = "",
    sources: Iterable[Source] | None = None,
    limit: float = 1.0,
) -> Found:
    """The best known configuration for ``key``.

    ``legal`` says why a configuration cannot be used here, or None; every one is asked about before
    it is returned, and a refused one gives way to the next. ``default`` is the built-in rule's
    answer. ``limit`` bounds :func:`~kdsl.runtime.records.keys.distance`, 1 being one doubling in
    all. Predictions count only for the same template and, if given, ``space_hash``. ``sources``
    are the user's database and the shipped one unless given.

    ``mode``: ``off`` asks no database; ``strict`` takes measured rows of this very key or raises
    :class:`~kdsl.errors.ConfigNotFound` with the differences; ``nearest`` takes measured rows
    alone; ``predict`` goes all the way down, as does ``now``, whose caller measures if the answer's
    rung is not ``exact``. A ``given`` or ``default`` that is illegal raises
    :class:`~kdsl.errors.ConfigError`; an unreadable database :class:`~kdsl.errors.StoreError`.
    """
    if mode not in _RUNGS:
        raise ConfigError(f"no mode {mode!r}", hint=", ".join(get_args(Mode)))
    if given is not None:
        _insist(legal, given, "the configuration that was given")
        return Found("given", dict(given), (_line("given", "taken, as the caller gave it"),))
    lines = [_line("given", "no configuration was given")]
    if mode == "off":
        return _rule(default, legal, [*lines, _line("exact", 'not asked: mode "off"')])
    if sources is None:
        with default_sources() as opened:
            groups = gather(key, opened, limit)
    else:
        groups = gather(key, list(sources), limit)
    near = [g for g in groups if g.distance <= limit and g.key.device.cc == key.device.cc]
    for rung in _RUNGS[mode]:
        candidates = on_rung(rung, near, key, space_hash)
        if rung == "predicted" and default is not None:
            candidates = _calibrated(candidates, lines)
        found = _take(rung, candidates, key, legal, lines)
        if found is not None:
            return found
        if not candidates and not lines[-1].startswith(rung):
            cc = f"{key.device.cc // 10}.{key.device.cc % 10}"
            text = _EMPTY[rung].format(name=key.device.name, limit=limit, cc=cc)
            lines.append(_line(rung, text))
    miss = _miss(groups, key)
    if mode == "strict":
        raise ConfigNotFound(
            f"no measured configuration for this {key.workload.op} on {key.device.name}",
            where="\n      ".join([*lines[1:], *miss]),
            hint=f"python -m autotune --gpu {key.device.name} --spec my.json, where my.json holds "
            'json.dumps(spec.to_json()); or mode="nearest"',
        )
    return _rule(default, legal, lines + miss)


def _line(rung: str, text: str) -> str:
    return f"{rung:<10} {text}"


def _insist(legal: Legal, config: Config, what: str) -> None:
    reason = legal(config)
    if reason:
        raise ConfigError(f"{what} cannot be used: {reason}", where=str(dict(config)))


def _rule(default: Config | None, legal: Legal, lines: Sequence[str]) -> Found:
    if default is None:
        return Found("rule", None, (*lines, _line("rule", "left to the caller")))
    _insist(legal, default, "the built-in default")
    return Found("rule", dict(default), (*lines, _line("rule", "taken: the built-in default")))


def _calibrated(groups: Sequence[Group], lines: list[str]) -> list[Group]:
    """Predictions whose error is known: a bound alone ranks worse than the built-in rule does."""
    known = [g for g in groups if g.standings[0].trial.measurement.extra.get("typical_error")]
    if len(known) < len(groups):
        text = "passed over: never calibrated on such a card, the built-in rule knows better"
        lines.append(_line("predicted", text))
    return known


def _take(
    rung: Rung, groups: Sequence[Group], key: Key, legal: Legal, lines: list[str]
) -> Found | None:
    """The first legal candidate of the first group that has one; refusals are written down."""
    choices = [(group, standing, "") for group in groups for standing in group.standings]
    fenced = fence(groups[0], groups, key) if rung == "nearest" and groups else None
    if fenced is not None:
        choices.insert(0, (*fenced, ", which won on one side of this size and lost on the other"))
    for refused, (group, standing, note) in enumerate(choices):
        row, config = standing.trial.measurement, standing.trial.candidate.params
        reason = legal(config)
        if reason is None:
            lines.append(_line(rung, _described(group, standing, note, key)))
            place = (row.id, group.key.device.name, row.median_us, row.interval(), group.distance)
            return Found(rung, config, tuple(lines), *place)
        if refused < 3:
            lines.append(_line(rung, f"row {row.id[:8]} refused: {reason}"))
    return None


def _described(group: Group, standing: Standing, note: str, key: Key) -> str:
    row = standing.trial.measurement
    low, high = row.interval()
    text = f"taken: row {row.id[:8]}, {row.median_us:.1f} us"
    if row.kind == "measured":
        text += f" [{low:.1f}, {high:.1f}] on {group.key.device.name}"
    else:
        text += _reliability(row.extra.get("typical_error"))
    if standing.default:
        text += f", the default{note}"
    if group.key.workload.id != key.workload.id:
        text += f", {group.distance:.2f} octaves away{_apart(key, group.key)}"
    return "; ".join([text, *(f"{name} was {old}, is {new}" for name, new, old in group.changes)])


def _apart(key: Key, row: Key) -> str:
    """Sizes and statistics in which a row's workload is another one."""
    tools = {name for name, *_ in keys.changes(key, row)}
    found = [d for d in keys.differences(key, row) if d.field not in tools]
    parts = [f"{d.field} {d.wanted} here, {d.row} there" for d in found]
    return f" ({'; '.join(parts)})" if parts else ""


def _reliability(error: object) -> str:
    """How good predictions like this one were; rows of a newer version may say it otherwise."""
    if not isinstance(error, int | float):
        return ", never calibrated on such a card"
    return f", typical error {error:.2f}x"


def _miss(groups: Iterable[Group], key: Key) -> list[str]:
    """The nearest row, field by field."""
    tables = [(keys.differences(key, group.key), group) for group in groups]
    if not tables:
        return [f"no row of {key.workload.op} at all"]
    found, group = min(tables, key=lambda t: ([d.mark for d in t[0]].count("!"), len(t[0])))
    row = group.standings[0].trial.measurement
    head = f"nearest row {row.id[:8]}, {row.kind} on {group.key.device.name}, differs in"
    return [head, *keys.table(found)]
