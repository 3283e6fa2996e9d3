"""Matmul as something to tune: its space, what is legal, the default, the work of a choice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.errors import ConfigError
from kdsl.kernels.matmul import arguments, portable
from kdsl.kernels.matmul.config import SPACE, Config
from kdsl.kernels.matmul.facts import view
from kdsl.kernels.matmul.hopper import coded_config
from kdsl.kernels.matmul.hopper import config as hopper
from kdsl.kernels.matmul.rule import ARCHITECTURES, TEMPLATES, default, problem
from kdsl.kernels.matmul.templates import template_of
from kdsl.specs import Matmul
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.matmul.runner import MatmulRunner

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class MatmulTunable:
    """One matmul spec: what the tuner and the builder ask.

    ``templates`` are those that may be chosen from.
    """

    op = "matmul"
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
        """Whole tiles of products; every operand once in, the result once out."""
        spec, config = self.spec, Config.from_json(dict(params))
        down, across = arguments.tiles(spec, config)
        steps, own = -(-spec.inner // config.block_k), config.template == "hopper"
        programs = min(down * across, target.sms) if own else down * across
        each = np.full(programs, down * across // programs, np.int64)
        each[: down * across % programs] += 1
        step = 2.0 * config.block_m * config.block_n * config.block_k
        part = template_of(spec, config.template)
        registers = part.sums(config) + part.OTHER_REGISTERS
        asked = part.shared_bytes(spec, config, target)
        held = view(spec)
        # Where there is no unit for e4m3 it is float16 that is multiplied.
        unit = "int8" if held.integer else "float8_e4m3"
        unit = "float16" if portable.fp8(spec, target.capability) == 2 else unit
        return Work(
            flop=step * steps * down * across,
            useful_flop=spec.flop,
            bytes=float(traffic(spec)),
            unit=unit,
            programs=programs,
            threads=32 * config.num_warps + (128 if own else 0),
            shared_bytes=asked,
            steps=each * steps,
            step_flop=step,
            step_bytes=float((config.block_m + config.block_n * held.bits / 8) * config.block_k),
            registers=registers,
            spill_bytes=4 * max(registers - 255, 0),
        )

    def source(self, params: Mapping[str, Any]) -> str:
        """The complete kernel file."""
        return arguments.source(self.spec, Config.from_json(dict(params)))

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        config = Config.from_json(dict(params))
        return arguments.ahead_of_time(self.spec, config, target.capability)

    @property
    def template_hash(self) -> str:
        """Identity of the templates and of what chooses their constants."""
        return template_hash()

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name."""
        return {"rows": self.spec.rows, "inner": self.spec.inner, "columns": self.spec.columns}

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> MatmulRunner:
        """Inputs, calls and checks on a torch device."""
        from kdsl.kernels.matmul.runner import MatmulRunner

        return MatmulRunner(self, device, load)

    def statistics(self) -> Mapping[str, float]:
        """Nothing: there is no mask."""
        return {}


def traffic(spec: Matmul) -> int:
    """Bytes of a call: every operand once, the result once."""
    assert spec.x is not None, "x that is not quantized is weight_only's"
    stored = spec.x.nbytes(spec.x_shape) + spec.weight.nbytes(spec.weight_shape)
    item, whole = ITEM_BYTES[spec.dtype], spec.rows * spec.columns
    return stored + item * (whole * (1 + spec.residual) + spec.columns * spec.bias)


@cache
def template_hash() -> str:
    """Changes with the templates, and with the modules that choose their constants."""
    modules = dict.fromkeys((*hopper.MODULES, *coded_config.MODULES))
    here = [portable.TEMPLATE, *modules]
    here += [Path(str(m.__file__)) for m in (hopper, coded_config)]
    here += [
        Path(__file__).parent / f"{n}.py" for n in ("arguments", "facts", "launch", "portable")
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in here)).hexdigest()[:16]
