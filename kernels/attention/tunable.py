"""Attention as something to tune: its space, what is legal, the default, the work of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import ConfigError
from kdsl.kernels.attention import generate
from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.config import (
    ARCHITECTURES,
    ITEM_BYTES,
    SPACE,
    Config,
    describable,
    head_parts,
    table_dtype,
)
from kdsl.kernels.attention.distilled import distilled
from kdsl.kernels.attention.rule import facts, preferences
from kdsl.kernels.attention.shared import shared_bytes
from kdsl.specs import Attention
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.attention.runner import AttentionRunner

OTHER_REGISTERS = 56
"""Registers of a thread beside its accumulators, about: what cost models assume uncompiled."""


class AttentionTunable:
    """One attention spec with the values of its tables: what the tuner and the builder ask.

    ``tables`` gives the open tables, or a sample of them: the mask that a choice is made for.
    """

    op: str = "attention"
    architectures = ARCHITECTURES

    def __init__(
        self,
        spec: Attention,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        batch: int = 1,
    ) -> None:
        self.spec, self.tables, self.batch = spec, tables, batch

    @cached_property
    def blocks(self) -> Blocks | None:
        """Rows of blocks, or None while a table is not known."""
        missing = {t.name for t in self.spec.open_tables} - set(self.tables or {})
        return None if missing else self.spec.rows(self.tables, self.batch)

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""
        del target
        return dict(SPACE)

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a choice cannot run, or None."""
        try:
            config = Config.from_json(dict(params))
        except ConfigError as error:
            return str(error)
        problem = tile_problem(self.spec, config, target) or narrow_problem(self.spec, config)
        if problem:
            return problem
        each = config.block_m * config.block_n // (config.num_warps * 32)
        single = self.spec.dtype == "float32"
        if config.num_warps > 4 and each < (4 if single else 8):
            return "too many warps for the tile"
        # Without tensor cores the products are unrolled: beyond this compilation takes minutes and
        # most of a tile lies in local memory.
        if single and each * self.spec.head_dim > 1024:
            return f"{each * self.spec.head_dim} multiply-adds a thread and product, 1024 at most"
        # Accumulators alone: beyond this they spill far and wide, and compile for minutes.
        held = accumulators(self.spec, config)
        if held > 256:
            return f"{held} accumulator registers a thread"
        need = shared_bytes(self.spec, config, target)
        if need > target.smem_optin:
            return f"{need} bytes of shared memory, {target.name} has {target.smem_optin}"
        return None

    def default(self, target: Target) -> dict[str, Any]:
        """A good choice without any measurement: legal on this target for this spec."""
        known = distilled(self.facts(target))
        if known is not None and self.legal(known, target) is None:
            return Config.from_json(known).to_json()
        return self.written_default(target)

    def written_default(self, target: Target) -> dict[str, Any]:
        """The default of the written rule alone: what distilled ones are compared with."""
        share = self.statistics().get("partial_share", 0.0)
        for config in preferences(self.spec, target, share):
            if self._fits(config, target):
                return config.to_json()
        raise ConfigError(f"no configuration fits {target.name}", where=repr(self.spec)[:200])

    def facts(self, target: Target) -> dict[str, Any]:
        """What rules may ask."""
        return facts(self.spec, target, self.sizes(), self.statistics())

    def _fits(self, config: Config, target: Target) -> bool:
        return self.legal(config.to_json(), target) is None

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
        held = accumulators(spec, config)
        return Work(
            flop=float(steps.sum()) * step_flop,
            useful_flop=useful * self.batch / counts.shape[0],
            bytes=float((2 * q_rows + 2 * k_rows) * spec.head_dim * item),
            unit=spec.dtype,
            programs=len(steps),
            threads=config.num_warps * 32,
            shared_bytes=shared_bytes(spec, config, target),
            steps=steps,
            step_flop=step_flop,
            step_bytes=2.0 * config.block_n * spec.head_dim * item,
            step_exp=float(config.block_m * config.block_n),
            partial=self._partial_share,
            registers=min(held + OTHER_REGISTERS, 255),
            spill_bytes=4 * max(held + OTHER_REGISTERS - 255, 0),
        )

    @cached_property
    def _partial_share(self) -> float:
        return float(self.statistics().get("partial_share", 0.0))

    @cached_property
    def source(self) -> str:
        """The complete generated kernel file."""
        return generate.source(self.spec)

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        del target
        config = Config.from_json(dict(params))
        return describe_compile(self.spec, config, self.source, self._integers())

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

        return AttentionRunner(self, device, load)

    def statistics(self) -> Mapping[str, float]:
        """Mask statistics; empty while a table is unknown."""
        return {} if self.blocks is None else self.blocks.statistics()


