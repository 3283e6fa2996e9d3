"""Rules as a Python file that people can read, and that says what it rests on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

from kdsl.autotune.distil.tree import Branch, Leaf, Rule

_HEAD = '''\
"""Default configurations of {op}, distilled from measured rows. Generated: do not edit.

Written by ``python -m autotune distil``. {evidence}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVIDENCE = "{digest}"
"""Hash of the ids of all rows."""
WORST_LOSS: float | None = {worst}
"""The slowest choice on those rows, as a time over the best measured one."""


def distilled(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration for facts within what was measured, else None: then the written rule."""
'''


def source(op: str, found: Sequence[Rule], row_ids: Iterable[str]) -> str:
    """The file's text, the same for the same rows in any order."""
    ids = sorted(set(row_ids))
    losses = [loss for rule in found for loss in rule.losses]
    worst = f"{max(losses):.3f}" if losses else "None"
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32] if ids else ""
    text = _HEAD.format(op=op, evidence=_evidence(found, ids), digest=digest, worst=worst)
    if not found:
        return text + "    del facts\n    return None\n"
    for rule in found:
        text += _class(rule)
    text += "    return None\n"
    return text + _WITHIN


_WITHIN = '''

def _within(facts: Mapping[str, Any], name: str, low: float, high: float) -> bool:
    """Whether a fact is known and in a range."""
    return name in facts and low <= facts[name] <= high
'''


def _evidence(found: Sequence[Rule], ids: Sequence[str]) -> str:
    if not found:
        return "No rows so far, so the written rule decides."
    count = sum(len(rule.losses) for rule in found)
    return f"{len(ids)} rows of {count} workloads."


def _class(rule: Rule) -> str:
    lines = [f"    # {line}" for line in _comment(rule)]
    tests = [f"facts[{name!r}] == {value!r}" for name, value in rule.equal.items()]
    tests += [
        f"_within(facts, {name!r}, {_number(low)}, {_number(high)})"
        for name, (low, high) in rule.ranges.items()
    ]
    lines += ["    if (", f"        {tests[0]}"]
    lines += [f"        and {test}" for test in tests[1:]]
    lines += ["    ):", *_tree(rule.tree, 2)]
    return _quoted("\n".join(lines)) + "\n"


def _comment(rule: Rule) -> list[str]:
    """Workloads and losses of a class, wrapped."""
    names = sorted({name for leaf in rule.tree.leaves for name in leaf.names})
    written = [loss for loss in rule.written if math.isfinite(loss)]
    said = f"worst {max(rule.losses):.3f}x the best, mean {_mean(rule.losses):.3f}x"
    if written:
        said += f"; the written rule: worst {max(written):.3f}x, mean {_mean(written):.3f}x"
    return [*_wrapped("From " + ", ".join(names) + ":"), said + "."]


def _wrapped(text: str, width: int = 90) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _tree(tree: Leaf | Branch, depth: int) -> list[str]:
    pad = "    " * depth
    if isinstance(tree, Leaf):
        fields = [f"{pad}    {name!r}: {value!r}," for name, value in sorted(tree.params.items())]
        return [f"{pad}return {{", *fields, f"{pad}}}"]
    test = f"{pad}if facts[{tree.fact!r}] < {_number(tree.threshold)}:"
    return [test, *_tree(tree.below, depth + 1), *_tree(tree.above, depth)]


def _number(value: float) -> str:
    """To four digits, plain."""
    return repr(float(f"{value:.4g}"))


def _mean(losses: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, losses)) / len(losses))


def _quoted(text: str) -> str:
    """Double quotes, as the formatter has them; no value holds any."""
    return text.replace("'", '"')
