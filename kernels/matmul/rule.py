"""Which configurations of the matmul templates are legal, and the default."""

from __future__ import annotations

from collections.abc import Iterator

from kdsl.errors import ConfigError
from kdsl.kernels.matmul import portable
from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.templates import template_of
from kdsl.specs import Matmul
from kdsl.targets import Target

ARCHITECTURES = portable.ARCHITECTURES
TEMPLATES = {"triton": ("portable",), "gluon": ("hopper",), None: ("hopper", "portable")}
"""Templates by backend, the more wanted first."""


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why a configuration cannot run a spec on a GPU, or None."""
    found: str | None = template_of(spec, config.template).problem(spec, config, target)
    return found


def candidates(
    spec: Matmul, target: Target, templates: tuple[str, ...] = TEMPLATES[None]
) -> Iterator[Config]:
    """Configurations from the most to the least wanted, whether legal or not."""
    for template in templates:
        yield from template_of(spec, template).preferences(spec, target)


def default(spec: Matmul, target: Target, templates: tuple[str, ...] = TEMPLATES[None]) -> Config:
    """A good configuration without any measurement; ConfigError where none is legal."""
    reason = ""
    for config in candidates(spec, target, templates):
        found = problem(spec, config, target)
        if found is None:
            return config
        reason = reason or found
    raise ConfigError(
        f"no configuration fits {target.name}: {reason}",
        where=f"{spec.rows} x {spec.inner} x {spec.columns}",
        hint='backend="triton" or "reference"',
    )
