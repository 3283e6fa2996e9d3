"""Operators: a spec bound to a way of computing it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import InputError, UnsupportedError
from kdsl.expr.tables import Table
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.choice import Choice
from kdsl.runtime.predict import Prediction
from kdsl.runtime.tunable import Tunable
from kdsl.specs import Attention, Spec
from kdsl.targets import Target
from kdsl.targets import get as target_named

Tables = Mapping[str, Any]


class Operator(ABC):
    """What `build` returns: call it, ask it for the truth, the source, the reasons.

    ``target`` is the GPU it was built for (None: the reference), ``backend`` what computes a call,
    ``here`` whether that can be done on this machine.
    """

    spec: Spec
    target: Target | None
    backend: str
    here: bool
    choice: Choice | None
    tunable: Tunable

    @abstractmethod
    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """Compute. ``check=True`` synchronises and raises on NaN, infinity and bad table values."""

    @abstractmethod
    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """The same in NumPy: the truth, slowly; arrays in float64."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The complete generated file; it runs on its own."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The chosen configuration; empty for the reference."""
        return self.choice.params if self.choice else {}

    @property
    def predicted(self) -> Prediction:
        """The time of the configuration by the cost model, without asking a compiler."""
        target = self.target or target_named("a100")
        params = self.config or self.tunable.default(target)
        return CostModel.of(self.tunable, target)(params)

    @property
    def times(self) -> dict[str, float]:
        """Predicted and measured time in microseconds, where they are known."""
        if self.choice is None or self.target is None:
            return {}
        # A row of the database knows the compiler's registers and spills as well.
        out = {"predicted_us": self.choice.predicted_us or self.predicted.us}
        if self.choice.measured_us is not None:
            out["measured_us"] = self.choice.measured_us
        return out

    @abstractmethod
    def explain(self) -> str:
        """Backend, configuration and where it came from, density, cost: as text."""

    @abstractmethod
    def cost(self) -> Mapping[str, float]:
        """Operations, bytes, and the predicted and measured time in microseconds where known."""

    @abstractmethod
    def show(self, head: int = 0, **options: Any) -> str:
        """What one head does, as a picture in characters."""

    @abstractmethod
    def bind(self, tables: Tables) -> Operator:
        """The operator with values for its open tables, ready to be called without them."""

    def require_here(self) -> None:
        """UnsupportedError where the kernel was built for a GPU of another machine."""
        if not self.here:
            name = self.target.name if self.target else "a GPU"
            raise UnsupportedError(
                f"this operator was built for {name}, which is not here",
                hint="op.source, op.explain(), op.cost(); or kdsl.build(spec) for this machine",
            )


def array_tables(spec: Spec, tables: Tables | None) -> dict[str, npt.NDArray[Any]]:
    """Tables as NumPy arrays; rows of blocks as the boolean map they stand for.

    InputError for what is no array, a name the spec does not have, and rows of blocks that a map
    cannot hold.
    """
    out: dict[str, npt.NDArray[Any]] = {}
    for name, value in named(spec, tables).items():
        if isinstance(value, Blocks):
            out[name] = _block_map(spec, name, value)
        else:
            held = value.detach().cpu().numpy() if hasattr(value, "detach") else _array(name, value)
            out[name] = held.astype(np.uint8) if held.dtype == np.bool_ else held
    return out


def named(spec: Spec, tables: Tables | None) -> Tables:
    """Tables as they were given; InputError for no mapping, and for a name the spec lacks."""
    if tables is None:
        return {}
    known = ", ".join(t.name for t in spec.tables)
    if not isinstance(tables, Mapping):
        raise InputError(
            f"tables is a {type(tables).__name__}, not values by name",
            hint=f"tables={{name: values}}; the spec's tables: {known or 'none'}",
        )
    unknown = [name for name in tables if name not in {t.name for t in spec.tables}]
    if unknown:
        raise InputError(
            f"the spec has no table {unknown[0]!r}", hint=f"its tables: {known or 'none'}"
        )
    return tables


def require_values(spec: Spec, values: Tables) -> None:
    """InputError that names the first open table without values."""
    for table in spec.open_tables:
        if table.name not in values:
            raise InputError(
                f"table {table.name!r} has no values",
                where=repr(table),
                hint=f"op(..., tables={{{table.name!r}: ...}}) or op.bind(...)",
            )


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"table {name!r} is no array: {error}", hint="rows of one length"
        ) from error


def _block_map(spec: Spec, name: str, rows: Blocks) -> npt.NDArray[np.uint8]:
    """The map ``[heads, rows, columns]`` of rows whose blocks are all kept whole."""
    maps = {m.name: m for m in spec.mask.block_maps()} if isinstance(spec, Attention) else {}
    if not isinstance(spec, Attention) or name not in maps:
        raise InputError(f"table {name!r} is no map of blocks", hint="an array of its values")
    sizes = (spec.block, spec.query_grid.tokens, spec.key_grid.tokens)
    if (rows.block, rows.queries, rows.keys) != sizes:
        raise InputError(
            f"the rows of {name!r} are {rows.queries} x {rows.keys} tokens in blocks of "
            f"{rows.block}, the spec {sizes[1]} x {sizes[2]} in blocks of {sizes[0]}",
            hint="rows of this spec, such as op.blocks(...)",
        )
    partial = int(rows.partial.sum())
    if partial:
        raise InputError(
            f"{partial} blocks of the rows of {name!r} are partial, and a map keeps whole blocks",
            hint=f"the mask that cuts them in the spec, masks.blocks({name!r}) & mask, and here "
            f"{{{name!r}: rows.kept()}}",
        )
    kept = rows.kept().astype(np.uint8)
    kept = kept[0] if len(kept) == 1 else kept
    table: Table = maps[name].resolve(spec.heads, *sizes[1:])
    # One row set for all heads is what rows with one head say.
    return np.broadcast_to(kept, table.shape) if kept.shape[:1] == (1,) else kept
