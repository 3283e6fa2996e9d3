"""Profiles, markers, and the guard over the names of the mounted rooms."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from tests import postgres

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"autotune", "kernels", "parallel", "reference", "tuning_db"}
# Running the tuner loads these two, and neither holds any code of the house.
DOOR = {"autotune", "autotune.__main__"}

CI = bool(os.environ.get("CI"))
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if CI else "dev")
for name, examples, fixed in (("dev", 50, False), ("ci", 50, True), ("nightly", 2000, False)):
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=fixed,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(PROFILE)


def pytest_report_header() -> list[str]:
    """Which examples run, and loudly what cannot be tested here."""
    lines = [f"hypothesis profile: {PROFILE} (HYPOTHESIS_PROFILE=dev, ci, nightly)"]
    reason = postgres.why_not()
    if reason:
        lines.append(f"!!! tests on PostgreSQL {'FAIL' if CI else 'ARE SKIPPED'}: {reason}")
    return lines


AT_NIGHT = ("sm_86", "sm_89", "sm_120")
"""Architectures that samples are compiled for in the nightly profile alone, unless named with
others: the kernels are those of sm_80, sm_90 and sm_100 but for their limits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine or this profile cannot run, with the reason."""
    if PROFILE != "nightly":
        skip = pytest.mark.skip(reason="takes minutes: HYPOTHESIS_PROFILE=nightly runs it")
        for item in items:
            rare = getattr(item, "callspec", None) and item.callspec.id in AT_NIGHT
            if item.get_closest_marker("slow") or rare:
                item.add_marker(skip)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and (reason := _no_gpu()):
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str:
    """Why GPU tests cannot run here; empty where they can."""
    try:
        import torch
    except ImportError:
        return "needs a CUDA GPU: torch is not installed"
    if not torch.cuda.is_available():
        return f"needs a CUDA GPU: torch {torch.__version__} sees none"
    return ""


@pytest.fixture(scope="session", autouse=True)
def rooms_have_one_name() -> Iterator[None]:
    """No module of the house is loaded under a second, top-level name when the session ends.

    One file under two names would register its torch ops twice, in silence.
    """
    yield
    doubled = sorted(name for name, module in list(sys.modules.items()) if _is_double(name, module))
    assert not doubled, f"import these as kdsl.<name>: {', '.join(doubled)}"


def _is_double(name: str, module: ModuleType | None) -> bool:
    if name.partition(".")[0] not in ROOMS or name in DOOR:
        return False
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place and Path(place).resolve().is_relative_to(ROOT) for place in places)
