"""Permute as something to tune: its space, what is legal, the default, the bytes of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import ConfigError
from kdsl.kernels.permute import generate, nvrtc
from kdsl.kernels.permute.config import (
    ARCHITECTURES,
    ITEM_BYTES,
    SPACE,
    Config,
    Sizes,
    default,
    method,
    problem,
)
from kdsl.kernels.permute.launch import plan, scratch_words
from kdsl.specs import Permute
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.permute.runner import PermuteRunner


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call between the kernel and memory; arithmetic is next to nothing.

    ``reread`` is read a second time where scales cover many tokens.  It comes from the L2 cache if
    what is read between the two readings fits there.
    """

    read: int
    written: int
    reread: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.read + self.written + self.reread


def traffic(spec: Permute, batch: int = 1) -> Traffic:
    """Bytes of a call: every number once, tables once, and x again for method ``"GROUPS"``."""
    tokens = spec.grid.tokens
    shape = (batch, spec.heads, tokens, spec.head_dim)
    x = int(np.prod(shape)) * ITEM_BYTES[spec.dtype]
    tables = sum(int(np.prod(t.shape)) * np.dtype(t.dtype).itemsize for t in spec.tables)
    written = x if spec.layout is None else spec.layout.nbytes(shape)
    return Traffic(x + tables, written, x if method(spec) == "GROUPS" else 0)


def stays_cached(spec: Permute, config: Config, target: Target) -> bool:
    """Whether the second reading finds x in the L2 cache: what lies between takes half of it."""
    sizes = Sizes(spec, config)
    unit = sizes.unit_tokens * spec.head_dim * (sizes.item + 1)
    return (config.lag + 1) * unit <= target.l2_bytes // 2


class PermuteTunable:
    """One permute spec: what the tuner and the builder ask."""

    op = "permute"
    architectures = ARCHITECTURES

    def __init__(
        self,
        spec: Permute,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        batch: int = 1,
    ) -> None:
        self.spec, self.tables, self.batch = spec, tables, batch

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""
        del target
        lags = SPACE["lag"] if method(self.spec) == "GROUPS" else (1,)
        return {**SPACE, "lag": lags}

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a choice cannot run, or None."""
        try:
            config = Config.from_json(dict(params))
        except ConfigError as error:
            return str(error)
        if target.capability < min(ARCHITECTURES):
            return f"{target.name} is below compute capability 8.0"
        return problem(self.spec, config) or None

    def default(self, target: Target) -> dict[str, Any]:
        """A good choice without any measurement."""
        del target
        return default(self.spec).to_json()

    def written_default(self, target: Target) -> dict[str, Any]:
        """The same: no rows have changed it."""
        return self.default(target)

    def facts(self, target: Target) -> dict[str, Any]:
        """Sizes, dtype and compute capability."""
        return {"cc": target.cc, "dtype": self.spec.dtype, **self.sizes()}

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Bytes of one call, the second reading where the cache cannot hold it included."""
        config = Config.from_json(dict(params))
        sizes, bytes_of = Sizes(self.spec, config), traffic(self.spec, self.batch)
        again = 0 if stays_cached(self.spec, config, target) else bytes_of.reread
        launch = plan(sizes, 0, (0, 0, 0), self.batch, (0, 0))
        scratch = 4 * scratch_words(sizes, self.batch)
        return Work(
            flop=0.0,
            useful_flop=0.0,
            bytes=float(bytes_of.read + bytes_of.written + again + scratch),
            unit="float32",
            programs=launch.blocks,
            threads=launch.threads,
            shared_bytes=sizes.shared_bytes,
            steps=np.zeros(0, np.int64),
        )

    def source(self, params: Mapping[str, Any]) -> str:
        """The complete generated CUDA C file."""
        return generate.source(self.spec, Config.from_json(dict(params)))

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to NVRTC for a GPU that need not be there: CUDA C has no signature."""
        del target
        options = {"nvrtc": nvrtc.OPTIONS}
        return AheadOfTime(self.source(params), generate.entry(self.spec), {}, {}, (), options)

    @property
    def template_hash(self) -> str:
        """Identity of the template and of what generates into it."""
        return generate.template_hash()

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name."""
        spec = self.spec
        return {
            "batch": self.batch,
            "heads": spec.heads,
            "tokens": spec.grid.tokens,
            "head_dim": spec.head_dim,
        }

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> PermuteRunner:
        """Inputs, calls and checks on a torch device; every table must have values."""
        from kdsl.kernels.permute.runner import PermuteRunner

        del load  # CUDA C is not imported
        return PermuteRunner(self, device)

    def statistics(self) -> Mapping[str, float]:
        """Nothing: there is no mask."""
        return {}
