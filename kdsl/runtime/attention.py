"""The attention operator."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.kernels.attention import launch
from kdsl.kernels.attention.backward.tunable import KERNELS, BackwardTunable, kernels
from kdsl.kernels.attention.config import BACKENDS, OFFERED, Config
from kdsl.kernels.attention.hopper.launch import copied_first
from kdsl.kernels.attention.quantized.tunable import tunable_of
from kdsl.kernels.attention.ready import ready
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.kernels.launching.prepared import kind_of
from kdsl.reference.attention import attention as reference_attention
from kdsl.runtime import codecache
from kdsl.runtime.arrays import interpreting, like, say_once, uploaded
from kdsl.runtime.bound import Bound, remember
from kdsl.runtime.checks import check_finite, check_tensors
from kdsl.runtime.choice import Choice, choose, settle
from kdsl.runtime.on_device import OnDevice, Source
from kdsl.runtime.operator import Operator, Tables, array_tables, named, require_values
from kdsl.runtime.program import Program, empty_results, nothing_to_do
from kdsl.runtime.with_torch import identity, seen_by_torch, torch_ops, warm
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.targets import get as target_named

KEPT_CALLS = 64
"""Kinds of tensors that an operator remembers to have checked."""


class AttentionOperator(Operator):
    """Block-sparse attention of one spec on one GPU, or by the reference."""

    spec: Attention
    tunable: AttentionTunable
    run: ClassVar[Callable[..., tuple[Any, Any]]] = staticmethod(launch.launch)
    """Launches the kernel."""

    def __init__(
        self,
        spec: Attention,
        target: Target | None,
        backend: str | None,
        config: Mapping[str, Any] | None,
        mode: str,
        here: bool,
        sample: Tables | None = None,
        backward: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.spec, self.target, self.asked, self.here = spec, target, backend, here
        self.templates = tuple(t for t, name in BACKENDS.items() if backend == name) or OFFERED
        self.by_batch = any("batch" in e.variables() for e in spec.mask.variants)
        """Whether the mask speaks of the batch, so that rows differ with its size."""
        self.bound: OrderedDict[tuple[str, int], Bound] = OrderedDict()
        self.plain: OrderedDict[int, Bound] = OrderedDict()
        """By batch size: what a call without tables uses, so that it need not look at values."""
        self.fixed: dict[str, npt.NDArray[Any]] = array_tables(spec, sample)
        self.given, self.mode, self.given_backward = config, mode, dict(backward or {})
        for part in self.given_backward:
            if part not in KERNELS:
                raise ConfigError(f"no backward kernel {part!r}", hint=" or ".join(KERNELS))
        self.programs: dict[bool, Program] = {}
        """What torch's operations run: without, and with the backward."""
        self.seen_by_torch, self.warm = seen_by_torch(), warm()
        for table in spec.open_tables:
            if table.name in self.fixed:
                self.fixed[table.name] = table.checked(self.fixed[table.name])
        self.on_device = OnDevice(spec, self.fixed)
        known = {t.name for t in spec.open_tables} <= set(self.fixed) and not spec.mask.choice
        self.tunable = (
            self._bound(self.fixed, 1).tunable
            if known
            else tunable_of(spec, self.fixed, templates=self.templates)
        )
        self.choice: Choice | None = settle(
            self.tunable, target, backend or "", config, mode, here=here, tables=self.fixed
        )
        self.backend = BACKENDS[self._config.template] if self.choice else "reference"
        own = (self.backend, target and target.name, self.choice and dict(self.choice.params))
        self.identity = identity(spec, self.fixed, *own, self.given_backward, mode)
        self.known: dict[Any, Config] = {}
        """Configurations of calls like those that went well, by kind of their tensors."""
        self.modules: dict[str, Any] = {}
        """Generated files, imported, by template."""

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """Attention of ``q [batch, heads, queries, head_dim]``, ``k, v [batch, kv_heads, ...]``.

        The output has the queries' shape and type; with ``return_lse`` a pair with the natural
        log-sum-exp, float32 ``[batch, heads, queries]``.
        """
        if tables is None and not check and (found := self.warm(tensors)) is not None:
            return found
        kind = self._kind(tensors)
        if kind in self.known and not check:
            out, lse = self._launch(tensors, tables, self.known[kind], kind)
            return (out, lse) if self.spec.return_lse else out
        q, k, v = check_tensors(self.spec, tensors)
        if check:
            check_finite({"q": q, "k": k, "v": v})
            self._checked({**self.fixed, **array_tables(self.spec, tables)})
        if not isinstance(q, np.ndarray) and self.seen_by_torch((q, k, v)):
            out, lse = torch_ops().attention(self, (q, k, v), tables)
        elif self.backend == "reference":
            out, lse = self._by_reference((q, k, v), self._bound_for(tables, q.shape[0]))
        else:
            out, lse = self._by_kernel((q, k, v), tables, kind)
        if check:
            check_finite({"the output": out})
            if self.spec.mask.capacity is not None and hasattr(q, "is_cuda"):
                self._check_capacity((q, k, v), tables)
        return (out, lse) if self.spec.return_lse else out

    def _check_capacity(self, tensors: tuple[Any, ...], tables: Tables | None) -> None:
        if self.reads_on_device(tables, tensors[0].device):
            batch = tensors[0].shape[0] if self.by_batch else 1
            self.on_device.check_capacity(self.program(False), tables, batch, tensors)

    def operands(
        self, tables: Tables | None, batch: int, device: Any, differentiated: bool
    ) -> tuple[list[Any], list[Any], str]:
        """What ``kdsl::attention`` takes beside q, k and v: lists, tables, the program's name."""
        bound = self._bound_for(tables, batch)
        if self.backend == "reference":
            if self.target is None:
                say_once(5)
            lists, values = bound.values(device)
        else:
            self.require_here()
            self._check_device(device)
            lists, values = bound.operands(device, differentiated, self._config.masks)
        return lists, values, self.program(differentiated).name

    def reads_on_device(self, tables: Tables | None, device: Any) -> bool:
        """Whether the lists of a call with these tables are made on the device."""
        return self.backend != "reference" and self.on_device.reads(tables, device)

    def sources(
        self, names: tuple[str, ...], device: Any, differentiated: bool
    ) -> tuple[list[Source], list[Source], str]:
        """Where the tables of a call come from that brings some: its choice's, its leaves'; and the
        name of the program that reads them."""
        name, choice = self.program(differentiated).name, self.on_device.choice
        if choice is None:
            return [], self.on_device.sources(names, device), name
        picked = self.on_device.choice_sources(names, device)
        return picked, self.on_device.sources((*names, choice.name), device), name

    def program(self, differentiated: bool) -> Program:
        """What torch's operations run, with the backward or without."""
        if differentiated and self.spec.stored:
            raise UnsupportedError(
                "tensors in stored order have no gradients yet",
                hint="stored=False, whose kernels read the model's order, or torch.no_grad()",
            )
        if differentiated not in self.programs:
            program = self._program(differentiated)
            self.programs[differentiated] = torch_ops().remember(program)
        return self.programs[differentiated]

    def _program(self, differentiated: bool) -> Program:
        if self.backend == "reference":
            return Program(self.spec, {})
        configs = {"forward": self._config}
        if differentiated:
            chosen = self.backward_choices
            configs |= {p: Config.from_json(dict(c.params)) for p, c in chosen.items()}
        return Program(self.spec, configs)

    @cached_property
    def backward_choices(self) -> Mapping[str, Choice]:
        """Configurations of the backward kernels, chosen when they are first needed."""
        if self.target is None or self.backend == "reference":
            return {}
        return {
            part: choose(
                BackwardTunable(self.tunable, part),
                self.target,
                self.given_backward.get(part),
                self.mode,
                here=self.here,
                tables=self.fixed,
            )
            for part in kernels(self.tunable, self.target)
        }

    @property
    def backward_source(self) -> str:
        """The complete generated file of the kernels of dK and dV; it runs on its own."""
        chosen = self.backward_choices.get("keys")
        template = chosen.params["template"] if chosen else "portable"
        return BackwardTunable(self.tunable, "keys").source_of(template)

    def _by_reference(self, tensors: tuple[Any, ...], bound: Bound) -> tuple[Any, Any]:
        if self.target is None:
            say_once()
        q, k, v = tensors
        out, lse = reference_attention(self.spec, q, k, v, bound.tables)
        return like(out, tensors[0]), like(lse, tensors[0], np.float32)

    def _kind(self, tensors: tuple[Any, ...]) -> Any:
        """All of a call's tensors that checks and launches depend on, but not their values.

        None for arrays, and where torch must see the call.
        """
        try:
            if self.seen_by_torch(tensors):
                return None
            return kind_of(tensors)
        except (AttributeError, TypeError):
            return None

    def _by_kernel(
        self, tensors: tuple[Any, ...], tables: Tables | None, kind: Any = None
    ) -> tuple[Any, Any]:
        from kdsl.kernels.attention.fallback import fitting

        self.require_here()
        if isinstance(given := tensors[0], np.ndarray):
            place = "cpu" if interpreting() else "cuda"
            moved = tuple(uploaded(x, self.spec.dtype, place) for x in tensors)
            out, lse = self._by_kernel(moved, tables)
            return like(out, given), like(lse, given, np.float32)
        device = tensors[0].device
        self._check_device(device)
        if nothing_to_do(tensors):
            self._bound_for(tables, tensors[0].shape[0])  # raises on what is wrong with them
            return empty_results(tensors[0])
        config = self._config
        if config.loads != "pointer":
            config = fitting(config, tensors, tunable_of(self.spec).legal)
        result = self._launch(tensors, tables, config, kind)
        if kind is not None and len(self.known) < KEPT_CALLS:
            self.known[kind] = config
        return result

    def _launch(
        self, tensors: tuple[Any, ...], tables: Tables | None, config: Config, kind: Any
    ) -> tuple[Any, Any]:
        device, batch = tensors[0].device, tensors[0].shape[0]
        module = self.module(config.template)
        with self.on(device):
            chooses = self.on_device.choice is not None
            if (chooses or tables is not None) and self.reads_on_device(tables, device):
                batch = batch if self.by_batch else 1
                made = self.on_device.upload(self.program(False), tables, batch, device, tensors)
            else:
                made = self._bound_for(tables, batch).upload(device, config.masks)
            result = self.run(module, self.spec, config, made[0], tensors, made[1], kind=kind)
            if kind is not None and tables is None and not chooses:
                make = partial(self._ready, config, made, kind, tensors, result)
                self.warm.keep(tensors, made[0], make)
            return result

    def _ready(
        self, config: Config, made: Any, kind: Any, tensors: tuple[Any, ...], result: Any
    ) -> Any:
        """What calls like one that was made have left to do, or None."""
        layout = self.spec.layout
        names = ("q", "k", "v") if layout is None else layout.operands
        copied = copied_first(self.spec) if config.template == "hopper" else ()
        held, values = made
        return ready(held, values, kind, names, tensors, result, self.spec.return_lse, copied)

    def _check_device(self, device: Any) -> None:
        """Raise unless the kernels run on a device."""
        if device.type == "cpu" and not interpreting():
            raise InputError(
                "the tensors are on the CPU, the kernel runs on a GPU",
                hint='q.cuda(), or kdsl.build(spec, backend="reference")',
            )

    @cached_property
    def on(self) -> Callable[[Any], Any]:
        """Makes a device the current one, within a ``with``."""
        made: Callable[[Any], Any] = torch_ops().on
        return made

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
        """Rows of full and partial blocks for these table values.

        What the mask chooses in a call is as in the tables given, if it is, or as many blocks.
        """
        if self.spec.mask.choice is None:
            return self._bound_for(tables, batch).blocks
        given = {**self.fixed, **array_tables(self.spec, tables)}
        self._checked(given)
        found = tunable_of(self.spec, given, batch).blocks
        if found is None:
            name = self.spec.mask.choice.name
            raise InputError(
                f"how many blocks {self.spec.mask.choice.text} keeps depends on q and k",
                hint=f"tables={{{name!r}: a boolean map as a sample}}",
            )
        return found

    def bind(self, tables: Tables) -> AttentionOperator:
        """The operator with table values; the configuration is looked up again for their mask."""
        return type(self)(
            self.spec,
            self.target,
            self.asked,
            self.given,
            self.mode,
            self.here,
            {**self.fixed, **tables},
            self.given_backward,
        )

    def _bound_for(self, tables: Tables | None, batch: int) -> Bound:
        batch, given = batch if self.by_batch else 1, named(self.spec, tables)
        if not given and batch in self.plain:
            return self.plain[batch]
        values = {**self.fixed, **array_tables(self.spec, given)}
        bound = self._bound(values, batch)
        if not given:
            remember(self.plain, batch, bound)
        return bound

    def _checked(self, values: Tables) -> dict[str, npt.NDArray[Any]]:
        """Values of the open tables on the host; InputError where they are not what these hold."""
        require_values(self.spec, values)
        return {t.name: t.checked(values[t.name]) for t in self.spec.open_tables}

    def _bound(self, values: dict[str, npt.NDArray[Any]], batch: int) -> Bound:
        checked = self._checked(values)
        text = b"".join(hashlib.sha256(v.tobytes()).digest() for v in checked.values())
        key = (text.hex(), batch if self.by_batch else 1)
        if key in self.bound:
            self.bound.move_to_end(key)
        else:
            made = Bound(self.spec, checked, key[1], self.templates)
            remember(self.bound, key, made)
        return self.bound[key]

    def cost(self) -> Mapping[str, float]:
        """Operations, bytes, density, and the predicted and measured time in microseconds."""
        target = self.target or target_named("a100")
        params = self.config or self.tunable.default(target)
        work = self.tunable.work(params, target)
        counts = {"flop": work.useful_flop, "bytes": work.bytes}
        return {**counts, **self.tunable.statistics(), **self.times}

    def explain(self) -> str:
        """Backend, configuration and its source, mask, cost, line by line."""
        from kdsl.runtime.explain import explain_attention

        return explain_attention(self)

    def show(self, head: int = 0, **options: Any) -> str:
        """The blocks of one head as characters."""
        return self.spec.mask.show(
            self.spec.query_grid,
            self.spec.key_grid,
            order=self.spec.query_order,
            block=self.spec.block,
            head=head,
            tables=self.fixed,
            **options,
        )
