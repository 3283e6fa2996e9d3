"""Products whose weights alone are quantized, as something to tune."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.errors import ConfigError
from kdsl.kernels.matmul.weight_only import portable, stream
from kdsl.kernels.matmul.weight_only.config import SPACE, Config
from kdsl.kernels.matmul.weight_only.facts import view
from kdsl.kernels.matmul.weight_only.rule import ARCHITECTURES, TEMPLATES, default, problem
from kdsl.specs import Matmul
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.matmul.weight_only.runner import WeightOnlyRunner

SHORT = {"bfloat16": "bf16", "float16": "fp16"}


class WeightOnlyTunable:
    """One spec: what the tuner and the builder ask.  ``templates`` may be chosen from."""

    op = "matmul_weight_only"
    architectures = ARCHITECTURES

    def __init__(self, spec: Matmul, templates: tuple[str, ...] = TEMPLATES[None]) -> None:
        self.spec, self.templates = spec, templates

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""
        del target
        return {**SPACE, "template": self.templates}

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a choice cannot run, or None."""
        try:
            config = Config.from_json(dict(params))
        except ConfigError as error:
            return str(error)
        if config.template not in self.templates:
            return f"not one of the templates asked for: {', '.join(self.templates)}"
        return problem(self.spec, config, target)

    def default(self, target: Target) -> dict[str, Any]:
        """A good choice without any measurement."""
        return default(self.spec, target, self.templates).to_json()

    def written_default(self, target: Target) -> dict[str, Any]:
        """The same: no rows have changed it."""
        return self.default(target)

    def facts(self, target: Target) -> dict[str, Any]:
        """Sizes, dtype and compute capability."""
        return {"cc": target.cc, "dtype": self.spec.dtype, **self.sizes()}

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Bytes of one call; where tiles have many rows, their products too."""
        spec, config = self.spec, Config.from_json(dict(params))
        moved = float(traffic(spec))
        if config.template == "stream":
            programs, _ = stream.grid(spec, config, target.sms)
            return Work(
                flop=spec.flop / spec.rows * config.block_m, useful_flop=spec.flop, bytes=moved,
                unit=spec.dtype, programs=programs, threads=32 * config.num_warps,
                shared_bytes=stream.shared_bytes(spec, config), steps=np.zeros(0, np.int64),
                registers=min(stream.registers(spec, config), stream.allowed(config)),
            )  # fmt: skip
        programs, steps = portable.programs(spec, config), -(-spec.inner // config.block_k)
        step = 2.0 * config.block_m * config.block_n * config.block_k
        codes = config.block_n * view(spec).bits / 8
        return Work(
            flop=step * steps * programs, useful_flop=spec.flop, bytes=moved, unit=spec.dtype,
            programs=programs, threads=32 * config.num_warps,
            shared_bytes=portable.shared_bytes(spec, config),
            steps=np.full(programs, steps, np.int64), step_flop=step,
            step_bytes=(2.0 * config.block_m + codes) * config.block_k,
            registers=portable.registers(config),
        )  # fmt: skip

    def source(self, params: Mapping[str, Any]) -> str:
        """The complete kernel file, of CUDA C or Triton."""
        return source(self.spec, Config.from_json(dict(params)))

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        del target
        spec, config = self.spec, Config.from_json(dict(params))
        text = source(spec, config)
        if config.template == "stream":
            return AheadOfTime(text, stream.ENTRY, {}, {}, (), {"nvrtc": stream.OPTIONS})
        held, short = view(spec), SHORT[spec.dtype]
        kinds = {
            "x": f"*{short}", "codes": "*u8", "signs": "*u8" if held.signs else None,
            "scales": "*fp16", "zeros": "*u8" if held.zeros else None,
            "bias": f"*{short}" if spec.bias else None,
            "residual": f"*{short}" if spec.residual else None,
            "out": f"*{short}", "book": "*fp32",
        }  # fmt: skip
        signature: dict[str, Any] = {n: k for n, k in kinds.items() if k is not None}
        divisible = list(signature)
        made = portable.constants(spec, config) | dict.fromkeys(n for n in kinds if not kinds[n])
        for name, value in {**portable.steps(spec), **portable.integers(spec, config)}.items():
            if value == 1:
                made[name] = 1
                continue
            signature[name] = "i32"
            divisible += [name] if value % 16 == 0 else []
        options = portable.options(config)
        return AheadOfTime(text, portable.ENTRY, signature, made, tuple(divisible), options)

    @property
    def template_hash(self) -> str:
        """Identity of the templates and of what chooses their constants."""
        return template_hash()

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name."""
        return {"rows": self.spec.rows, "inner": self.spec.inner, "columns": self.spec.columns}

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> WeightOnlyRunner:
        """Inputs, calls and checks on a torch device."""
        from kdsl.kernels.matmul.weight_only.runner import WeightOnlyRunner

        return WeightOnlyRunner(self, device, load)

    def statistics(self) -> Mapping[str, float]:
        """Nothing: there is no mask."""
        return {}


def source(spec: Matmul, config: Config) -> str:
    """The complete kernel file of a configuration's template."""
    return stream.source(spec, config) if config.template == "stream" else portable.source()


def traffic(spec: Matmul) -> int:
    """Bytes of a call: every operand once, the result once."""
    numbers = spec.rows * (spec.inner + spec.columns * (1 + spec.residual))
    return spec.weight.nbytes(spec.weight_shape) + 2 * (numbers + spec.columns * spec.bias)


@cache
def template_hash() -> str:
    """Changes with the templates, and with the modules that choose their constants."""
    here = [*stream.FILES, portable.TEMPLATE]
    names = ("facts", "launch", "portable", "stream")
    here += [Path(__file__).parent / f"{name}.py" for name in names]
    return hashlib.sha256(b"".join(path.read_bytes() for path in here)).hexdigest()[:16]
