"""The pre-pass as something to tune: its space, what is legal, the default, its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import ConfigError
from kdsl.kernels.prepass import arguments
from kdsl.kernels.prepass.config import ARCHITECTURES, SPACE, Config, default, problem
from kdsl.kernels.prepass.facts import ITEM_BYTES, settles
from kdsl.kernels.prepass.shared import shared_bytes
from kdsl.specs import Prepass
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.prepass.runner import PrepassRunner


class PrepassTunable:
    """One pre-pass spec and the values of its tables: what the tuner and the builder ask."""

    op = "prepass"
    architectures = ARCHITECTURES

    def __init__(
        self,
        spec: Prepass,
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
        """Bytes of a call, second readings and what launches leave to each other included."""
        spec, config = self.spec, Config.from_json(dict(params))
        held = traffic(spec, self.batch)
        between = 0
        if settles(spec):
            left = spec.smooth + (spec.layout.v is not None)
            rows = arguments.tiles(spec, config, "prepass_tiles")
            between = 2 * 4 * left * self.batch * spec.group_heads * rows * spec.head_dim
        return Work(
            flop=0.0,
            useful_flop=0.0,
            bytes=float(held.total + between),
            unit="float32",
            programs=arguments.programs(spec, config, "prepass_codes", self.batch),
            threads=32 * config.num_warps,
            shared_bytes=shared_bytes(spec, config, target),
            steps=np.zeros(0, np.int64),
        )

    def source(self, params: Mapping[str, Any]) -> str:
        """The complete kernel file."""
        del params
        return arguments.source()

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there: of the last launch."""
        config = Config.from_json(dict(params))
        return arguments.ahead_of_time(
            self.spec, config, "prepass_codes", self.batch, target.capability
        )

    @property
    def template_hash(self) -> str:
        """Identity of the template and of what chooses its constants."""
        return template_hash()

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name."""
        spec = self.spec
        return {
            "batch": self.batch,
            "heads": spec.heads,
            "group": spec.group,
            "tokens": spec.grid.tokens,
            "head_dim": spec.head_dim,
        }

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> PrepassRunner:
        """Inputs, calls and checks on a torch device; every table must have values."""
        from kdsl.kernels.prepass.runner import PrepassRunner

        return PrepassRunner(self, device, load)

    def statistics(self) -> Mapping[str, float]:
        """Nothing: there is no mask."""
        return {}


class Traffic:
    """Bytes of a call that must move: q, k, v and all else in once, outputs out once, and what has
    to be read a second time because something runs over all tokens or heads."""

    def __init__(self, spec: Prepass, batch: int = 1) -> None:
        item = ITEM_BYTES[spec.dtype]
        shapes = {n: s for n, s in spec.inputs.items() if n in ("q", "k", "v")}
        each = {n: batch * int(np.prod(s)) * item for n, s in shapes.items()}
        other = sum(4 * int(np.prod(s)) for n, s in spec.inputs.items() if n not in shapes)
        if not arguments.carried(spec):
            each["v"] = 0
        self.read = sum(each.values()) + other
        self.written = self._written(spec, batch)
        again = {"k": int(spec.smooth), "v": int(spec.layout.v is not None), "q": 0}
        if spec.norm == "rms_token":
            # Found in the cache by the sums' own reading of k, which follows tile by tile.
            again = {**again, "q": 1, "k": 1}
        self.reread = sum(each[n] * times for n, times in again.items())

    @staticmethod
    def _written(spec: Prepass, batch: int) -> int:
        q = (batch, spec.heads, spec.grid.tokens, spec.head_dim)
        k = (batch, spec.group_heads, *q[2:])
        out = spec.layout.nbytes(q, k, ITEM_BYTES[spec.dtype])
        if not arguments.carried(spec):
            out -= int(np.prod(k)) * ITEM_BYTES[spec.dtype]
        named = spec.shapes(batch)
        extra = [n for n in ("k_mean", "q_pool", "k_pool") if n in named]
        return out + sum(4 * int(np.prod(named[n][0])) for n in extra)

    @property
    def total(self) -> int:
        """All of it."""
        return self.read + self.written + self.reread


def traffic(spec: Prepass, batch: int = 1) -> Traffic:
    """Bytes of a call that must move."""
    return Traffic(spec, batch)


@cache
def template_hash() -> str:
    """Changes with the template, and with the modules that choose its constants."""
    here = Path(__file__).parent
    others = [here / name for name in ("arguments.py", "facts.py", "launch.py")]
    text = b"".join(path.read_bytes() for path in (*arguments.MODULES, *others))
    return hashlib.sha256(text).hexdigest()[:16]
