"""Recordings that nobody recorded: a made-up GPU with a cost model of its own, for tests alone.

The landscape is unlike the library's cost model on purpose: softmax and products overlap or not,
pipelines hide loads or not, spills hurt, every binary has a quirk that no model knows, times are
noisy and some candidates fail.  Its rows go into no database but a test's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from functools import cache
from typing import Any

from kdsl import targets
from kdsl.autotune.recordings import Held
from kdsl.autotune.search import Space
from kdsl.autotune.session import job as jobs
from kdsl.autotune.session.job import Job
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import keying
from kdsl.runtime.predict import Figures, Loading, finish
from kdsl.runtime.records import Candidate, Device, Key, Measurement, Row, Run
from kdsl.targets import Target
from kdsl.work import Work

KEYS: tuple[tuple[str, float | None], ...] = (
    ("wan2.1-1.3b-480p", 0.1),
    ("wan2.1-1.3b-480p", 0.25),
    ("wan2.1-1.3b-480p", 0.5),
    ("cogvideox-5b", 0.1),
    ("cogvideox-5b", 0.3),
    ("cogvideox-5b", 0.5),
    ("flux-dev-1024", None),
    ("clip", None),
)
SETTINGS = ("block_m", "block_n", "num_warps", "num_stages", "loads")
"""What the portable template knows; the other one knows them all."""
SAMPLES = 12
NOISE = 0.006


def chance(*parts: Any) -> random.Random:
    """Random numbers that depend on these parts alone."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def binary(params: dict[str, Any]) -> list[tuple[str, Any]]:
    """What makes another binary on this GPU: settings that it does not know change nothing."""
    known = params if params.get("template") == "hopper" else SETTINGS
    return [(name, params[name]) for name in sorted(known)]


def family(job: Job) -> str:
    """What the densities of a workload share: they have one program."""
    return job.name.partition("@")[0]


def registers_of(tunable: AttentionTunable, c: Config) -> int:
    """Accumulators of a thread, and some more; above 255 is what would spill."""
    return c.block_m * (tunable.spec.head_dim + c.block_n) // (c.num_warps * 32) + 48


def true_us(job: Job, params: dict[str, Any], target: Target) -> float:
    """The made-up time in microseconds."""
    tunable = job.tunable
    assert isinstance(tunable, AttentionTunable)
    c, work = Config.from_json(params), tunable.work(params, target)
    if c.template == "hopper":
        return hopper_us(job, params, c, work)
    held = registers_of(tunable, c)
    slots = Loading.of(work, target, Figures(min(held, 255), 0, work.shared_bytes)).slots
    product = work.step_flop / 5200  # cycles of the tensor cores
    product *= 1.25 if c.block_m < 64 else 1.0
    product *= 1.12 if c.block_n < 64 else 1.0
    softmax = c.block_m * c.block_n * (0.11 + 0.14 * work.partial)
    softmax *= 1.3 if c.num_warps == 8 and c.block_m <= 64 else 1.0
    alone = slots == 1 and c.num_warps <= 4
    step = product + softmax if alone else max(product, softmax) + 0.3 * min(product, softmax)
    latency = {1: 900.0, 2: 260.0, 3: 110.0, 4: 90.0}[c.num_stages]
    latency *= 0.6 if c.loads == "descriptor" else 1.0
    step += latency / slots
    if held > 240:
        step *= 1.0 + (held - 240) / 60
    each = (work.steps + 2.5) * step * slots
    us = finish(each, target.sms * slots) / (530.0 * slots) * (0.8 + 0.2 * slots) + 4.0
    program = chance(family(job), binary(params)).gauss(0, 0.035)
    own = chance(job.name, binary(params)).gauss(0, 0.012)
    return float(us * 2.718281828 ** (program + own))


