"""The permute operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdsl.draw import show_order
from kdsl.errors import InputError
from kdsl.kernels.permute import config as settings
from kdsl.kernels.permute import generate
from kdsl.kernels.permute.tunable import PermuteTunable, traffic
from kdsl.reference.permute import permute as reference_permute
from kdsl.runtime.arrays import like, say_once, uploaded
from kdsl.runtime.checks import check_finite, check_permuted
from kdsl.runtime.choice import Choice, settle
from kdsl.runtime.operator import Operator, Tables, array_tables, named, require_values
from kdsl.specs import Permute
from kdsl.targets import Target


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
        self.given, self.mode = config, mode
        self.fixed = array_tables(spec, fixed)
        for table in spec.open_tables:
            if table.name in self.fixed:
                self.fixed[table.name] = table.checked(self.fixed[table.name])
        self.tunable = PermuteTunable(spec, self.fixed)
        self.choice: Choice | None = settle(
            self.tunable, target, backend, config, mode, here=here, tables=self.fixed
        )

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """The stored sequence of ``x``, or with a layout (codes, float32 scales).

        ``check`` also sees that orders known only at the call are bijections.
        """
        x = check_permuted(self.spec, tensors)
        values = {**self.fixed, **named(self.spec, tables)}
        require_values(self.spec, values)
        if check:
            check_finite({"x": x})
            self.spec.order.index(array_tables(self.spec, values))
        if self.backend == "reference":
            return self._by_reference(x, values)
        self.require_here()
        if not isinstance(x, np.ndarray):
            return self._runner(x, values)
        out = self._runner(uploaded(x, self.spec.dtype, "cuda"), values)
        return self._like(out if self.spec.layout else (out,), x)

    def _by_reference(self, x: Any, values: Tables) -> Any:
        if self.target is None:
            say_once()
        out = reference_permute(self.spec, x, array_tables(self.spec, values))
        return self._like(out if self.spec.layout else (out,), x)

    def _like(self, results: Any, x: Any) -> Any:
        if self.spec.layout is None:
            return like(results[0], x)
        codes, scales = results
        return like(codes, x, np.int8), like(scales, x, np.float32)

    @cached_property
    def _runner(self) -> Any:
        from kdsl.kernels.permute.launch import make_runner

        config = settings.Config.from_json({k: int(v) for k, v in self.config.items()})
        return make_runner(self.spec, config, self.target)

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """The same in NumPy, bit for bit."""
        x = check_permuted(self.spec, tensors, any_dtype=True)
        values = {**self.fixed, **array_tables(self.spec, tables)}
        require_values(self.spec, values)
        return reference_permute(self.spec, x, values)

    @property
    def source(self) -> str:
        """The complete CUDA C file."""
        config = dict(self.config) or settings.default(self.spec).to_json()
        return generate.source(self.spec, settings.Config.from_json(config))

    def cost(self) -> Mapping[str, float]:
        """Bytes of a call with one batch item, and for a named GPU the predicted and measured time
        in microseconds."""
        out = {"flop": 0.0, "bytes": float(traffic(self.spec).total)}
        if self.choice is not None and self.target is not None:
            out["bytes"] = self.tunable.work(self.choice.params, self.target).bytes
        return {**out, **self.times}

    def explain(self) -> str:
        """Backend, configuration and its source, and cost, line by line."""
        from kdsl.runtime.explain import explain_permute

        return explain_permute(self)

    def show(self, head: int = 0, **options: Any) -> str:
        """Where the tokens of one head go: stored positions on the grid, frame by frame."""
        if not 0 <= head < self.spec.heads:
            raise InputError(f"head={head}", hint=f"0 to {self.spec.heads - 1}")
        return show_order(self.spec.order, head=head, tables=self.fixed, **options)

    def bind(self, tables: Tables) -> PermuteOperator:
        """The operator with values for its open tables."""
        values = {**self.fixed, **array_tables(self.spec, tables)}
        return PermuteOperator(
            self.spec, self.target, self.backend, self.given, self.mode, self.here, values
        )
