"""The matmul operator."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdsl.errors import InputError, SpecError
from kdsl.kernels.matmul import rule, tunable
from kdsl.kernels.matmul.weight_only import rule as weight_only_rule
from kdsl.kernels.matmul.weight_only import tunable as weight_only
from kdsl.reference.matmul import matmul as reference_matmul
from kdsl.runtime import codecache
from kdsl.runtime.arrays import interpreting, like, say_once, uploaded, without_modes
from kdsl.runtime.checks import check_finite, check_matmul
from kdsl.runtime.choice import Choice, settle
from kdsl.runtime.operator import Operator, Tables
from kdsl.runtime.row_program import RowProgram
from kdsl.runtime.with_torch import identity, rows_seen_by_torch, torch_rows
from kdsl.specs import Matmul
from kdsl.targets import Target

CORNERS = ((16, 128), (64, 256), (128, 512))
"""Shapes that a format is drawn for, the first that it takes."""


class MatmulOperator(Operator):
    """Operands of `Matmul.operands`, in their order, to ``[rows, columns]``.

    ``op(*x, *weight)`` where both are the buffers of their formats, as `Quantize` and
    `Format.pack` give them, then bias and residual if the spec has them; what is bound is left out.
    """

    spec: Matmul

    def __init__(
        self,
        spec: Matmul,
        target: Target | None,
        backend: str | None,
        config: Mapping[str, Any] | None,
        mode: str,
        here: bool,
        fixed: Tables | None = None,
    ) -> None:
        self.spec, self.target, self.here = spec, target, here
        self.given, self.mode, self.asked = config, mode, backend
        self.operands = spec.operands
        """Shapes and dtypes by name, made once: a call looks at them."""
        self.fixed = self._named(fixed)
        self.tunable = self._own = _tunable(spec, backend)
        self._on_device: dict[Any, dict[str, Any]] = {}
        self._program: RowProgram | None = None
        self.choice: Choice | None = None
        if backend != "reference":
            # Where no kernel computes it that is said before anything is looked up.
            check_supported(spec)
        self.choice = settle(
            self.tunable, target, backend or "", config, mode, here=here, tables={}
        )
        by = {"hopper": "gluon", "portable": "triton", "stream": "cuda"}
        self.backend = backend or by[self.config["template"]]
        self.seen_by_torch = rows_seen_by_torch()
        self.bound_names = tuple(n for n in self.operands if n in self.fixed)
        # What is bound is constant in a graph, and too large to be told apart by its values.
        own = (self.backend, dict(self.config), secrets.token_hex(8) if self.fixed else "")
        self.identity = identity(spec, {}, *own)

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """``op(x_codes, x_scales, ..., residual)``: what `operands` names and is not bound.

        Sums of a weight's codes, which zero points of x meet, are added up in each call unless the
        weight is bound.
        """
        given = self._given(tensors, tables)
        if not check and given and self.seen_by_torch(tuple(given.values())):
            return torch_rows().matmul(self, given)
        operands = {**self.fixed, **given}
        check_matmul(self.spec, operands, wanted=self.operands)
        if check:
            floats = {n: t for n, t in operands.items() if _floating(t)}
            check_finite(floats)
        model = next(iter(given.values()), None)
        if self.backend == "reference":
            if self.target is None:
                say_once()
            found = reference_matmul(self.spec, operands)
            return _as(found, model, self.spec.dtype)
        self.require_here()
        if not isinstance(model, np.ndarray):
            return self.launched(given)
        place = "cpu" if interpreting() else "cuda"
        moved = {n: self._uploaded(n, t, place) for n, t in given.items()}
        return _as(self.launched(moved), model, self.spec.dtype)

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """``[rows, columns]`` in NumPy, float64."""
        operands = {**self.fixed, **self._given(tensors, tables)}
        check_matmul(self.spec, operands, any_dtype=True)
        return reference_matmul(self.spec, operands)

    def bind(self, tables: Tables) -> MatmulOperator:
        """The operator with some operands, such as ``weight_codes``, ``weight_scales`` and
        ``bias``: they are moved to the device, and summed up if need be, once."""
        fixed = {**self.fixed, **self._named(tables)}
        return MatmulOperator(
            self.spec, self.target, self.asked, self.given, self.mode, self.here, fixed
        )

    def _given(self, tensors: tuple[Any, ...], tables: Tables | None) -> dict[str, Any]:
        named = self._named(tables)
        names = [n for n in self.operands if n not in self.fixed and n not in named]
        if len(tensors) != len(names):
            raise InputError(
                f"matmul takes {', '.join(names) or 'nothing'}, got {len(tensors)} tensors",
                hint=f"op({', '.join(names)})",
            )
        return {**named, **dict(zip(names, tensors, strict=True))}

    def _named(self, tables: Tables | None) -> dict[str, Any]:
        if tables is not None and not isinstance(tables, Mapping):
            raise InputError(
                f"tables is a {type(tables).__name__}, not operands by name",
                hint='tables={"weight_codes": ..., "weight_scales": ...}',
            )
        for name in tables or {}:
            if name not in self.operands:
                known = ", ".join(self.operands)
                raise InputError(f"the spec has no operand {name!r}", hint=known)
        return dict(tables or {})

    def launched(self, given: Mapping[str, Any]) -> Any:
        """The result of the kernel, for operands by name beside those that are bound."""
        from kdsl.kernels.matmul.launch import sums_of
        from kdsl.runtime.torch_ops import on

        device = next(iter(given.values())).device
        self._check_device(device)
        held = {**self._bound(device), **given}
        if self._sums and "weight_sums" not in held:
            held["weight_sums"] = sums_of(held[f"weight_{self._launcher.view.weight.codes}"])
        out = self._launcher.output(next(iter(given.values())))
        with on(device):
            self._launcher(held, out)
        return out

    def constants(self, device: Any) -> tuple[list[Any], Any, str]:
        """What is bound, sums of the weight's codes and the name of the program, as
        ``kdsl::matmul`` takes them."""
        with without_modes():
            if self.backend == "reference":
                if self.target is None:
                    say_once(5)
                program = RowProgram(self.spec, "reference")
                held = {n: self._uploaded(n, t, device) for n, t in self.fixed.items()}
            else:
                self.require_here()
                self._check_device(device)
                program = RowProgram(self.spec, self.backend, self.config)
                held = self._bound(device)
        if self._program is None:
            self._program = torch_rows().remember(program)
        return [held[n] for n in self.bound_names], held.get("weight_sums"), self._program.name

    def _check_device(self, device: Any) -> None:
        if device.type == "cpu" and not interpreting():
            raise InputError(
                "the operands are on the CPU, the kernel runs on a GPU", hint="x.cuda()"
            )

    def _bound(self, device: Any) -> dict[str, Any]:
        """Bound operands on a device."""
        if device not in self._on_device:
            from kdsl.kernels.matmul.launch import sums_of

            found = {n: self._uploaded(n, t, device) for n, t in self.fixed.items()}
            codes = f"weight_{self._launcher.view.weight.codes}" if self._sums else ""
            if codes in found:
                found["weight_sums"] = sums_of(found[codes])
            self._on_device[device] = found
        return self._on_device[device]

    def _uploaded(self, name: str, x: Any, device: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x.to(device)
        return uploaded(x, self.operands[name][1], device)

    @property
    def _sums(self) -> bool:
        """Whether zero points of x meet sums of the weight's codes."""
        return self.spec.x is not None and bool(self._launcher.view.zeros)

    @cached_property
    def _launcher(self) -> Any:
        if self.spec.x is None:
            return _weight_only_launcher(self.spec, dict(self.config))
        from kdsl.kernels.matmul import arguments, launch
        from kdsl.kernels.matmul.config import Config

        config = Config.from_json(dict(self.config))
        module = codecache.load(arguments.source(self.spec, config))
        return launch.Launcher(module, self.spec, config)

    @property
    def source(self) -> str:
        """The complete kernel file; the portable template's for the reference."""
        return self._own.source(self.config)

    def cost(self) -> Mapping[str, float]:
        """Operations and bytes of a call, and for a named GPU the predicted and measured time in
        microseconds."""
        module = weight_only if self.spec.x is None else tunable
        return {"flop": self.spec.flop, "bytes": float(module.traffic(self.spec)), **self.times}

    def explain(self) -> str:
        """Backend, configuration and its source, and cost, line by line."""
        from kdsl.runtime.explain import explain_matmul

        return explain_matmul(self)

    def show(self, head: int = 0, **options: Any) -> str:
        """Where a weight's bits lie, as `kdsl.layouts.describe` draws it: of a small one, for every
        bit of it is looked at."""
        from kdsl.layouts import describe

        del head, options
        for shape in CORNERS:
            try:
                return describe(self.spec.weight, shape)
            except SpecError:
                continue
        return describe(self.spec.weight, self.spec.weight_shape)


