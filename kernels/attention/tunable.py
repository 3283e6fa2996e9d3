"""Attention as something to tune: its space, what is legal, the default, the work of a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import ConfigError
from kdsl.kernels.attention import generate, portable
from kdsl.kernels.attention.config import (
    ARCHITECTURES,
    BACKENDS,
    ITEM_BYTES,
    OFFERED,
    Config,
    space_of,
)
from kdsl.kernels.attention.distilled import distilled
from kdsl.kernels.attention.hopper import config as hopper
from kdsl.kernels.attention.portable import accumulators
from kdsl.kernels.attention.rule import copied_bytes, facts, preferences
from kdsl.kernels.attention.shared import shared_bytes
from kdsl.kernels.lists import packed as bits
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.attention.runner import AttentionRunner

OTHER_REGISTERS = 56
"""Registers of a thread beside its accumulators, about: what cost models assume uncompiled."""
BITS_COST = 0.23
"""Instructions that a pair of a partial block takes by bits over those by a leaf: 128 a thread and
step against 550 of a video window's, counted in SASS for sm_90."""
FEW_PARTIAL = 0.01
"""Share of partial blocks below which bits and leaf are the same choice."""


class AttentionTunable:
    """One attention spec with the values of its tables: what the tuner and the builder ask.

    ``tables`` gives the open tables, or a sample of them: the mask that a choice is made for.
    ``templates`` are those that may be chosen.
    """

    op: str = "attention"
    architectures: tuple[tuple[int, int], ...] = ARCHITECTURES

    def __init__(
        self,
        spec: Attention,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        batch: int = 1,
        templates: tuple[str, ...] = OFFERED,
    ) -> None:
        self.spec, self.tables, self.batch, self.templates = spec, tables, batch, templates

    @cached_property
    def blocks(self) -> Blocks | None:
        """Rows of blocks, or None while a table is not known."""
        settled = self.settled
        if settled is not self:
            return None if settled is None else settled.blocks
        missing = {t.name for t in self.spec.open_tables} - set(self.tables or {})
        return None if missing else self.spec.rows(self.tables, self.batch)

    @cached_property
    def settled(self) -> AttentionTunable | None:
        """The same with values for what the mask chooses in a call; None while they are not known.

        They are the sample that the tables hold, or as many blocks as will be chosen.
        """
        spec, held = self.spec, dict(self.tables or {})
        choice = spec.mask.choice
        if choice is None:
            return self
        if {t.name for t in spec.open_tables} - set(held):
            return None
        shared = False
        if choice.name not in held:
            made = choice.estimate(spec.candidates.rows(held, self.batch).kept()[0])
            if made is None:
                return None
            shared = len(made) == 1
            held[choice.name] = made.astype(np.uint8)
        return type(self)(spec.settled(shared), held, self.batch, self.templates)

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""
        here = [t for t in self.templates if t != "hopper" or target.capability == (9, 0)]
        return space_of(here or self.templates)

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a choice cannot run, or None."""
        try:
            config = Config.from_json(dict(params))
        except ConfigError as error:
            return str(error)
        if config.template not in self.templates:
            return (
                f'the {config.template} template is for backend="{BACKENDS[config.template]}" alone'
            )
        return self.problem(config, target)

    def problem(self, config: Config, target: Target) -> str | None:
        """Why a template cannot run a configuration, or None."""
        if config.template == "portable":
            return portable.legal(self.spec, config, target)
        return hopper.legal(self.spec, config, target) or self._bits_problem(config)

    def _bits_problem(self, config: Config) -> str | None:
        if config.masks != "bits" or self.blocks is None:
            return None
        if self._partial_share < FEW_PARTIAL:
            return "hardly any block is partial: no bits to make"
        asked = int(self.blocks.partial.sum()) * bits.block_bytes(self.spec)
        if asked > bits.MOST_BYTES:
            return f"bits of all partial blocks may take {asked >> 20} MiB"
        return None

    def preferences(self, target: Target) -> Iterator[Config]:
        """Configurations from the most to the least wanted; the last ones fit almost anything."""
        return preferences(self.spec, target, self.statistics())

    def default(self, target: Target) -> dict[str, Any]:
        """A good choice without any measurement: legal on this target for this spec."""
        known = self.distilled(target)
        if known is not None and self.legal(known, target) is None:
            return Config.from_json(known).to_json()
        return self.written_default(target)

    def distilled(self, target: Target) -> dict[str, Any] | None:
        """What measured rows say of a default, where the spec lies within them."""
        return distilled(self.facts(target))

    def written_default(self, target: Target) -> dict[str, Any]:
        """The default of the written rule alone: what distilled ones are compared with."""
        reason = None
        for config in self.preferences(target):
            if config.template not in self.templates:
                continue
            reason = self.legal(config.to_json(), target)
            if reason is None:
                return config.to_json()
        raise ConfigError(
            f"no configuration fits {target.name}{f': {reason}' if reason else ''}",
            where=repr(self.spec)[:200],
        )

    def facts(self, target: Target) -> dict[str, Any]:
        """What rules may ask."""
        return facts(self.spec, target, self.sizes(), self.statistics())

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Counts of one call with these rows of blocks; a dense mask where they are unknown."""
        spec, config = self.spec, Config.from_json(dict(params))
        split_m, split_n = spec.block[0] // config.block_m, spec.block[1] // config.block_n
        queries, keys = spec.query_grid.tokens, spec.key_grid.tokens
        if self.blocks is None:
            rows, columns = (-(-n // b) for n, b in zip((queries, keys), spec.block, strict=True))
            counts = np.full((1, spec.heads, rows), columns)
        else:
            counts = np.broadcast_to(
                self.blocks.counts, (self.blocks.start.shape[0], spec.heads, self.blocks.rows)
            )
        each = -np.sort(-counts.reshape(counts.shape[0], -1).astype(np.int64), axis=1)
        steps = np.repeat(each * split_n, split_m, axis=1)
        steps = np.broadcast_to(steps, (self.batch, steps.shape[1])).reshape(-1)
        step_flop = 4.0 * config.block_m * config.block_n * spec.head_dim
        item = ITEM_BYTES[spec.dtype]
        q_rows = self.batch * spec.heads * queries
        k_rows = self.batch * spec.group_heads * keys
        useful = 4.0 * spec.block[0] * spec.block[1] * spec.head_dim * float(counts.sum())
        registers = accumulators(spec, config) + OTHER_REGISTERS
        if config.template == "hopper":
            registers = hopper.resources(config).at_launch
        return Work(
            flop=float(steps.sum()) * step_flop,
            useful_flop=useful * self.batch / counts.shape[0],
            bytes=float((2 * q_rows + 2 * k_rows) * spec.head_dim * item),
            unit=spec.dtype,
            programs=min(len(steps), config.workers * target.sms or len(steps)),
            threads=self._threads(config),
            shared_bytes=self.shared_bytes(config, target),
            steps=steps,
            step_flop=step_flop,
            step_bytes=2.0 * config.block_n * spec.head_dim * item,
            step_exp=float(config.block_m * config.block_n),
            partial=self._partial_share * (BITS_COST if config.masks == "bits" else 1.0),
            registers=min(registers, 255),
            spill_bytes=4 * max(registers - 255, 0),
            before_bytes=self.batch * copied_bytes(spec) if config.template == "hopper" else 0.0,
        )

    def _threads(self, config: Config) -> int:
        """Threads of a program: a producer warp comes with three idle ones."""
        return config.num_warps * 32 + (128 if config.template == "hopper" else 0)

    def shared_bytes(self, config: Config, target: Target) -> int:
        """Bytes that a program asks for: never below the compiler's figure, at most 10 % above."""
        if config.template == "hopper":
            return hopper.shared_bytes(self.spec, config)
        return shared_bytes(self.spec, config, target)

    @cached_property
    def _partial_share(self) -> float:
        return float(self.statistics().get("partial_share", 0.0))

    @cached_property
    def source(self) -> str:
        """The complete generated file of the portable template."""
        return self.source_of("portable")

    def source_of(self, template: str) -> str:
        """The complete generated file of a template."""
        if template == "hopper":
            return generate.hopper_source(self.spec)
        return generate.source(self.spec)

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        del target
        config = Config.from_json(dict(params))
        source = self.source_of(config.template)
        if config.template == "hopper":
            return hopper.ahead_of_time(self.spec, config, source, self._sizes_of_call(config))
        return portable.ahead_of_time(self.spec, config, source, self._integers())

    def _sizes_of_call(self, config: Config) -> dict[str, int | None]:
        """Integer arguments of the Hopper template."""
        held = self._integers()
        wanted = ("list_b", "list_h", "heads", "rows", "queries", "keys")
        split = self.spec.block[0] // config.block_m
        rows = -(-self.spec.query_grid.tokens // self.spec.block[0])
        strides = {name: held[name] for name in ("o_b", "o_h", "o_n")}
        if hopper.stores_by_descriptor(self.spec):
            strides = dict.fromkeys(strides, 0)
        total = self.batch * self.spec.heads * rows * split
        return {**strides, **{name: held[name] for name in wanted}, "total": total}

    def _integers(self) -> dict[str, int | None]:
        """Integer arguments of a call with contiguous tensors; None where they are not known."""
        spec, blocks = self.spec, self.blocks
        d, queries, keys = spec.head_dim, spec.query_grid.tokens, spec.key_grid.tokens
        out: dict[str, int | None] = {"heads": spec.heads, "queries": queries, "keys": keys}
        for name, heads, tokens in (
            ("q", spec.heads, queries),
            ("k", spec.group_heads, keys),
            ("v", spec.group_heads, keys),
            ("o", spec.heads, queries),
        ):
            out |= {f"{name}_b": heads * tokens * d, f"{name}_h": tokens * d, f"{name}_n": d}
        out["rows"] = -(-queries // spec.block[0])
        out["list_b"] = out["list_h"] = None
        if blocks is not None:
            batch, heads, rows = blocks.start.shape
            out["list_b"] = heads * rows if batch > 1 else 0
            out["list_h"] = rows if heads > 1 else 0
        return out

    @property
    def template_hash(self) -> str:
        """Identity of the template and of what generates into it."""
        return generate.template_hash()

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name."""
        spec = self.spec
        return {
            "batch": self.batch,
            "heads": spec.heads,
            "queries": spec.query_grid.tokens,
            "keys": spec.key_grid.tokens,
            "head_dim": spec.head_dim,
            "group": spec.group,
            "block_q": spec.block[0],
            "block_k": spec.block[1],
        }

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> AttentionRunner:
        """Inputs, calls and checks on a torch device; every table must have values."""
        from kdsl.kernels.attention.runner import AttentionRunner

        assert self.settled is not None, "every table needs values"
        return AttentionRunner(self.settled, device, load)

    def statistics(self) -> Mapping[str, float]:
        """Mask statistics; empty while a table is unknown."""
        return {} if self.blocks is None else self.blocks.statistics()
