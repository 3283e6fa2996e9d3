"""Choosing an order and blocks for every head of the clip."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from rich.console import Console

from examples.clip import calibrate as cal
from examples.clip.axis_orders import ORDERS, stored_to_original
from examples.clip.calibrate import Calibration
from examples.clip.heads import HEADS, Projected
from examples.clip.tables import MARK, order_table
from kdsl.errors import InputError


def _printed(table: object, width: int = 120) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_heads_differ_in_the_order_that_suits_them(found: Calibration) -> None:
    """On the shipped clip at least two of the six orders win, so one order for all would lose."""
    assert len(set(found.orders)) >= 2
    one_for_all = min(np.mean([row[i].density for row in found.scores]) for i in range(len(ORDERS)))
    chosen = np.mean([min(s.density for s in row) for row in found.scores])
    assert chosen < 0.9 * one_for_all


def test_what_is_printed_is_the_table_of_six_orders(found: Calibration) -> None:
    """Each head's line shows its six densities in the header's order, the winner alone marked."""
    lines = _printed(order_table(found)).splitlines()
    header = next(line for line in lines if "FHW" in line)
    assert [word for word in header.split() if word in ORDERS] == list(ORDERS)
    for name, scores, order in zip(found.names, found.scores, found.orders, strict=True):
        line = next(line for line in lines if name in line.split())
        shown = [word for word in line.split() if "%" in word]
        wanted = [f"{s.density:.1%}" + (MARK if s.order == order else "") for s in scores]
        assert shown == wanted


def test_the_command_prints_that_table(capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m examples.clip.calibrate`` calibrates and prints it, within 80 columns."""
    cal.main(["--grid", "4", "5", "6", "--block", "16", "16"])
    printed = capsys.readouterr().out
    assert printed.count(MARK) == len(HEADS) + 1  # and once in the legend
    assert all(order in printed for order in ORDERS)
    assert "120 tokens" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_attention_is_peaked_but_not_a_single_token(found: Calibration) -> None:
    """As in video models: far below uniform entropy, far above one token, mass in few blocks."""
    uniform = math.log(found.grid.tokens)
    assert all(2.0 < entropy < 0.75 * uniform for entropy in found.entropy)
    assert min(found.held_by_best(0.3)) > 0.8
    assert all(0.05 < density < 0.7 for density in found.densities)


def test_blocks_hold_what_was_asked(found: Calibration) -> None:
    """Every block row keeps 95 % of its mass, and no block that it could do without."""
    held = (found.mass * found.blocks).sum(2)
    assert held.min() >= 0.95 - 1e-5
    lightest = np.where(found.blocks, found.mass, np.inf).min(2)
    assert ((held - lightest) < 0.95 + 1e-5).all()
    assert all(0.95 <= kept <= 1 for kept in found.retained)
    assert found.density == pytest.approx(np.mean(found.densities))


def test_chosen_blocks_cost_what_the_table_promised(found: Calibration) -> None:
    """The table's density, from one block row in four, is within 15 % of the full mask's."""
    for scores, order, density in zip(found.scores, found.orders, found.densities, strict=True):
        promised = next(s.density for s in scores if s.order == order)
        assert density == pytest.approx(promised, rel=0.15)


@pytest.mark.parametrize("head", [0, 1, len(HEADS) - 1])
def test_streaming_agrees_with_the_whole_map(
    head: int, small_made: Projected, small_found: Calibration
) -> None:
    """Scores and masses of a ragged small grid equal those of the map held in memory, reordered."""
    q, k = small_made.q[0, head].astype(np.float64), small_made.k[0, head].astype(np.float64)
    weights = np.exp(q @ k.T / 8)
    p = weights / weights.sum(1, keepdims=True)
    for score in small_found.scores[head]:
        index = stored_to_original(small_found.grid, score.order)
        stored = p[np.ix_(index, index)]
        blocks = [
            [stored[r : r + 16, c : c + 32] for c in range(0, 210, 32)] for r in range(0, 210, 16)
        ]
        mass = np.array([[block.sum() for block in row] for row in blocks])
        needed = [_fewest(row / row.sum(), 0.95) for row in mass]
        assert score.density == pytest.approx(np.mean(needed) / mass.shape[1], abs=0.011)
        sparse = np.mean([[(b < 1 / 210).mean() >= 0.9 for b in row] for row in blocks])
        assert score.sparse == pytest.approx(sparse, abs=0.011)
        rough = np.mean([[b.max() / b.mean() for b in row] for row in blocks])
        assert score.incoherence == pytest.approx(rough, rel=1e-3)
        if score.order == small_found.orders[head]:
            np.testing.assert_allclose(
                small_found.mass[head], mass / mass.sum(1, keepdims=True), atol=1e-5
            )
    picked = p[:: cal.ENTROPY_EVERY]
    entropy = -(picked * np.log(picked)).sum(1).mean()
    assert small_found.entropy[head] == pytest.approx(entropy, rel=1e-3)


def _fewest(row: np.ndarray, keep: float) -> int:
    """How few entries of ``row`` can sum to ``keep``, by trying every choice."""
    for count in range(len(row) + 1):
        if any(sum(some) >= keep - 1e-9 for some in combinations(row, count)):
            return count
    raise AssertionError(row)


def test_bad_input_is_named(small_made: Projected, small_found: Calibration) -> None:
    """Wrong shapes and impossible settings say what would work instead of failing in NumPy."""
    with pytest.raises(InputError, match=r"\[1, heads, 210, head_dim\]"):
        cal.calibrate(small_made.q[:, :, 1:], small_made.k[:, :, 1:], small_found.grid)
