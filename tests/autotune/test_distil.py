"""Rules from measured rows, and the file that they become."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdsl.autotune.distil import Leaf, rules, source, tree
from kdsl.autotune.distil.tree import Branch, Example
from kdsl.autotune.recordings import Recording, read, recordings
from kdsl.autotune.search.space import point
from kdsl.kernels.attention import distilled as committed
from kdsl.kernels.attention.tunable import AttentionTunable

A, B, C = ({"x": n} for n in (1, 2, 3))
Choose = Callable[[dict[str, Any]], dict[str, Any] | None]


def example(name: str, density: float, **losses: float) -> Example:
    """A recording with losses of configurations a, b, c."""
    by_name = {"a": A, "b": B, "c": C}
    held = {point(by_name[k]): v for k, v in losses.items()}
    return Example(name, {"density": density}, held, 1.5)


def loaded(text: str, folder: Path) -> Choose:
    """The function of a generated file."""
    path = folder / "made.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("made_for_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    choose: Choose = module.distilled
    return choose


def test_a_leaf_avoids_the_worst() -> None:
    """The configuration whose worst loss is least wins, though another has more firsts; what was
    not measured everywhere does not count."""
    examples = [
        example("1", 0.1, a=1.0, b=1.05, c=1.0),
        example("2", 0.2, a=1.0, b=1.05, c=1.0),
        example("3", 0.3, a=1.5, b=1.0),
    ]
    leaf = tree._leaf(examples)
    assert leaf is not None
    assert leaf.params == B
    assert leaf.losses == (1.05, 1.05, 1.0)
    assert tree._leaf([example("1", 0.1, a=1.0), example("2", 0.1, b=1.0)]) is None


def test_a_split_has_to_be_worth_it() -> None:
    """Two configurations that lose much on each other's side are told apart between the densities;
    a gain within the noise makes no split."""
    far = [example("1", 0.1, a=1.0, b=1.3), example("2", 0.4, a=1.3, b=1.0)]
    grown = tree._grow(far, 2)
    assert isinstance(grown, Branch)
    assert (grown.fact, grown.threshold) == ("density", 0.2)
    assert [leaf.params for leaf in grown.leaves] == [A, B]
    near = [example("1", 0.1, a=1.0, b=1.01), example("2", 0.4, a=1.01, b=1.0)]
    assert isinstance(tree._grow(near, 2), Leaf)
    assert isinstance(tree._grow(far, 0), Leaf)


def test_the_file_answers_as_the_rules_do(found: list[Recording], tmp_path: Path) -> None:
    """Run from its text, the file gives each recording its leaf's choice, whose recorded loss
    is what the header promises at worst, and never above the hand-written rule's worst."""
    made = rules(found)
    choose = loaded(source("attention", made, [i for r in found for i in r.row_ids]), tmp_path)
    losses = []
    for recording in found:
        tunable = recording.job.tunable
        params = choose(dict(tunable.facts(recording.target)))
        assert params is not None
        assert tunable.legal(params, recording.target) is None
        loss = recording.regret(params)
        assert loss is not None
        losses.append(loss)
    promised = [loss for rule in made for loss in rule.losses]
    assert sorted(losses) == pytest.approx(sorted(promised), rel=1e-12)
    assert max(losses) <= max(w for rule in made for w in rule.written if math.isfinite(w))
    assert f"WORST_LOSS: float | None = {max(losses):.3f}" in (tmp_path / "made.py").read_text()


def test_outside_of_the_rows_nothing_is_said(found: list[Recording], tmp_path: Path) -> None:
    """Another capability, dtype, size, density or mask that is not known: the written rule."""
    recording = found[-1]
    choose = loaded(source("attention", rules([recording]), recording.row_ids), tmp_path)
    facts = dict(recording.job.tunable.facts(recording.target))
    assert choose(facts) is not None
    for name, value in (
        ("cc", 80), ("dtype", "float16"), ("head_dim", 64), ("block_q", 64), ("in_order", 0),
        ("queries", 4 * facts["queries"]), ("density", facts["density"] * 2),
        ("partial_share", 0.9),
    ):  # fmt: skip
        assert choose({**facts, name: value}) is None, name
    assert choose({k: v for k, v in facts.items() if k != "density"}) is None


def test_the_order_of_rows_does_not_matter(found: list[Recording]) -> None:
    """The same recordings in any order give the same file, byte by byte."""
    ids = [i for r in found for i in r.row_ids]
    one = source("attention", rules(found), ids)
    assert source("attention", rules(found[::-1]), ids[::-1]) == one
    assert source("attention", rules(found[:2]), ids) != one


def test_the_committed_file_comes_from_the_shipped_rows() -> None:
    """What stands in the repository is what the command writes from what is shipped."""
    found = [r for r in recordings(read(own=False))[0] if r.job.tunable.op == "attention"]
    text = source("attention", rules(found), [i for r in found for i in r.row_ids])
    assert Path(committed.__file__).read_text() == text


def test_the_default_asks_the_file(found: list[Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    """A distilled configuration becomes the default where it is legal; an illegal one, and none,
    give way to the written rule."""
    from kdsl.kernels.attention import tunable as module

    recording = found[0]
    tunable, target = recording.job.tunable, recording.target
    assert isinstance(tunable, AttentionTunable)
    written = tunable.written_default(target)
    best = dict(min(recording.times, key=lambda at: recording.times[at]))
    assert best != written
    for answer, wanted in ((best, best), (None, written), ({**best, "block_m": 128}, written)):
        monkeypatch.setattr(module, "distilled", lambda facts, answer=answer: answer)
        assert tunable.default(target) == wanted
