"""Host overhead of an eager call: wall time of a thousand calls that nobody waits for.

Where a GPU is, launches are real, and so small that the GPU keeps up.  Elsewhere the driver is made
up (`benchmarks.made_up`): all is there but what CUDA does in a launch and in making outputs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks import made_up
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
        if target is None:
            with made_up.gpu(op, template):
                op(q, k, v)
        # Bound now: the loop goes on.
        yield template, target is not None, measured(
            lambda op=op, q=q, k=k, v=v: op(q, k, v), calls, rounds
        )  # fmt: skip


def _operator(backend: str, template: str, *, stubbed: bool) -> AttentionOperator:
    assert BACKENDS[template] == backend
    target = get("h100") if stubbed else device_target()
    return AttentionOperator(spec(), target, backend, CONFIGS.get(template), "off", here=True)


def main() -> int:
    """Print what was measured."""
    for template, real, us in report():
        how = "launched" if real else "the driver is made up: no GPU here"
        print(f"{template:10} {us:7.1f} us a call, {CALLS} calls without waiting ({how})")
    return 0
