"""The pre-pass operator: q, k and v of a model's projections in, operands of attention out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kdsl.draw import show_order
from kdsl.errors import InputError
from kdsl.kernels.prepass import arguments
from kdsl.kernels.prepass.config import Config
from kdsl.kernels.prepass.tunable import PrepassTunable, traffic
from kdsl.reference.prepass import prepass, stored
from kdsl.runtime import codecache
from kdsl.runtime.arrays import interpreting, like, say_once, uploaded
from kdsl.runtime.checks import check_angles, check_finite, check_prepass
from kdsl.runtime.choice import Choice, settle
from kdsl.runtime.operator import Operator, Tables, array_tables, require_values
from kdsl.specs import Prepass
from kdsl.targets import Target


class Prepared(NamedTuple):
    """What attention takes, and what is left beside it: None where the spec does not ask for it.

    ``operands`` are those that the layout names: ``attention(*made.operands)``.  ``k_mean``
    ``[batch, kv_heads, head_dim]`` was taken off k; ``q_pool`` and ``k_pool`` are means of blocks
    of stored tokens ``[batch, heads, blocks, head_dim]``.  All three are float32.
    """

    operands: tuple[Any, ...]
    k_mean: Any = None
    q_pool: Any = None
    k_pool: Any = None

    @staticmethod
    def of(spec: Prepass, named: Mapping[str, Any]) -> Prepared:
        """Of outputs by name."""
        beside = (named.get(name) for name in ("k_mean", "q_pool", "k_pool"))
        return Prepared(tuple(named[n] for n in spec.layout.operands), *beside)


class PrepassOperator(Operator):
    """q, k, v and what norms and rotations take into `Prepared`, on a GPU or by the reference."""

    spec: Prepass

    def __init__(
        self,
        spec: Prepass,
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
        self.tunable = PrepassTunable(spec, self.fixed)
        self._on_device: dict[Any, Any] = {}
        self.choice: Choice | None = settle(
            self.tunable, target, backend, config, mode, here=here, tables=self.fixed
        )

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """`Prepared` of the tensors that ``spec.inputs`` names, in their order.

        Orders whose lists come with the call are uploaded each time: bind them.  ``check`` also
        sees that they are bijections, and that wide tables of cosines and sines hold each number
        twice.
        """
        named = check_prepass(self.spec, tensors)
        values = {**self.fixed, **array_tables(self.spec, tables)}
        require_values(self.spec, values)
        if check:
            check_finite(named)
            check_angles(self.spec, named)
            self.spec.stored_order.index(values)
        if self.backend == "reference":
            return self._by_reference(named, values)
        self.require_here()
        if not isinstance(named["q"], np.ndarray):
            return Prepared.of(self.spec, self._launched(named, values, bool(tables)))
        place = "cpu" if interpreting() else "cuda"
        moved = {
            n: uploaded(x, self.spec.dtype if n in ("q", "k", "v") else "float32", place)
            for n, x in named.items()
        }
        out = self._launched(moved, values, bool(tables))
        return Prepared.of(self.spec, {n: _array(x) for n, x in out.items()})

    def _by_reference(self, named: Mapping[str, Any], values: Tables) -> Prepared:
        if self.target is None:
            say_once()
        model, out = named["q"], {}
        for name, x in prepass(self.spec, named, array_tables(self.spec, values)).items():
            if name == "v" and self.spec.layout.v is None:
                out[name] = like(x, model)
            elif name == "v" and self.spec.layout.weights == "e4m3" and hasattr(model, "detach"):
                import torch

                out[name] = like(x, model, np.uint8).view(torch.float8_e4m3fn)
            else:
                out[name] = like(x, model, x.dtype)
        return Prepared.of(self.spec, out)

    def _launched(self, named: Mapping[str, Any], values: Tables, own: bool) -> dict[str, Any]:
        from kdsl.kernels.prepass import launch
        from kdsl.runtime.torch_ops import on

        device = named["q"].device
        if device.type == "cpu" and not interpreting():
            raise InputError("q is on the CPU, the kernel runs on a GPU", hint="q.cuda()")
        out = launch.outputs(self.spec, named)
        if own or device not in self._on_device:
            arrays = array_tables(self.spec, values)
            order = launch.placed(self.spec, self._config, arrays, device)
            if not own:
                self._on_device[device] = order
        else:
            order = self._on_device[device]
        with on(device):
            self._launcher(named, order, out)
        return out

    @cached_property
    def _config(self) -> Config:
        return Config.from_json({k: int(v) for k, v in self.config.items()})

    @cached_property
    def _launcher(self) -> Any:
        from kdsl.kernels.prepass.launch import Launcher

        return Launcher(codecache.load(arguments.source()), self.spec, self._config)

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Prepared:
        """`Prepared` in NumPy; codes of e4m3 as their bits."""
        named = check_prepass(self.spec, tensors, any_dtype=True)
        values = {**self.fixed, **array_tables(self.spec, tables)}
        require_values(self.spec, values)
        return Prepared.of(self.spec, prepass(self.spec, named, values))

    def stored(self, *tensors: Any, tables: Tables | None = None) -> tuple[Any, Any]:
        """q and k as they are before they are quantized, float64 in stored order: to see what the
        codes lose."""
        named = check_prepass(self.spec, tensors, any_dtype=True)
        values = {**self.fixed, **array_tables(self.spec, tables)}
        require_values(self.spec, values)
        found = stored(self.spec, named, values)
        return found["q"], found["k"]

    @property
    def source(self) -> str:
        """The complete Triton file."""
        return arguments.source()

    def cost(self) -> Mapping[str, float]:
        """Bytes of a call with one batch item, and for a named GPU the predicted and measured time
        in microseconds."""
        out = {"flop": 0.0, "bytes": float(traffic(self.spec).total)}
        if self.choice is not None and self.target is not None:
            out["bytes"] = self.tunable.work(self.choice.params, self.target).bytes
        return {**out, **self.times}

    def explain(self) -> str:
        """Backend, configuration and its source, steps and cost, line by line."""
        from kdsl.runtime.explain import explain_prepass

        return explain_prepass(self)

    def show(self, head: int = 0, **options: Any) -> str:
        """Where the tokens of one head go: stored positions on the grid, frame by frame."""
        if not 0 <= head < self.spec.heads:
            raise InputError(f"head={head}", hint=f"0 to {self.spec.heads - 1}")
        return show_order(self.spec.stored_order, head=head, tables=self.fixed, **options)

    def bind(self, tables: Tables) -> PrepassOperator:
        """The operator with values for its open tables."""
        values = {**self.fixed, **array_tables(self.spec, tables)}
        return PrepassOperator(
            self.spec, self.target, self.backend, self.given, self.mode, self.here, values
        )


def _array(x: Any) -> Any:
    """A tensor as an array; bfloat16 as float32, float8 as its bits."""
    import torch

    if x.dtype == torch.float8_e4m3fn:
        x = x.view(torch.uint8)
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
