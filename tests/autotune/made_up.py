"""A machine that is made up: compiler, GPU and screen for tests of the tuner."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdsl import Attention, masks, targets
from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.compiling import Built
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.measuring.present import Present
from kdsl.autotune.search import Space
from kdsl.autotune.session.job import Job, make
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Tally
from kdsl.targets import Target
from kdsl.work import AheadOfTime

A100 = targets.get("a100")
H100 = targets.get("h100")
NAMES = {"BLOCK_M": "block_m", "BLOCK_N": "block_n"}
Params = Mapping[str, Any]


def small_spec(block: int = 64, tokens: int = 256) -> Attention:
    """Attention with 28 legal configurations on an A100 and 92 on an H100 (blocks of 64)."""
    return Attention(
        tokens=tokens,
        heads=2,
        head_dim=64,
        dtype="float16",
        mask=masks.causal(),
        block=(block, block),
    )


def small_job(block: int = 64) -> Job:
    """A job of it."""
    return make("small", small_spec(block), {})


def legal(job: Job, target: Target) -> int:
    """How many configurations a target can run of a job."""
    tunable = job.tunable
    return len(Space(tunable.space(target), lambda p: tunable.legal(p, target)).points or ())


def params_of(what: AheadOfTime) -> dict[str, Any]:
    """The configuration that a compile job came from."""
    constants = what.constants
    if "CONSUMERS" in constants:
        consumers, stages = constants["CONSUMERS"], constants["V_STAGES"]
        workers = 3 if what.options["maxnreg"] == 80 else 3 - consumers
        return {
            "template": "hopper",
            "block_m": 64 * consumers,
            "block_n": constants["BLOCK_N"],
            "num_warps": 4 * consumers,
            "num_stages": stages,
            "loads": "descriptor",
            "overlap": "early" if constants["EARLY"] else "late",
            "pingpong": constants["PINGPONG"],
            "workers": workers if constants["PERSISTENT"] else 0,
            "extra_keys": constants["K_STAGES"] - stages,
            "masks": "bits" if constants["BITS"] else "leaf",
        }
    return {
        "template": "portable",
        "overlap": "late",
        "pingpong": False,
        "workers": 0,
        "extra_keys": 0,
        "masks": "leaf",
        "block_m": constants["BLOCK_M"],
        "block_n": constants["BLOCK_N"],
        "num_warps": what.options["num_warps"],
        "num_stages": what.options["num_stages"],
        "loads": "descriptor" if constants["DESCRIBED"] else "pointer",
    }


class FakePool:
    """A compiler that takes no time; ``asked`` lists what it was given, ``broken`` what fails."""

    def __init__(
        self,
        broken: Callable[[Params], Built | None] = lambda params: None,
        seconds: float = 0.0,
        same: bool = False,
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.broken, self.seconds, self.same = broken, seconds, same
        self.done: dict[Hashable, Built] = {}
        self.dropped = 0

    def submit(
        self, key: Hashable, what: AheadOfTime, target: Target, *, patient: bool = False
    ) -> None:
        """Note it down."""
        params = params_of(what)
        self.asked.append(params)
        digest = "same" if self.same else hashlib.sha256(repr(sorted(params.items())).encode())
        built = Built(
            "ok",
            registers=64,
            spill_bytes=0,
            shared_bytes=8192,
            stack_bytes=0,
            warps=params["num_warps"],
            binary_hash=digest if isinstance(digest, str) else digest.hexdigest()[:32],
        )
        self.done[key] = self.broken(params) or built

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """What came of it."""
        if until is not None and time.monotonic() >= until:
            return None
        time.sleep(self.seconds)
        return self.done.pop(key)

    def drop(self, *, refill: bool = False) -> None:
        """Nothing runs."""
        self.dropped += 1

    def close(self) -> None:
        """Nothing runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing runs."""


class Quiet:
    """A screen that remembers; ``on_step`` may interfere."""

    def __init__(self, on_step: Callable[[Tally], None] = lambda tally: None) -> None:
        self.outcomes: list[Outcome] = []
        self.on_step = on_step

    def begin(self, tally: Tally) -> None:
        """Nothing to say."""

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """Remember."""
        self.outcomes.append(outcome)
        self.on_step(tally)

    def end(self, tally: Tally) -> None:
        """Nothing to say."""


class FakeHardware(Hardware):
    """A machine with a made-up GPU (``here`` by name, None: no GPU) and a made-up compiler."""

    def __init__(
        self, here: str | None = None, card: FakeCard | None = None, pool: Any = None
    ) -> None:
        self.here, self.fake, self.made = here, card or FakeCard(), pool or FakePool()

    def gpus(self, target: Target | None = None) -> list[Present]:
        """The GPU, if that one is asked for."""
        if self.here is None or target not in (None, targets.get(self.here)):
            return []
        return [Present(0, targets.get(self.here), "fake-card")]

    def card(self, found: Present) -> FakeCard:
        """The made-up card."""
        return self.fake

    def pool(self, jobs: int, environment: Mapping[str, str]) -> Any:
        """The made-up compiler."""
        return self.made


def write_spec(folder: Path, block: int = 64) -> Path:
    """The small spec as a file."""
    import json

    path = folder / "small.json"
    path.write_text(json.dumps(small_spec(block).to_json()))
    return path


@dataclass(frozen=True)
class Machine(Hardware):
    """A machine with several made-up GPUs of one model; travels to other processes.

    ``dies`` is a file that does not exist: the first process to compile makes it and is killed.
    ``ill`` are the GPUs that cannot be measured on. ``slow_s`` is what each compilation takes.
    ``node`` keeps the GPUs of several machines apart.
    """

    model: str = "a100"
    count: int = 2
    fake: FakeCard = field(default_factory=FakeCard)
    dies: Path | None = None
    ill: tuple[int, ...] = ()
    slow_s: float = 0.0
    node: str = ""

    def gpus(self, target: Target | None = None) -> list[Present]:
        """The GPUs, if they are asked for."""
        model = targets.get(self.model)
        if target not in (None, model):
            return []
        node = self.node or str(os.getpid())
        return [Present(n, model, f"fake-{node}-{n}") for n in range(self.count)]

    def card(self, found: Present) -> Any:
        """The made-up card, or one that cannot start."""
        return Broken() if found.index in self.ill else self.fake

    def pool(self, jobs: int, environment: Mapping[str, str]) -> Any:
        """A made-up compiler in this process."""
        return Deadly(self.dies, self.slow_s)


class Broken:
    """A card without a device."""

    def make(self) -> Any:
        """Fails."""
        raise RuntimeError("CUDA error: no CUDA-capable device is detected")


class Deadly(FakePool):
    """A compiler that kills the process it is in, once."""

    def __init__(self, marker: Path | None, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.marker = marker

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """What came of it, the fifth time."""
        if self.marker is not None and len(self.asked) > 8:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                return super().result(key, until)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().result(key, until)
