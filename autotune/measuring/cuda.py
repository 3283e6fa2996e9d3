"""A real GPU, inside the measuring process."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from kdsl.autotune.measuring.device import Facts, Opening, Params, Vitals
from kdsl.autotune.measuring.vitals import Gauge
from kdsl.runtime import codecache
from kdsl.runtime.tunable import Runner
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import from_json
from kdsl.work import Check

HEAD_START_CYCLES = 800_000
"""A call: half a millisecond in which the GPU waits while calls are put into its queue."""


@dataclass(frozen=True)
class CudaCard:
    """The GPU that CUDA counts as ``index``."""

    index: int

    def make(self) -> CudaDevice:
        """The device."""
        return CudaDevice(self.index)


class CudaDevice:
    """Runs candidates through torch on one GPU."""

    def __init__(self, index: int) -> None:
        import torch

        self.torch: Any = torch
        torch.cuda.set_device(index)
        self.properties = torch.cuda.get_device_properties(index)
        self.gauge = Gauge(f"GPU-{self.properties.uuid}")
        # Twice the L2 cache, so that nothing of the last call is left in it.
        size = max(2 * int(self.properties.L2_cache_size), 64 << 20)
        self.flush = torch.empty(size // 4, dtype=torch.int32, device="cuda")
        self.runner: Runner | None = None
        self.seed = 0

    def facts(self) -> Facts:
        """What it is."""
        import triton

        return Facts(
            name=self.properties.name,
            card=self.gauge.uuid,
            driver=self.gauge.driver(),
            cuda=str(self.torch.version.cuda or ""),
            torch=str(self.torch.__version__),
            triton=triton.__version__,
            power_cap_w=self.gauge.power_cap_w(),
        )

    def open(self, opening: Opening) -> None:
        """Make the workload's inputs; what the last one held is given back first."""
        self.runner = None
        self.torch.cuda.empty_cache()
        spec = from_json(json.loads(opening.spec_json))
        tunable = tunable_for(spec, opening.tables, opening.batch, opening.op)
        self.runner = tunable.make_runner(self.torch.device("cuda"), codecache.load)
        self.seed = opening.seed
        self.torch.cuda.synchronize()

    @property
    def _runner(self) -> Runner:
        assert self.runner is not None, "no workload is open"
        return self.runner

    def start(self, params: Params) -> None:
        """The first call, which compiles."""
        self._runner.prepare(self._runner.families[0], self.seed)
        self._runner.run(params)
        self.torch.cuda.synchronize()

    def check(self, params: Params, turn: int) -> Check:
        """Check with fresh inputs of the families by turns, or after timing with those it had."""
        families = self._runner.families
        if turn < len(families):
            self._runner.prepare(families[turn], self.seed + turn)
        self._runner.poison()
        self._runner.run(params)
        return self._runner.check()

    def sample(self, params: Params, count: int) -> list[float]:
        """CUDA events around single calls, all queued before the first one runs."""
        event = self.torch.cuda.Event
        pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(count)]
        # Without a head start a slow launch would count as time of a short kernel.
        self.torch.cuda._sleep(HEAD_START_CYCLES * count)
        for begin, end in pairs:
            self.flush.zero_()
            begin.record()
            self._runner.run(params)
            end.record()
        self.torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]

    def vitals(self) -> Vitals:
        """Clock and temperature."""
        return self.gauge.vitals()

    def rest(self) -> None:
        """A few seconds without work."""
        time.sleep(3.0)


def describe_all() -> list[dict[str, Any]]:
    """What CUDA says of every GPU it sees, as plain values for `kdsl.targets.from_device`."""
    import torch

    out = []
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        names = (
            "name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size",
            "shared_memory_per_block_optin", "shared_memory_per_multiprocessor",
            "regs_per_multiprocessor", "max_threads_per_multi_processor", "memory_clock_rate",
            "memory_bus_width",
        )  # fmt: skip
        out.append({n: getattr(p, n) for n in names if hasattr(p, n)} | {"uuid": f"GPU-{p.uuid}"})
    return out


def answer(link: Any) -> None:
    """Process that lists the GPUs: sends `describe_all`, or why it cannot as text."""
    try:
        link.send(describe_all())
    except Exception as error:
        link.send(f"{type(error).__name__}: {error}")
