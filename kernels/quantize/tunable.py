"""Quantize as something to tune: its space, what is legal, the default, the work of a choice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import ConfigError
from kdsl.kernels.quantize import arguments, launch
from kdsl.kernels.quantize.config import (
    ARCHITECTURES,
    SPACE,
    Config,
    default,
    problem,
    registers,
)
from kdsl.kernels.quantize.facts import ITEM_BYTES, Stage, stages_of, view
from kdsl.kernels.quantize.shared import shared_bytes
from kdsl.specs import Quantize
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.quantize.runner import QuantizeRunner


class QuantizeTunable:
    """One quantize spec: what the tuner and the builder ask.

    ``tables`` are the recipe's values; without them the runner makes some up.
    """

    op = "quantize"
    architectures = ARCHITECTURES

    def __init__(
        self,
        spec: Quantize,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        batch: int = 1,
    ) -> None:
        self.spec, self.tables, self.batch = spec, tables, batch

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""
        del target
        return dict(SPACE)

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a choice cannot run, or None."""
        try:
            config = Config.from_json(dict(params))
        except ConfigError as error:
            return str(error)
        return problem(self.spec, config, target)

    def default(self, target: Target) -> dict[str, Any]:
        """A good choice without any measurement."""
        return default(self.spec, target).to_json()

    def written_default(self, target: Target) -> dict[str, Any]:
        """The same: no rows have changed it."""
        return self.default(target)

    def facts(self, target: Target) -> dict[str, Any]:
        """Sizes, dtype and compute capability."""
        return {"cc": target.cc, "dtype": self.spec.dtype, **self.sizes()}

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Every number once in and once out; products by tile."""
        spec, config, held = self.spec, Config.from_json(dict(params)), view(self.spec)
        tiles = arguments.Counts.of(spec, config).tiles(self.batch)
        programs = min(tiles, config.workers * target.sms or tiles)
        steps = np.full(programs, tiles // programs, np.int64)
        steps[: tiles % programs] += 1
        products = sum(_products(stage, spec.dtype) for stage in stages_of(spec))
        flop = 2.0 * config.block_m * held.n * held.n * products
        useful = 2.0 * self.batch * spec.rows * spec.columns
        wanted = registers(spec, config)
        return Work(
            flop=flop * tiles,
            useful_flop=useful * sum(stage.block for stage in stages_of(spec)),
            bytes=float(traffic(spec, self.batch)),
            unit="tf32" if spec.dtype == "float32" else spec.dtype,
            programs=programs,
            threads=32 * config.num_warps,
            shared_bytes=shared_bytes(spec, config, target),
            steps=steps,
            step_flop=flop,
            step_bytes=float(config.block_m * held.n * (ITEM_BYTES[spec.dtype] + 1)),
            registers=min(wanted, config.most_registers),
            spill_bytes=4 * max(wanted - config.most_registers, 0),
        )

    def source(self, params: Mapping[str, Any]) -> str:
        """The complete kernel file."""
        del params
        return launch.source()

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        config = Config.from_json(dict(params))
        return arguments.ahead_of_time(
            self.spec, config, launch.source(), self.batch, target.capability
        )

    @property
    def template_hash(self) -> str:
        """Identity of the template and of what chooses its constants."""
        return template_hash()

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name."""
        return {"batch": self.batch, "rows": self.spec.rows, "columns": self.spec.columns}

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> QuantizeRunner:
        """Inputs, calls and checks on a torch device."""
        from kdsl.kernels.quantize.runner import QuantizeRunner

        return QuantizeRunner(self, device, load)

    def statistics(self) -> Mapping[str, float]:
        """Nothing: there is no mask."""
        return {}


def traffic(spec: Quantize, batch: int = 1) -> int:
    """Bytes of a call: x once, the buffers once, the recipe's values once."""
    item = ITEM_BYTES[spec.dtype]
    values = 4 * sum(int(np.prod(shape)) for shape in spec.shapes.values())
    by = 2 * spec.columns * item if spec.modulate else 0
    out = spec.format.nbytes((spec.rows, spec.columns))
    return batch * (spec.rows * spec.columns * item + by + out) + values


def _products(stage: Stage, dtype: str) -> int:
    """Matrix products of a stage: one, and one more for each operand in two parts."""
    if not stage.block:
        return 0
    if dtype == "float32":
        return 3
    return 1 + (not stage.exact) + (not stage.hadamard)


@cache
def template_hash() -> str:
    """Changes with the template, and with the modules that choose its constants."""
    here = [launch.TEMPLATE, Path(str(arguments.__file__))]
    here += [Path(__file__).parent / name for name in ("facts.py", "launch.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in here)).hexdigest()[:16]