def hopper_us(job: Job, params: dict[str, Any], c: Config, work: Work) -> float:
    """The same of the Hopper template, in the proportions that an H100 measured of some eighty
    (wan2.1-1.3b-480p, density 0.25): a fifth faster than the best portable one, and much alike."""
    us = work.flop / (0.73e9 if job.tunable.spec.head_dim > 64 else 0.52e9) + 4.0
    us *= {128: 1.0, 64: 1.08}[c.block_n] * {128: 1.0, 64: 1.2}[c.block_m]
    us *= {"late": 1.0, "early": 1.1}[c.overlap] * (1.0 if c.workers else 1.02)
    us *= 2.718281828 ** chance(job.name, binary(params)).gauss(0, 0.006)
    return float(us + (work.before_bytes / 2.6e6 + 3.0 if work.before_bytes else 0.0))


@cache
def defaults(name: str) -> tuple[dict[str, Any], ...]:
    """The default configurations of a family on this GPU; none of them fails, for a binary that
    was wrong once counts nowhere."""
    densities = {None, *(d for n, d in KEYS if n == name)}
    made = (jobs.from_catalogue(name, d) for d in densities)
    return tuple(job.tunable.default(targets.get("h100")) for job in made)


def failure(job: Job, params: dict[str, Any]) -> str:
    """How a candidate fails, or nothing: one in 25 does."""
    if params in defaults(family(job)):
        return ""
    drawn = chance("fails", family(job), binary(params)).random()
    return (
        "compile_error"
        if drawn < 0.02
        else "wrong"
        if drawn < 0.03
        else ""
        if drawn > 0.04
        else "smem"
    )


def rows(
    keys: Iterable[tuple[str, float | None]] = KEYS, gpu: str = "h100", slower: float = 1.0
) -> list[Row]:
    """Rows of every legal candidate of these workloads, as a recorder writes them."""
    target = targets.get(gpu)
    out: list[Row] = []
    for name, density in keys:
        job = jobs.from_catalogue(name, density)
        command = f"python -m autotune --gpu {gpu} --workload {name}"
        command += f" --density {density:g} --record" if density is not None else " --record"
        run = Run(started="2026-01-01T00:00:00+00:00", command=command, nonce=job.name)
        toolchain = keying.toolchain(job.tunable, driver="synthetic")
        key = Key(keying.workload(job.tunable), Device.of(target), toolchain)
        space = job.tunable.space(target)
        space_hash, default = keying.space_hash(space), job.tunable.default(target)
        out += [*key, run]
        points = Space(space, lambda p, t=job.tunable: t.legal(p, target)).points  # type: ignore[misc]
        for params in map(dict, points or ()):
            candidate = Candidate(space_hash=space_hash, params=params)
            out += [candidate, _row(job, key, candidate, run, params == default, target, slower)]
    return out


def _row(
    job: Job, key: Key, candidate: Candidate, run: Run, default: bool, target: Target, slower: float
) -> Measurement:
    params = dict(candidate.params)
    tunable = job.tunable
    assert isinstance(tunable, AttentionTunable)
    status = failure(job, params)
    said: dict[str, Any] = {"status": status, "reason": "made up"} if status else {"status": "ok"}
    if not status:
        us = true_us(job, params, target) * slower
        noise = chance("noise", job.name, target.name, sorted(params.items()))
        samples = sorted(us * 2.718281828 ** noise.gauss(0, NOISE) for _ in range(SAMPLES))
        middle = (samples[SAMPLES // 2 - 1] + samples[SAMPLES // 2]) / 2
        said |= {
            "samples": tuple(round(s, 3) for s in samples),
            "n": SAMPLES,
            "median_us": middle,
            "ci_lo_us": samples[2],
            "ci_hi_us": samples[-3],
        }
    config = Config.from_json(params)
    registers = min(registers_of(tunable, config), 255)
    return Measurement(
        workload_id=key.workload.id,
        device_id=key.device.id,
        toolchain_id=key.toolchain.id,
        candidate_id=candidate.id,
        run_id=run.id,
        kind="measured",
        created="2026-01-01T00:00:00+00:00",
        is_default=default,
        registers=registers,
        spill_bytes=0 if registers < 240 else 8 * (registers - 239),
        shared_bytes=tunable.work(params, target).shared_bytes,
        binary_hash=hashlib.sha256(
            repr((tunable.spec.program, sorted(params.items()))).encode()
        ).hexdigest()[:32],
        **said,
    )


def held(*args: Any, **options: Any) -> Held:
    """`rows` in memory."""
    return Held.of(rows(*args, **options))