def _tunable(
    spec: Matmul, backend: str | None
) -> tunable.MatmulTunable | weight_only.WeightOnlyTunable:
    """What there is to choose for a backend, None for any that is offered."""
    if spec.x is None:
        own = weight_only_rule.TEMPLATES
        return weight_only.WeightOnlyTunable(spec, own.get(backend, own[None]))
    chosen = rule.TEMPLATES.get(backend, rule.TEMPLATES[None])
    return tunable.MatmulTunable(spec, chosen)


def check_supported(spec: Matmul) -> None:
    """UnsupportedError where no kernel computes a spec."""
    from kdsl.kernels.matmul import facts
    from kdsl.kernels.matmul.weight_only import facts as weight_only_facts

    if spec.x is None:
        weight_only_facts.view(spec)
    else:
        facts.view(spec)


def _weight_only_launcher(spec: Matmul, params: dict[str, Any]) -> Any:
    from kdsl.kernels.matmul.weight_only import launch, portable
    from kdsl.kernels.matmul.weight_only.config import Config

    config = Config.from_json(params)
    module = codecache.load(portable.source()) if config.template == "portable" else None
    return launch.Launcher(module, spec, config)


def _as(found: Any, model: Any, dtype: str) -> Any:
    """A result as the kind of array that came in; NumPy has no bfloat16, and gets float32."""
    if model is None or isinstance(model, np.ndarray):
        return like(found, np.empty(0, "float32" if dtype == "bfloat16" else dtype))
    import torch

    return torch.from_numpy(np.ascontiguousarray(found)).to(model.device, getattr(torch, dtype))


def _floating(t: Any) -> Any:
    if isinstance(t, np.ndarray):
        return t.dtype.kind == "f"
    return t.is_floating_point() and "float8" not in str(t.dtype)
