"""Quantized attention as something to tune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention import generate
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.config import resources
from kdsl.kernels.attention.quantized import portable
from kdsl.kernels.attention.quantized.hopper import config as hopper
from kdsl.kernels.attention.quantized.shared import shared_bytes
from kdsl.kernels.attention.tunable import OTHER_REGISTERS, AttentionTunable
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

if TYPE_CHECKING:
    from kdsl.kernels.attention.quantized.runner import QuantizedRunner

UNITS = {"e4m3": "float8_e4m3", "uint8": "int8", "int8": "int8", "uint4": "int8"}
"""What multiplies weights and v, by the weights' code."""


class QuantizedTunable(AttentionTunable):
    """Attention of a spec with a layout: the templates of this folder."""

    op = "attention_quantized"
    architectures = portable.ARCHITECTURES

    def problem(self, config: Config, target: Target) -> str | None:
        """Why a template cannot run a configuration, or None."""
        by_template = {"portable": portable.legal, "hopper": hopper.legal}
        return by_template[config.template](self.spec, config, target)

    def preferences(self, target: Target) -> Iterator[Config]:
        """Configurations from the most to the least wanted."""
        yield from hopper.preferences(self.spec)
        yield from portable.preferences(self.spec, target)

    def distilled(self, target: Target) -> dict[str, Any] | None:
        """What measured rows of this operation say of a default: nothing yet."""
        del target
        return None

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Counts of one call.  ``step_flop`` is in operations of the unit that multiplies q and k:
        one of a slower unit counts as often as it takes longer."""
        spec, layout = self.spec, portable.layout_of(self.spec)
        plain, config = super().work(params, target), Config.from_json(dict(params))
        unit = UNITS[layout.weights] if layout.weights else spec.dtype
        slower = (target.peak("int8") or 1.0) / (target.peak(unit) or target.peak("int8") or 1.0)
        q = (self.batch, spec.heads, spec.query_grid.tokens, spec.head_dim)
        k = (self.batch, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
        out = self.batch * spec.heads * spec.query_grid.tokens * spec.head_dim * 2
        registers = portable.accumulators(spec, config) + OTHER_REGISTERS
        if config.template == "hopper":
            registers = resources(config).at_launch
        item = 1 if layout.v is not None else 2
        return replace(
            plain,
            bytes=float(layout.nbytes(q, k) + out),
            before_bytes=0.0,
            unit="int8",
            step_flop=plain.step_flop * (1 + slower) / 2,
            step_bytes=float(config.block_n * spec.head_dim * (1 + item)),
            registers=min(registers, 255),
            spill_bytes=4 * max(registers - 255, 0),
        )

    def shared_bytes(self, config: Config, target: Target) -> int:
        """Bytes that a program asks for: never below the compiler's figure, at most 10 % above."""
        if config.template == "hopper":
            return hopper.shared_bytes(self.spec, config)
        return shared_bytes(self.spec, config, target)

    def source_of(self, template: str) -> str:
        """The complete generated file of a template."""
        if template == "hopper":
            return generate.hopper_source(self.spec, hopper.MODULES)
        return generate.source(self.spec, portable.TEMPLATE)

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """What to hand to the compiler for a GPU that need not be there."""
        del target
        config = Config.from_json(dict(params))
        source = self.source_of(config.template)
        if config.template == "hopper":
            integers = {**self._sizes_of_call(config), **self._groups()}
            return hopper.ahead_of_time(self.spec, config, source, integers)
        return portable.ahead_of_time(self.spec, config, source, self._integers())

    def _integers(self) -> dict[str, int | None]:
        spec, layout = self.spec, portable.layout_of(self.spec)
        out = {**super()._integers(), **self._groups()}
        q = (self.batch, spec.heads, spec.query_grid.tokens, spec.head_dim)
        k = (self.batch, spec.group_heads, spec.key_grid.tokens, spec.head_dim)
        shapes = layout.shapes(q, k, spec.dtype)
        out["v_groups"] = shapes["v_sum"][0][2] if "v_sum" in shapes else 0
        if layout.v is not None:
            _, heads, channels, tokens = shapes["v"][0]
            out |= {"v_b": heads * channels * tokens, "v_h": channels * tokens, "v_n": tokens}
        return out

    def _groups(self) -> dict[str, int | None]:
        """Groups of tokens of a head of q and of k."""
        spec, layout = self.spec, portable.layout_of(self.spec)
        q = layout.q.scale_shape(spec.query_grid.tokens, spec.head_dim)[0]
        return {"q_groups": q, "k_groups": layout.k.scale_shape(spec.key_grid.tokens, 1)[0]}

    @property
    def template_hash(self) -> str:
        """Identity of the template and of what generates into it."""
        return generate.template_hash(portable.TEMPLATE, *hopper.MODULES)

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> QuantizedRunner:
        """Inputs, calls and checks on a torch device; every table must have values."""
        from kdsl.kernels.attention.quantized.runner import QuantizedRunner

        return QuantizedRunner(self, device, load)


def tunable_of(spec: Any, *args: Any, **named: Any) -> AttentionTunable:
    """What may be chosen about attention of a spec, with a layout or without."""
    kind = AttentionTunable if spec.layout is None else QuantizedTunable
    return kind(spec, *args, **named)
