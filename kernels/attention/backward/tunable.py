"""The backward kernels as something to tune: each is one, for their best tiles differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import ConfigError
from kdsl.kernels.attention import generate
from kdsl.kernels.attention.backward import compiling
from kdsl.kernels.attention.backward.compiling import Part
from kdsl.kernels.attention.backward.launch import TEMPLATE, summed
from kdsl.kernels.attention.backward.rule import preferences
from kdsl.kernels.attention.backward.shared import shared_bytes
from kdsl.kernels.attention.config import (
    BACKENDS,
    ITEM_BYTES,
    OFFERED,
    OFFERED_BACKWARD,
    Config,
)
from kdsl.kernels.attention.hopper.backward import config as hopper
from kdsl.kernels.attention.portable import narrow_problem, tile_problem
from kdsl.kernels.attention.tunable import OTHER_REGISTERS, AttentionTunable
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

PARTS: tuple[Part, ...] = ("keys", "queries")
"""What makes the same gradients, bit for bit, every time."""
KERNELS: tuple[Part, ...] = (*PARTS, "all")
HELD, HELD_SINGLE = 192, 72
"""Accumulators a thread, of 16 bits and of float32 operands, beyond which they spill far and wide,
and compile for minutes."""


class BackwardTunable(AttentionTunable):
    """One backward kernel of an attention spec: ``keys`` for dK and dV, ``queries`` for dQ, ``all``
    for the three at once, of the Hopper template alone.

    Configurations are those of the forward: ``block_m`` queries and ``block_n`` keys a tile.  Where
    the forward was asked to take one template these take it too, and others for what it has not.
    """

    def __init__(self, forward: AttentionTunable, part: Part) -> None:
        templates: tuple[str, ...] = OFFERED_BACKWARD
        if forward.templates != OFFERED:
            templates = tuple(dict.fromkeys((*forward.templates, "portable")))
        if part == "all":
            templates = tuple(t for t in templates if t == "hopper")
        super().__init__(forward.spec, forward.tables, forward.batch, templates)
        self.forward, self.part = forward, part
        self.op = f"attention_backward_{part}"

    @cached_property
    def blocks(self) -> Blocks | None:
        """The forward's rows of blocks, or None while a table is not known."""
        return self.forward.blocks

    @cached_property
    def lists(self) -> Blocks | None:
        """The rows of blocks that the kernel reads, or None while a table is not known."""
        if self.blocks is None or self.part == "queries":
            return self.blocks
        return self.blocks.transpose()

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
        if self.spec.stored:
            return "tensors in stored order have no gradients yet"
        if config.template == "hopper":
            return hopper.legal(self.spec, config, target, self.part)
        problem = tile_problem(self.spec, config, target) or self._problem(config)
        if problem:
            return problem
        need = shared_bytes(self.spec, config, self.part, target)
        if need > target.smem_optin:
            return f"{need} bytes of shared memory, {target.name} has {target.smem_optin}"
        return None

    def _problem(self, config: Config) -> str | None:
        """Why a choice is no good on any GPU, or None."""
        single = self.spec.dtype == "float32"
        if not single:
            if config.num_stages == 1:
                return "with one stage no tile is in flight"
            problem = narrow_problem(self.spec, config)
            if problem:
                return problem
        if config.num_warps > 4 and config.block_m * config.block_n // (config.num_warps * 32) < 4:
            return "too many warps for the tile"
        held = accumulators(self.spec, config, self.part)
        if held > (HELD_SINGLE if single else HELD):
            return f"{held} accumulator registers a thread"
        return None

    def default(self, target: Target) -> dict[str, Any]:
        """A good choice without any measurement: legal on this target for this spec."""
        return self.written_default(target)

    def written_default(self, target: Target) -> dict[str, Any]:
        """The first of the written rule that is legal."""
        hopper_first: Iterable[Config] = (
            hopper.preferences(self.part) if "hopper" in self.templates else ()
        )
        portable: Iterable[Config] = (
            preferences(self.spec, target, self.part) if self.part != "all" else ()
        )
        for config in (*hopper_first, *portable):
            params = config.to_json()
            if self.legal(params, target) is None:
                return params
        raise ConfigError(f"no configuration fits {target.name}", where=repr(self.spec)[:200])

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Counts of one call; a dense mask where the rows of blocks are unknown.

        dK and dV take four products a pair of tiles (scores, dP, and one each), dQ three, all five.
        """
        spec, config = self.spec, Config.from_json(dict(params))
        own, other = spec.block[0] // config.block_m, spec.block[1] // config.block_n
        products, together = 6.0, 1
        if self.part != "queries":
            own, other, together = other, own, summed(spec)
            products = 8.0 if self.part == "keys" else 10.0
        counts = self._counts()
        useful = products * spec.block[0] * spec.block[1] * spec.head_dim * float(counts.sum())
        tiles = counts.reshape(counts.shape[0], -1, together, counts.shape[2]).sum(2)
        each = -np.sort(-tiles.reshape(counts.shape[0], -1).astype(np.int64), axis=1)
        steps = np.repeat(each * other, own, axis=1)
        steps = np.broadcast_to(steps, (self.batch, steps.shape[1])).reshape(-1)
        step_flop = products * config.block_m * config.block_n * spec.head_dim
        item, held = ITEM_BYTES[spec.dtype], accumulators(spec, config, self.part)
        moving = config.block_n if self.part == "queries" else config.block_m
        registers = held + OTHER_REGISTERS
        if config.template == "hopper":
            registers = hopper.launch_options(config)["maxnreg"]
        return Work(
            flop=float(steps.sum()) * step_flop,
            useful_flop=useful * self.batch / counts.shape[0],
            bytes=self._bytes(item),
            unit=spec.dtype,
            programs=len(steps),
            threads=self._threads(config),
            shared_bytes=self.shared_bytes(config, target),
            steps=steps,
            step_flop=step_flop,
            step_bytes=2.0 * moving * spec.head_dim * item,
            step_exp=float(config.block_m * config.block_n),
            partial=self._partial_share,
            registers=min(registers, 255),
            spill_bytes=4 * max(registers - 255, 0),
        )

    def shared_bytes(self, config: Config, target: Target) -> int:
        """Bytes that a program asks for: never below the compiler's figure, at most 10 % above."""
        if config.template == "hopper":
            return hopper.shared_bytes(self.spec, config, self.part)
        return shared_bytes(self.spec, config, self.part, target)

    def _counts(self) -> npt.NDArray[Any]:
        """Kept blocks ``[batch or 1, heads, lines]`` of the lists that the kernel reads."""
        spec, lists = self.spec, self.lists
        if lists is not None:
            return np.broadcast_to(lists.counts, (lists.start.shape[0], spec.heads, lists.rows))
        rows = -(-spec.query_grid.tokens // spec.block[0])
        columns = -(-spec.key_grid.tokens // spec.block[1])
        if self.part != "queries":
            rows, columns = columns, rows
        return np.full((1, spec.heads, rows), columns)

    def _bytes(self, item: int) -> float:
        """Inputs once and outputs once: q, do, k, v, two numbers a query, and the gradients."""
        spec = self.spec
        q_rows = self.batch * spec.heads * spec.query_grid.tokens
        k_rows = self.batch * spec.group_heads * spec.key_grid.tokens
        read = (2 * q_rows + 2 * k_rows) * spec.head_dim * item + 8 * q_rows
        if self.part == "queries":
            return float(read + q_rows * spec.head_dim * item)
        if self.part == "all":
            # Sums are set to 0, added to, read, and settled.
            read += q_rows * spec.head_dim * (3 * 4 + item)
        if summed(spec) < spec.group:
            return float(read + 2 * k_rows * spec.group * spec.head_dim * 4)
        return float(read + 2 * k_rows * spec.head_dim * item)

    @cached_property
    def source(self) -> str:
        """The complete generated file of the portable kernels."""
        return self.source_of("portable")

    def source_of(self, template: str) -> str:
        """The complete generated file of a template, with all its backward kernels."""
        return source(self.spec, template)

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        del target
        config = Config.from_json(dict(params))
        text, describe = self.source_of(config.template), compiling.describe
        if config.template == "hopper":
            describe = hopper.ahead_of_time
        return describe(self.spec, config, self.part, text, self.lists)

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name; ``summed`` heads make one program of dK and dV."""
        own = {"summed": summed(self.spec)} if self.part != "queries" else {}
        return {**super().sizes(), **own}

    @property
    def template_hash(self) -> str:
        """Identity of the template and of what generates into it."""
        return generate.template_hash(TEMPLATE, *generate.HOPPER_BACKWARD)

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> Any:
        """A `BackwardRunner` on a torch device; every table must have values."""
        from kdsl.kernels.attention.backward.runner import BackwardRunner

        settled = self.forward.settled
        assert settled is not None, "every table needs values"
        own = self if settled is self.forward else BackwardTunable(settled, self.part)
        return BackwardRunner(own, device, load)


def kernels(forward: AttentionTunable, target: Target) -> tuple[Part, ...]:
    """The backward kernels there are for a spec on a GPU."""
    every = BackwardTunable(forward, "all")
    fits = (every.legal(c.to_json(), target) is None for c in hopper.preferences("all"))
    return KERNELS if any(fits) else PARTS


def source(spec: Attention, template: str) -> str:
    """The complete generated file of a template's backward kernels."""
    if template == "hopper":
        return generate.hopper_source(spec, generate.HOPPER_BACKWARD)
    return generate.source(spec, TEMPLATE)


def accumulators(spec: Attention, config: Config, part: Part) -> int:
    """Float32 numbers that a thread keeps: gradients of its rows, and two tiles of scores."""
    rows = config.block_m if part == "queries" else 2 * config.block_n
    kept = rows * spec.head_dim + 2 * config.block_m * config.block_n
    return kept // (config.num_warps * 32)
