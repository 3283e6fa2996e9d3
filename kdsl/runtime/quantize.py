"""The quantize operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from kdsl.errors import InputError
from kdsl.kernels.quantize.tunable import QuantizeTunable, traffic
from kdsl.reference.quantize import quantize as reference_quantize
from kdsl.reference.quantize import transformed
from kdsl.runtime import codecache
from kdsl.runtime.arrays import interpreting, like, say_once, uploaded, without_modes
from kdsl.runtime.checks import check_finite, check_quantized
from kdsl.runtime.choice import Choice, settle
from kdsl.runtime.operator import Operator, Tables
from kdsl.runtime.row_program import RowProgram
from kdsl.runtime.with_torch import identity, rows_seen_by_torch, torch_rows
from kdsl.specs import Quantize, as_array
from kdsl.targets import Target


class QuantizeOperator(Operator):
    """``[rows, columns]`` or ``[batch, rows, columns]`` into a format's buffers.

    A call gives the buffers in the format's order, codes first: torch tensors for a torch tensor,
    with a batch axis for one with a batch axis.
    """

    spec: Quantize

    def __init__(
        self,
        spec: Quantize,
        target: Target | None,
        backend: str,
        config: Mapping[str, Any] | None,
        mode: str,
        here: bool,
        fixed: Tables | None = None,
    ) -> None:
        self.spec, self.target, self.backend, self.here = spec, target, backend, here
        self.given, self.mode = config, mode
        self.fixed = self._named(fixed)
        self.tunable = QuantizeTunable(spec, self.fixed if self._complete(self.fixed) else None)
        self._on_device: dict[Any, Any] = {}
        self._as_operands: dict[Any, list[Any]] = {}
        self._program: RowProgram | None = None
        if backend != "reference":
            self._require_kernel()
        self.choice: Choice | None = settle(
            self.tunable, target, backend, config, mode, here=here, tables={}
        )
        self.seen_by_torch = rows_seen_by_torch()
        self.identity = identity(spec, self.fixed, self.backend, dict(self.config))

    def _require_kernel(self) -> None:
        """UnsupportedError where no kernel computes the spec, before anything is looked up."""
        from kdsl.kernels.quantize.facts import view

        view(self.spec)

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """``op(x)``, or with ``modulate`` ``op(x, scale, shift)``: the buffers of the format.

        Values of the recipe that come with the call are folded on the host each time: bind them.
        """
        if not check and self.seen_by_torch(tensors):
            return torch_rows().quantize(self, tensors, tables)
        x, scale, shift = check_quantized(self.spec, tensors)
        values = {**self.fixed, **self._named(tables)}
        if check:
            given = {"x": x, "scale": scale, "shift": shift}
            check_finite({n: t for n, t in given.items() if t is not None})
        if self.backend == "reference":
            if self.target is None:
                say_once()
            found = reference_quantize(self.spec, x, scale, shift, values)
            return tuple(like(held, x, held.dtype) for held in found.values())
        self.require_here()
        if not isinstance(x, np.ndarray):
            return tuple(self._launched(x, scale, shift, values, tables).values())
        place = "cpu" if interpreting() else "cuda"
        moved, by, more = (
            None if t is None else uploaded(t, self.spec.dtype, place) for t in (x, scale, shift)
        )
        out = self._launched(moved, by, more, values, tables)
        return tuple(t.cpu().numpy() for t in out.values())

    def _launched(self, x: Any, scale: Any, shift: Any, values: Tables, own: Any) -> dict[str, Any]:
        from kdsl.runtime.torch_ops import on

        self._check_device(x.device)
        with on(x.device):
            return self._run(x, scale, shift, self._folded(values, x.device, bool(own)))

    def _run(self, x: Any, scale: Any, shift: Any, folded: Any) -> dict[str, Any]:
        x, scale, shift = (_rows(t) for t in (x, scale, shift))
        out: dict[str, Any] = self._launcher.outputs(x)
        self._launcher(x, folded, out, scale, shift)
        return out

    def launched(self, x: Any, scale: Any, shift: Any, values: Sequence[Any]) -> dict[str, Any]:
        """The buffers by name, by the kernel, on the current device; ``values`` as
        `RowProgram.values` gives them."""
        from kdsl.kernels.quantize.arguments import Folded

        self.require_here()
        self._check_device(x.device)
        return self._run(x, scale, shift, Folded(dict(zip(self._names, values, strict=True))))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Of the recipe's values as the kernel takes them."""
        from kdsl.kernels.quantize.arguments import folded_names

        return folded_names(self.spec)

    def constants(self, device: Any) -> tuple[list[Any], str]:
        """The recipe's values and the name of the program, as ``kdsl::quantize`` takes them."""
        if self.backend == "reference":
            program = RowProgram(self.spec, "reference")
            if self.target is None:
                say_once(5)
        else:
            self.require_here()
            self._check_device(device)
            program = RowProgram(self.spec, self.backend, self.config)
        if device not in self._as_operands:
            with without_modes():
                self._as_operands[device] = program.values(self.fixed, device)
        return self._as_operands[device], self._remembered(program).name

    def _remembered(self, program: RowProgram) -> RowProgram:
        """The program in the memory of torch's operations, for as long as the operator lives."""
        if self._program is None:
            self._program = torch_rows().remember(program)
        return self._program

    def _check_device(self, device: Any) -> None:
        if device.type == "cpu" and not interpreting():
            raise InputError("x is on the CPU, the kernel runs on a GPU", hint="x.cuda()")

    @cached_property
    def _launcher(self) -> Any:
        from kdsl.kernels.quantize import launch
        from kdsl.kernels.quantize.config import Config

        config = Config.from_json({k: int(v) for k, v in self.config.items()})
        module = codecache.load(launch.source())
        return launch.Launcher(module, self.spec, config, self.target.sms if self.target else 1)

    def _folded(self, values: Tables, device: Any, own: bool) -> Any:
        """The recipe's values on a device; those that are bound are folded once."""
        from kdsl.kernels.quantize.arguments import Folded

        if own or device not in self._on_device:
            held = {name: as_array(v) for name, v in values.items()}
            made = Folded.of(self.spec, self.spec.recipe.recipe(held, self.spec.columns), device)
            if own:
                return made
            self._on_device[device] = made
        return self._on_device[device]

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """The buffers in NumPy."""
        x, scale, shift = check_quantized(self.spec, tensors, any_dtype=True)
        values = {**self.fixed, **self._named(tables)}
        return tuple(reference_quantize(self.spec, x, scale, shift, values).values())

    def transformed(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """What is quantized, in float64: to see what the codes lose."""
        x, scale, shift = check_quantized(self.spec, tensors, any_dtype=True)
        return transformed(self.spec, x, scale, shift, {**self.fixed, **self._named(tables)})

    def _named(self, tables: Tables | None) -> dict[str, Any]:
        shapes = self.spec.shapes
        if tables is not None and not isinstance(tables, Mapping):
            raise InputError(
                f"tables is a {type(tables).__name__}, not values by name",
                hint="tables=kdsl.layouts.tables(recipe)",
            )
        for name in tables or {}:
            if name not in shapes:
                raise InputError(
                    f"the recipe has no values {name!r}",
                    hint=f"its values: {', '.join(shapes) or 'none'}",
                )
        found = {name: as_array(value) for name, value in (tables or {}).items()}
        if self._complete(found):
            self.spec.recipe.recipe(found, self.spec.columns)
        return found

    def _complete(self, values: Tables) -> bool:
        return set(values) == set(self.spec.shapes)

    @property
    def source(self) -> str:
        """The complete Triton file."""
        from kdsl.kernels.quantize import launch

        return launch.source()

    def cost(self) -> Mapping[str, float]:
        """Operations and bytes of a call with one batch item, and for a named GPU the predicted
        and measured time in microseconds."""
        out = {"flop": 0.0, "bytes": float(traffic(self.spec))}
        if self.choice is not None and self.target is not None:
            work = self.tunable.work(self.choice.params, self.target)
            out["flop"] = work.useful_flop
        return {**out, **self.times}

    def explain(self) -> str:
        """Backend, configuration and its source, and cost, line by line."""
        from kdsl.runtime.explain import explain_quantize

        return explain_quantize(self)

    def show(self, head: int = 0, **options: Any) -> str:
        """Where the format's bits lie, as `kdsl.layouts.describe` draws it."""
        from kdsl.layouts import describe

        del head, options
        return describe(self.spec.format, (self.spec.rows, self.spec.columns))

    def bind(self, tables: Tables) -> QuantizeOperator:
        """The operator with the recipe's values, folded for the kernel once."""
        values = {**self.fixed, **self._named(tables)}
        return QuantizeOperator(
            self.spec, self.target, self.backend, self.given, self.mode, self.here, values
        )


def _rows(x: Any) -> Any:
    """A tensor whose rows are contiguous."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
