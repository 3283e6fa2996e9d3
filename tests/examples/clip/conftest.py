"""The shipped clip, calibrated once: as the example runs it, and small enough to check by hand."""

from __future__ import annotations

import pytest

from examples.clip.calibrate import Calibration, calibrate
from examples.clip.heads import Projected, project
from examples.clip.video import Clip, load
from kdsl.calibrate import Settings
from kdsl.grid import Grid

SMALL = Grid(frames=5, height=6, width=7)  # 210 tokens: 13 blocks of 16 and 2 tokens


@pytest.fixture(scope="session")
def clip() -> Clip:
    """The shipped clip on the example's own grid."""
    return load()


@pytest.fixture(scope="session")
def made(clip: Clip) -> Projected:
    """Its heads."""
    return project(clip.features, clip.grid)


@pytest.fixture(scope="session")
def found(clip: Clip, made: Projected) -> Calibration:
    """Their calibration, with the settings of the example."""
    return calibrate(made.q, made.k, clip.grid, tuple(head.name for head in made.heads))


@pytest.fixture(scope="session")
def small_clip() -> Clip:
    """The shipped clip on 210 tokens."""
    return load(grid=SMALL)


@pytest.fixture(scope="session")
def small_made(small_clip: Clip) -> Projected:
    """Its heads."""
    return project(small_clip.features, SMALL)


@pytest.fixture(scope="session")
def small_found(small_made: Projected) -> Calibration:
    """Their calibration in ragged blocks of 16 x 32, every block row looked at."""
    names = tuple(head.name for head in small_made.heads)
    return calibrate(small_made.q, small_made.k, SMALL, names, Settings(block=(16, 32), every=1))
