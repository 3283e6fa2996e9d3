"""Which configurations are legal, and the default."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from kdsl.errors import ConfigError
from kdsl.kernels.matmul.weight_only import portable, stream
from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.specs import Matmul
from kdsl.targets import Target

ARCHITECTURES = portable.ARCHITECTURES
TEMPLATES = {"cuda": ("stream",), "triton": ("portable",), None: ("stream", "portable")}
"""Templates by backend, the more wanted first."""
MODULES: dict[str, ModuleType] = {"stream": stream, "portable": portable}


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why a configuration cannot run a spec on a GPU, or None."""
    found: str | None = MODULES[config.template].problem(spec, config, target)
    return found


def candidates(
    spec: Matmul, target: Target, templates: tuple[str, ...] = TEMPLATES[None]
) -> Iterator[Config]:
    """Configurations from the most to the least wanted, whether legal or not."""
    for template in templates:
        yield from MODULES[template].preferences(spec, target)


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
