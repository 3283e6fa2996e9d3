"""What an attention operator runs, as a value: spec, backend and configurations, without tables.

A program is named by canonical JSON, so that a graph which holds one can be run elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.errors import InputError
from kdsl.kernels.attention import generate, launch
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.backward import launch as backward
from kdsl.kernels.attention.backward.tunable import BackwardTunable
from kdsl.kernels.attention.backward.tunable import source as backward_source
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.fallback import fitting
from kdsl.kernels.attention.hopper.backward import launch as hopper
from kdsl.kernels.attention.quantized import launch as quantized
from kdsl.kernels.attention.quantized.tunable import tunable_of
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.kernels.launching.prepared import kind_of
from kdsl.kernels.lists import call, chosen
from kdsl.reference.attention import attention as reference_attention
from kdsl.reference.attention_backward import attention_backward as reference_backward
from kdsl.reference.attention_quantized import attention_quantized as reference_quantized
from kdsl.runtime import codecache
from kdsl.runtime.arrays import like
from kdsl.runtime.tunable import Tunable
from kdsl.specs import Attention, canonical

if TYPE_CHECKING:
    from torch import Tensor

FORWARD, KEYS, QUERIES, ALL = "forward", "keys", "queries", "all"
LISTS = 5
"""Tensors of one set of rows of blocks: start, full, partial, index, tiles."""

Tensors = tuple["Tensor", "Tensor", "Tensor"]


@dataclass(frozen=True, eq=False)
class Program:
    """Forward and backward of one spec with the log-sum-exp, by kernels or by the reference.

    ``configs`` has one for each of `FORWARD`, `KEYS`, `QUERIES`, and is empty for the reference.
    Where there is one for `ALL` too, one kernel makes all gradients, unless torch is to use
    deterministic algorithms: it adds dQ up in memory, in an order that differs from call to call.
    Lists and tables come with each call, as tensors on its device: the forward's five (`LISTS`),
    then the inverted ones; tables as the kernels take them, or all of the spec's for the reference.
    """

    spec: Attention
    configs: Mapping[str, Config]

    @cached_property
    def name(self) -> str:
        """Canonical JSON of the program."""
        configs = {part: c.to_json() for part, c in self.configs.items()}
        return canonical({"configs": configs, "spec": self.spec.to_json()})

    @staticmethod
    def from_name(name: str) -> Program:
        """The program of a name; InputError where it speaks of values that only its maker has."""
        value = json.loads(name)
        spec = Attention.from_json(value["spec"])
        kept = [t for t in spec.tables if t.digest and t.values is None]
        if kept:
            raise InputError(
                f"this process does not know the values of table {kept[0].name!r}",
                where=repr(kept[0]),
                hint="kdsl.build(spec) with the table's values, before the graph runs",
            )
        configs = {part: Config.from_json(c) for part, c in value["configs"].items()}
        return Program(spec, configs)

    @cached_property
    def _whole(self) -> Attention:
        """The spec with the log-sum-exp, which the gradients are computed from."""
        return replace(self.spec, return_lse=True)

    @cached_property
    def launches(self) -> dict[Any, tuple[dict[int, Tensor], dict[Any, Any]]]:
        """By device: counters and prepared launches, which outlive the lists of a call."""
        return {}

    def _forward(self, template: str) -> Any:
        """The forward kernel of a template, imported: what tensors fit decides on it."""
        return self._imported(("forward", template), tunable_of(self.spec).source_of)

    @property
    def source(self) -> str:
        """The complete generated file of the kernels of dK and dV."""
        template = self.configs[KEYS].template if KEYS in self.configs else "portable"
        return backward_source(self.spec, template)

    def _backward(self, template: str = "portable") -> Any:
        """The backward kernels of a template, imported."""
        return self._imported(("backward", template), partial(backward_source, self.spec))

    def _imported(self, name: tuple[str, str], source_of: Callable[[str], str]) -> Any:
        if name not in self._modules:
            self._modules[name] = codecache.load(source_of(name[1]))
        return self._modules[name]

    @cached_property
    def _modules(self) -> dict[tuple[str, str], Any]:
        return {}

    @cached_property
    def _classifier(self) -> Any:
        if call.map_of(self.spec) is not None:
            return None
        return codecache.load(generate.source(self.spec, call.TEMPLATE))

    def lists(
        self, tables: Sequence[Tensor], batch: int, inverted: bool, flags: Any = None
    ) -> list[Tensor]:
        """Lists of a call whose tables are on the device, made there; see `kdsl.kernels.lists`."""
        return call.of_call(self.spec, self._classifier, tables, batch, inverted, flags)

    @cached_property
    def _open_to_choice(self) -> Any:
        if not chosen.classified_in_call(self.spec):
            return None
        return codecache.load(generate.source(self.spec.candidates, call.TEMPLATE))

    def chosen(self, q: Tensor, k: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """The blocks that the mask chooses in a call; see `kdsl.kernels.lists.chosen`."""
        return chosen.of_call(self.spec, self._open_to_choice, q, k, tables)

    def forward(
        self, tensors: Tensors, lists: Sequence[Tensor], tables: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp, contiguous."""
        q = tensors[0]
        if nothing_to_do(tensors):
            return empty_results(q)
        if not self.configs:
            out, lse = reference_attention(self.spec, *tensors, self._values(tables))
            return like(out, q), like(lse, q, np.float32)
        config = self._fitting(FORWARD, tensors)
        return launch.launch(
            self._forward(config.template), self._whole, config, self._lists(lists), tensors,
            tuple(tables), kind=(config, kind_of(tensors)),
        )  # fmt: skip

    def _lists(self, tensors: Sequence[Tensor]) -> launch.Lists:
        """The forward's, whose counters and launches stay from call to call."""
        device = tensors[0].device
        return as_lists(tensors, 0, *self.launches.setdefault(device, ({}, {})))

    def quantized(
        self, operands: Sequence[Tensor], lists: Sequence[Tensor], tables: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of a spec with a layout, from its operands."""
        import torch

        layout, dtype = self.spec.layout, getattr(torch, self.spec.dtype)
        assert layout is not None
        q, k, v = (operands[layout.operands.index(name)] for name in "qkv")
        if nothing_to_do((q, k, v)):
            return empty_results(q.to(dtype))
        if not self.configs:
            found = reference_quantized(self.spec, tuple(operands), self._values(tables))
            return like(found.out, q.to(dtype)), like(found.lse, q, np.float32)
        tunable = tunable_of(self.spec, templates=(self.configs[FORWARD].template, "portable"))
        config = fitting(self.configs[FORWARD], (q, k, v), tunable.legal)
        return quantized.launch(
            self._forward(config.template), self._whole, config, self._lists(lists),
            tuple(operands), tuple(tables), kind=(config, kind_of(operands)),
        )  # fmt: skip

    def backward(
        self,
        grads: tuple[Tensor, Tensor | None],
        tensors: Tensors,
        results: tuple[Tensor, Tensor],
        lists: Sequence[Tensor],
        tables: Sequence[Tensor],
        wanted: tuple[bool, bool],
    ) -> Tensors:
        """dQ, dK and dV in the shapes of q, k and v.

        ``grads`` are those of output and log-sum-exp; ``wanted`` says whether dQ, and whether dK
        and dV are: what is not comes back without elements.
        """
        import torch

        q, k, v = tensors
        if nothing_to_do(tensors):
            return tuple(  # type: ignore[return-value]
                torch.zeros_like(x) if w else x.new_empty(0)
                for x, w in zip(tensors, (wanted[0], wanted[1], wanted[1]), strict=True)
            )
        if not self.configs:
            return self._by_reference(grads, tensors, tables, wanted)
        do, dlse = grads
        # An expanded gradient, as that of a sum, would be read one element at a time.
        do = do if do.stride(-1) == 1 else do.contiguous()
        dlse = None if dlse is None else dlse.contiguous()
        kept = self.launches.setdefault(q.device, ({}, {}))
        level, delta = backward.rows(self._backward(), self.spec, *results, do, dlse, kept[1])
        own = tuple(tables)[: len(leaf_tables.tables(self.spec))]  # bits are the forward's
        given = backward.Given(q, k, v, do, level, delta, own, again=True)
        held, turned = as_lists(lists, 0, *kept), as_lists(lists, LISTS, *kept)
        at_once = ALL in self.configs and not torch.are_deterministic_algorithms_enabled()
        if all(wanted) and at_once:
            config = self.configs[ALL]
            dq, dk, dv = (torch.empty_like(x) for x in tensors)
            module = self._backward(config.template)
            hopper.all_into(module, self.spec, config, turned, given, dq, dk, dv)
            return dq, dk, dv
        dq, dk, dv = (x.new_empty(0) for x in tensors)
        if wanted[0]:
            config = self._fitting(QUERIES, given.tensors)
            into, module = _launcher(config), self._backward(config.template)
            dq = torch.empty_like(q)
            into.queries_into(module, self.spec, config, held, given, dq)
        if wanted[1]:
            config = self._fitting(KEYS, given.tensors)
            into, module = _launcher(config), self._backward(config.template)
            dk, dv = backward.key_outputs(self.spec, k, v)
            into.keys_into(module, self.spec, config, turned, given, dk, dv)
            dk, dv = backward.summed_up(self.spec, given, dk, dv)
        return dq, dk, dv

    def _by_reference(
        self,
        grads: tuple[Tensor, Tensor | None],
        tensors: Tensors,
        tables: Sequence[Tensor],
        wanted: tuple[bool, bool],
    ) -> Tensors:
        values = self._values(tables)
        made = reference_backward(self.spec, *tensors, grads[0], values, dlse=grads[1])
        return tuple(  # type: ignore[return-value]
            like(x, t) if w else t.new_empty(0)
            for x, t, w in zip(made, tensors, (wanted[0], wanted[1], wanted[1]), strict=True)
        )

    def _fitting(self, part: str, tensors: tuple[Tensor, ...]) -> Config:
        if part != FORWARD and self.configs[part].template == "hopper":
            return self.configs[part]  # it copies what it cannot fetch
        return fitting(self.configs[part], tensors, self._tunables[part].legal)

    @cached_property
    def _tunables(self) -> Mapping[str, Tunable]:
        templates = tuple(dict.fromkeys(("portable", *(c.template for c in self.configs.values()))))
        whole = AttentionTunable(self._whole, templates=templates)
        keys, queries = BackwardTunable(whole, "keys"), BackwardTunable(whole, "queries")
        return {FORWARD: whole, KEYS: keys, QUERIES: queries}

    def _values(self, tables: Sequence[Tensor]) -> dict[str, Any]:
        names = (t.name for t in self.spec.given_tables)
        return {n: t.cpu().numpy() for n, t in zip(names, tables, strict=True)}


def nothing_to_do(tensors: Tensors) -> bool:
    """Whether there are no queries, no keys or no batch items: nothing is launched then."""
    q, k, _ = tensors
    return not q.numel() or not k.shape[2]


def empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries that see nothing."""
    import torch

    lse = torch.full(q.shape[:3], -float("inf"), dtype=torch.float32, device=q.device)
    return torch.zeros_like(q, memory_format=torch.contiguous_format), lse


def _launcher(config: Config) -> Any:
    """What launches a configuration's backward kernels."""
    return hopper if config.template == "hopper" else backward


def as_lists(
    tensors: Sequence[Tensor],
    at: int = 0,
    counters: dict[int, Tensor] | None = None,
    prepared: dict[Any, Any] | None = None,
) -> launch.Lists:
    """One set of lists among those that stand in a row; counters and launches are the caller's."""
    start, full, partial, index, tiles = tensors[at : at + LISTS]
    return launch.Lists(
        start, full, partial, index, tiles, start.shape[2],
        counters={} if counters is None else counters,
        prepared={} if prepared is None else prepared,
        in_call=True,
    )  # fmt: skip
