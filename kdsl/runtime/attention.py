"""The attention operator."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import InputError, UnsupportedError
from kdsl.kernels.attention.config import BACKENDS, Config
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.reference.attention import attention as reference_attention
from kdsl.runtime import codecache
from kdsl.runtime.arrays import like, say_once
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.checks import check_finite, check_tensors
from kdsl.runtime.choice import Choice, choose
from kdsl.runtime.operator import Operator, Tables, array_tables
from kdsl.runtime.predict import Prediction
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.targets import get as target_named

KEPT_CALLS = 64
"""Kinds of tensors that an operator remembers to have checked."""
KEPT_BINDINGS = 8
"""Values of open tables whose rows of blocks an operator remembers."""


class Bound:
    """Rows of blocks for given table values, and their copies on devices."""

    def __init__(
        self,
        spec: Attention,
        tables: dict[str, npt.NDArray[Any]],
        batch: int,
        templates: tuple[str, ...],
    ) -> None:
        self.tables, self.tunable = tables, AttentionTunable(spec, tables, batch, templates)
        self.on_device: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    @property
    def blocks(self) -> Blocks:
        """Rows of full and partial blocks."""
        assert self.tunable.blocks is not None
        return self.tunable.blocks

    def upload(self, device: Any) -> tuple[Any, tuple[Any, ...]]:
        """(lists, tables) on a device; made once."""
        from kdsl.kernels.attention import launch

        if device not in self.on_device:
            spec = self.tunable.spec
            lists = launch.lists(self.blocks, spec.heads, device)
            self.on_device[device] = lists, launch.table_tensors(spec, self.tables, device)
        return self.on_device[device]


class AttentionOperator(Operator):
    """Block-sparse attention of one spec on one GPU, or by the reference."""

    spec: Attention

    def __init__(
        self,
        spec: Attention,
        target: Target | None,
        backend: str | None,
        config: Mapping[str, Any] | None,
        mode: str,
        here: bool,
        sample: Tables | None = None,
    ) -> None:
        self.spec, self.target, self.asked, self.here = spec, target, backend, here
        chosen = tuple(t for t, name in BACKENDS.items() if backend in (None, name))
        self.templates = chosen or tuple(BACKENDS)
        self.bound: OrderedDict[tuple[str, int], Bound] = OrderedDict()
        self.ready: dict[int, Bound] = {}
        """By batch size: what a call without tables uses, so that it need not look at values."""
        self.fixed: dict[str, npt.NDArray[Any]] = array_tables(sample)
        self.given, self.mode = config, mode
        known = {t.name for t in spec.open_tables} <= set(self.fixed)
        self.tunable = (
            self._bound(self.fixed, 1).tunable
            if known
            else AttentionTunable(spec, self.fixed, templates=self.templates)
        )
        self.choice: Choice | None = None
        if target is not None and backend != "reference":
            self.choice = choose(self.tunable, target, config, mode, here=here, tables=self.fixed)
        self.backend = BACKENDS[self._config.template] if self.choice else "reference"
        self.known: dict[Any, Config] = {}
        """Configurations of calls like those that went well, by `kind_of` their tensors."""
        self.modules: dict[str, Any] = {}
        """Generated files, imported, by template."""

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """Attention of ``q [batch, heads, queries, head_dim]``, ``k, v [batch, kv_heads, ...]``.

        The output has the queries' shape and type; with ``return_lse`` a pair with the natural
        log-sum-exp, float32 ``[batch, heads, queries]``.
        """
        kind = kind_of(tensors)
        if kind in self.known and not check:
            bound = self._bound_for(tables, tensors[0].shape[0])
            out, lse = self._launch(tensors, bound, self.known[kind], kind)
            return (out, lse) if self.spec.return_lse else out
        q, k, v = check_tensors(self.spec, tensors)
        if check:
            check_finite({"q": q, "k": k, "v": v})
        bound = self._bound_for(tables, q.shape[0])
        if self.backend == "reference":
            out, lse = self._by_reference((q, k, v), bound)
        else:
            out, lse = self._by_kernel((q, k, v), bound, kind)
        if check:
            check_finite({"the output": out})
        return (out, lse) if self.spec.return_lse else out

    def _by_reference(self, tensors: tuple[Any, ...], bound: Bound) -> tuple[Any, Any]:
        if self.target is None:
            say_once()
        q, k, v = tensors
        out, lse = reference_attention(self.spec, q, k, v, bound.tables)
        return like(out, tensors[0]), like(lse, tensors[0], np.float32)

    def _by_kernel(self, tensors: tuple[Any, ...], bound: Bound, kind: Any) -> tuple[Any, Any]:
        import torch

        from kdsl.kernels.attention import launch

        device = tensors[0].device
        if not self.here:
            assert self.target is not None
            raise UnsupportedError(
                f"this operator was built for {self.target.name}, which is not here",
                hint="op.source, op.explain(), op.cost(); or kdsl.build(spec) for this machine",
            )
        if device.type == "cpu" and not interpreting():
            raise InputError(
                "the tensors are on the CPU, the kernel runs on a GPU",
                hint='q.cuda(), or kdsl.build(spec, backend="reference")',
            )
        q, k = tensors[:2]
        if not q.numel() or not k.shape[2]:
            lse = torch.full(q.shape[:3], -float("inf"), dtype=torch.float32, device=device)
            return torch.zeros_like(q), lse
        config = launch.fitting(self._config, tensors)
        result = self._launch(tensors, bound, config, kind)
        if kind is not None and len(self.known) < KEPT_CALLS:
            self.known[kind] = config
        return result

    def _launch(
        self, tensors: tuple[Any, ...], bound: Bound, config: Config, kind: Any
    ) -> tuple[Any, Any]:
        from kdsl.kernels.attention.launch import launch

        device = tensors[0].device
        lists, tables = bound.upload(device)
        module = self.module(config.template)
        with _on(device):
            return launch(module, self.spec, config, lists, tensors, tables, kind=kind)

    @cached_property
    def _config(self) -> Config:
        return Config.from_json(dict(self.config))

    def module(self, template: str) -> Any:
        """The generated file of a template, imported."""
        if template not in self.modules:
            self.modules[template] = codecache.load(self.tunable.source_of(template))
        return self.modules[template]

    @property
    def source(self) -> str:
        """The complete generated file; it runs on its own."""
        return self.tunable.source_of(self._config.template if self.choice else "portable")

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """Float64 output, and the log-sum-exp if the spec asks for it."""
        q, k, v = check_tensors(self.spec, tensors, any_dtype=True)
        bound = self._bound_for(tables, q.shape[0])
        out, lse = reference_attention(self.spec, q, k, v, bound.tables)
        return (out, lse) if self.spec.return_lse else out

    def blocks(self, tables: Tables | None = None, batch: int = 1) -> Blocks:
        """Rows of full and partial blocks for these table values."""
        return self._bound_for(tables, batch).blocks

    def bind(self, tables: Tables) -> AttentionOperator:
        """The operator with table values; the configuration is looked up again for their mask."""
        return AttentionOperator(
            self.spec,
            self.target,
            self.asked,
            self.given,
            self.mode,
            self.here,
            {**self.fixed, **tables},
        )

    def _bound_for(self, tables: Tables | None, batch: int) -> Bound:
        if not tables and batch in self.ready:
            return self.ready[batch]
        values = {**self.fixed, **array_tables(tables)}
        missing = [t for t in self.spec.open_tables if t.name not in values]
        if missing:
            raise InputError(
                f"table {missing[0].name!r} has no values",
                where=repr(missing[0]),
                hint=f"op(q, k, v, tables={{{missing[0].name!r}: ...}}) or op.bind(...)",
            )
        unknown = sorted(set(values) - {t.name for t in self.spec.tables})
        if unknown:
            names = ", ".join(t.name for t in self.spec.tables) or "none"
            raise InputError(f"the spec has no table {unknown[0]!r}", hint=f"its tables: {names}")
        bound = self._bound(values, batch)
        if not tables:
            self.ready[batch] = bound
        return bound

    def _bound(self, values: dict[str, npt.NDArray[Any]], batch: int) -> Bound:
        checked = {t.name: t.checked(values[t.name]) for t in self.spec.open_tables}
        text = b"".join(hashlib.sha256(v.tobytes()).digest() for v in checked.values())
        by_batch = any("batch" in e.variables() for e in self.spec.mask.variants)
        key = (text.hex(), batch if by_batch else 1)
        if key not in self.bound:
            self.bound[key] = Bound(self.spec, checked, key[1], self.templates)
            while len(self.bound) > KEPT_BINDINGS:
                self.bound.popitem(last=False)
        self.bound.move_to_end(key)
        return self.bound[key]

    def cost(self) -> Mapping[str, float]:
        """Operations, bytes, density, and the predicted and measured time in microseconds."""
        target = self.target or target_named("a100")
        params = self.config or self.tunable.default(target)
        work = self.tunable.work(params, target)
        out = {"flop": work.useful_flop, "bytes": work.bytes, **self.tunable.statistics()}
        if self.choice is not None and self.target is not None:
            # A row of the database knows the compiler's registers and spills as well.
            known = self.choice.predicted_us
            out["predicted_us"] = known or self.predicted.us
            if self.choice.measured_us is not None:
                out["measured_us"] = self.choice.measured_us
        return out

    @property
    def predicted(self) -> Prediction:
        """The time of the configuration by the cost model, without asking a compiler."""
        target = self.target or target_named("a100")
        params = self.config or self.tunable.default(target)
        return CostModel.of(self.tunable, target)(params)

    def explain(self) -> str:
        """Backend, configuration and its source, mask, cost, line by line."""
        from kdsl.runtime.explain import explain_attention

        return explain_attention(self)

    def show(self, head: int = 0, **options: Any) -> str:
        """The blocks of one head as characters."""
        return self.spec.element_mask.show(
            self.spec.query_grid,
            self.spec.key_grid,
            order=self.spec.query_order,
            block=self.spec.block,
            head=head,
            tables=self.fixed,
            **options,
        )


def interpreting() -> bool:
    """Whether Triton runs in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _on(device: Any) -> Any:
    """The device as the current one: kernels launch where their tensors are."""
    import torch

    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return HERE
    return torch.cuda.device(device)


HERE = contextlib.nullcontext()


def kind_of(tensors: tuple[Any, ...]) -> Any:
    """All of a call's torch tensors that checks and launches depend on, but not their values.

    None for other arrays, and where a gradient may be asked for.
    """
    try:
        if any(x.requires_grad for x in tensors):
            return None
        return tuple((x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16) for x in tensors)
    except (AttributeError, TypeError):
        return None
