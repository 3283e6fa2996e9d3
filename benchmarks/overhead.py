"""Host overhead of an eager call: wall time of a thousand calls that nobody waits for.

Where a GPU is, launches are real, and so small that the GPU keeps up.  Elsewhere the launch is
stubbed, and what is left is our own part: checks, look-ups, outputs and arguments.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from kdsl import masks
from kdsl.kernels.attention.config import BACKENDS
from kdsl.runtime.attention import AttentionOperator
from kdsl.runtime.builder import device_target
from kdsl.specs import Attention
from kdsl.targets import get

CALLS, ROUNDS = 1000, 7
TEMPLATES = {"portable": "triton", "hopper": "gluon"}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "portable": {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 2,
                 "loads": "pointer"},
}  # fmt: skip


def spec() -> Attention:
    """Little work, so that a launch outlasts none of its calls."""
    return Attention(
        tokens=512, heads=2, head_dim=64, mask=masks.window(129), return_lse=True, block=(128, 128)
    )


def measured(call: Callable[[], Any], calls: int = CALLS, rounds: int = ROUNDS) -> float:
    """Median over rounds of the mean microseconds a call."""
    for _ in range(50):
        call()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - start) / calls * 1e6)
        _settle()
    return statistics.median(found)


def _settle() -> None:
    """Let the GPU catch up, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(calls: int = CALLS, rounds: int = ROUNDS) -> Iterator[tuple[str, bool, float]]:
    """(template, whether the launch is real, microseconds a call) of each template of this GPU."""
    import torch

    target = device_target()
    for template, backend in TEMPLATES.items():
        if target is not None and template == "hopper" and target.capability[0] != 9:
            continue
        op = _operator(backend, template, stubbed=target is None)
        shape = (1, 2, 512, 64)
        device = "cpu" if target is None else "cuda"
        q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
        # Bound now: the loop goes on.
        yield template, target is not None, measured(
            lambda op=op, q=q, k=k, v=v: op(q, k, v), calls, rounds
        )  # fmt: skip


def _operator(backend: str, template: str, *, stubbed: bool) -> AttentionOperator:
    assert BACKENDS[template] == backend
    target = get("h100") if stubbed else device_target()
    config = CONFIGS.get(template)
    op = AttentionOperator(spec(), target, backend, config, "off", here=True)
    if stubbed:
        op.modules[template] = SimpleNamespace(attention_forward=Stub(op, template))
        # The one check that a CPU tensor would not pass.
        op._check_device = _nothing  # type: ignore[method-assign]
    return op


class Stub:
    """A compiled kernel that is launched in no time."""

    def __init__(self, op: AttentionOperator, template: str) -> None:
        from kdsl.runtime import codecache

        self.arg_names = codecache.load(op.tunable.source_of(template)).attention_forward.arg_names
        self.kernel = SimpleNamespace(
            run=_nothing, function=0, packed_metadata=None, launch_metadata=_nothing
        )

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._run

    def _run(self, *arguments: Any, **named: Any) -> Any:
        return self.kernel


def _nothing(*arguments: Any) -> None:
    """What a stubbed launch does."""


def main() -> int:
    """Print what was measured."""
    for template, real, us in report():
        how = "launched" if real else "launch stubbed: no GPU here"
        print(f"{template:10} {us:7.1f} us a call, {CALLS} calls without waiting ({how})")
    return 0