def tile_problem(spec: Attention, config: Config, target: Target) -> str | None:
    """Why tiles or loads do not go with a spec and a GPU, or None."""
    if target.capability < min(ARCHITECTURES):
        return f"{target.name} is below compute capability 8.0"
    block_q, block_k = spec.block
    if block_q % config.block_m or block_k % config.block_n:
        tile = f"{config.block_m} x {config.block_n}"
        return f"tiles of {tile} do not divide blocks of {block_q} x {block_k}"
    if config.loads == "descriptor":
        if target.capability < (9, 0):
            return f"{target.name} has no tensor descriptors"
        if not describable(spec):
            return "tensor descriptors need the original order"
        if spec.dtype == "float32":
            return "tensor descriptors are for 16-bit products, which read shared memory"
    return None


def narrow_problem(spec: Attention, config: Config) -> str | None:
    """Why a narrow tile does not go with the spec's blocks, or None."""
    for side, block in zip((config.block_m, config.block_n), spec.block, strict=True):
        if side == 16 < block:
            return f"a tile side of 16 is for mask blocks of 16 alone, this one is {block}"
    return None


def accumulators(spec: Attention, config: Config) -> int:
    """Registers of a thread that hold the scores of a step and the output."""
    columns = sum(head_parts(spec.head_dim)) + config.block_n
    return config.block_m * columns // (config.num_warps * 32)


def describe_compile(
    spec: Attention, config: Config, source: str, integers: Mapping[str, int | None]
) -> AheadOfTime:
    """The kernel's types and constants, as a call with aligned, contiguous tensors gives them.

    Triton makes a constant of an integer that is 1, and notes which ones are multiples of 16.
    """
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[spec.dtype]
    d0, d1 = head_parts(spec.head_dim)
    described = config.loads == "descriptor"
    constants: dict[Any, Any] = {
        "GROUP": spec.group,
        "D0": d0,
        "D1": d1,
        "MASK_M": spec.block[0],
        "MASK_N": spec.block[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "DESCRIBED": described,
        "LSE": spec.return_lse,
        "PRECISION": "ieee",
    }
    signature: dict[str, Any] = {"o": f"*{short}", "lse": "*fp32"}
    divisible: list[Any] = ["o", "lse"]
    rows = {"q": config.block_m, "k": config.block_n, "v": config.block_n}
    for name, n in rows.items():
        signature[name] = f"tensordesc<{short}[1, 1, {n}, {d0}]>" if described else f"*{short}"
        if described and d1:
            signature[f"{name}_tail"] = f"tensordesc<{short}[1, 1, {n}, {d1}]>"
        else:
            constants[f"{name}_tail"] = None
        divisible += [] if described else [name]
    for name in ("start", "full", "partial", "index", "tiles"):
        signature[name] = "*i32"
        divisible.append(name)
    types = {"int32": "*i32", "int16": "*i16", "uint8": "*u8", "int8": "*i8"}
    held = leaf_tables.tables(spec)
    signature["tables"] = tuple(types[table_dtype(t)] for t in held)
    divisible += [("tables", i) for i in range(len(held))]
    for name in "qkvo":
        constants[f"{name}_d"] = 1
    for name, value in integers.items():
        if value == 1:
            constants[name] = 1
            continue
        signature[name] = "i32" if value is None or value < 2**31 else "i64"
        if value is not None and value % 16 == 0:
            divisible.append(name)
    signature["scale_log2"] = "fp32"
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return AheadOfTime(source, "attention_forward", signature, constants, tuple(divisible), options)
