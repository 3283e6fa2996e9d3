"""Which template a configuration of a spec is of."""

from __future__ import annotations

from types import ModuleType

from kdsl.kernels.matmul import portable
from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.facts import view
from kdsl.kernels.matmul.hopper import coded_config, config
from kdsl.specs import Matmul


def template_of(spec: Matmul, name: str) -> ModuleType:
    """The module that says all about a template: problem, preferences, constants, options, source,
    shared_bytes, sums; of Hopper's also boxes.

    Hopper has one for weights of 8 bits and one for fewer.
    """
    if name == "portable":
        return portable
    return coded_config if view(spec).group else config


def transposed(spec: Matmul, chosen: Config) -> bool:
    """Whether the product is computed with weights as its first operand."""
    return chosen.template == "hopper" and bool(view(spec).group)
