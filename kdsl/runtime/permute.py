"""The permute operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdsl.errors import InputError, UnsupportedError
from kdsl.kernels.permute import config as settings
from kdsl.kernels.permute import generate
from kdsl.kernels.permute.tunable import PermuteTunable, traffic
from kdsl.reference.permute import permute as reference_permute
from kdsl.runtime.arrays import like, say_once
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.checks import check_finite
from kdsl.runtime.choice import Choice, choose
from kdsl.runtime.operator import Operator, Tables, array_tables
from kdsl.runtime.predict import Prediction
from kdsl.specs import Permute
from kdsl.targets import Target
from kdsl.targets import get as target_named


class PermuteOperator(Operator):
    """``[batch, heads, tokens, head_dim]`` into stored order, on a GPU or by the reference."""

    spec: Permute

    def __init__(
        self,
        spec: Permute,
        target: Target | None,
        backend: str,
        config: Mapping[str, Any] | None,
        mode: str,
        here: bool,
        fixed: Tables | None = None,
    ) -> None:
        self.spec, self.target, self.backend, self.here = spec, target, backend, here
        self.fixed, self.given, self.mode = dict(fixed or {}), config, mode
        self.choice: Choice | None = None
        if target is not None and backend != "reference":
            values = array_tables(self.fixed)
            tunable = PermuteTunable(spec, values)
            self.choice = choose(tunable, target, config, mode, here=here, tables=values)

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """The stored sequence of ``x``, or with a layout (codes, float32 scales)."""
        (x,) = self._one(tensors)
        if check:
            check_finite({"x": x})
        values = {**self.fixed, **(tables or {})}
        if self.backend == "reference":
            if self.target is None:
                say_once()
            out = reference_permute(self.spec, x, array_tables(values))
            if self.spec.layout is None:
                return like(np.asarray(out), x)
            codes, scales = out
            return like(codes, x, np.int8), like(scales, x, np.float32)
        if not self.here:
            assert self.target is not None
            raise UnsupportedError(
                f"this operator was built for {self.target.name}, which is not here",
                hint="op.source, op.explain(), op.cost(); or kdsl.build(spec) for this machine",
            )
        return self._runner(x, values)

    @cached_property
    def _runner(self) -> Any:
        from kdsl.kernels.permute.launch import make_runner

        config = settings.Config.from_json({k: int(v) for k, v in self.config.items()})
        return make_runner(self.spec, config, self.target)

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """The same in NumPy, bit for bit."""
        (x,) = self._one(tensors)
        return reference_permute(self.spec, x, array_tables({**self.fixed, **(tables or {})}))

    def _one(self, tensors: tuple[Any, ...]) -> tuple[Any]:
        if len(tensors) != 1 or not hasattr(tensors[0], "shape"):
            raise InputError(f"permute takes one tensor, got {len(tensors)}", hint="op(x)")
        return (tensors[0],)

    @property
    def source(self) -> str:
        """The complete CUDA C file."""
        config = dict(self.config) or settings.default(self.spec).to_json()
        return generate.source(self.spec, settings.Config.from_json(config))

    def cost(self) -> Mapping[str, float]:
        """Bytes of a call with one batch item, and for a named GPU the predicted and measured time
        in microseconds."""
        out = {"flop": 0.0, "bytes": float(traffic(self.spec).total)}
        if self.target is not None:
            known = self.choice.predicted_us if self.choice is not None else None
            out["predicted_us"] = known or self.predicted.us
            if self.choice is not None and self.choice.measured_us is not None:
                out["measured_us"] = self.choice.measured_us
        return out

    @property
    def predicted(self) -> Prediction:
        """The time of the configuration by the cost model, without asking a compiler."""
        target = self.target or target_named("a100")
        tunable = PermuteTunable(self.spec)
        return CostModel.of(tunable, target)(self.config or tunable.default(target))

    def explain(self) -> str:
        """Backend, configuration and cost."""
        spec, cost = self.spec, self.cost()
        where = self.target.name if self.target else "no GPU: NumPy reference"
        where += ", not here" if self.target and not self.here else ""
        shape = f"{spec.heads} heads x {spec.grid.tokens} tokens x head_dim {spec.head_dim}"
        lines = [
            f"permute    {shape}, {spec.dtype}{f' to {spec.layout.code}' if spec.layout else ''}",
            f"order      {spec.order!r}",
            f"backend    {self.backend} ({where})",
        ]
        if self.choice is not None:
            chosen = ", ".join(f"{k}={v}" for k, v in self.choice.params.items())
            lines += [f"config     {chosen}", *(f"           {x}" for x in self.choice.lines)]
        lines.append(f"work       {cost['bytes'] / 1e6:.1f} MB")
        if "predicted_us" in cost:
            known = self.choice is not None and self.choice.predicted_us
            lines.append(f"predicted  {f'{known:.0f} us' if known else self.predicted}")
        if "measured_us" in cost:
            lines.append(f"measured   {cost['measured_us']:.1f} us")
        return "\n".join(lines)

    def bind(self, tables: Tables) -> PermuteOperator:
        """The operator with values for its open tables."""
        return PermuteOperator(
            self.spec,
            self.target,
            self.backend,
            self.given,
            self.mode,
            self.here,
            {**self.fixed, **tables},
        )
