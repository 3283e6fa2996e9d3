"""Settings of a kernel by name, as they come from a user or a database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsl.errors import ConfigError


def checked(
    value: Mapping[str, Any], space: Mapping[str, tuple[Any, ...]], where: str = ""
) -> dict[str, Any]:
    """The settings, if a space has them all; ConfigError names the first that it has not."""
    unknown = sorted(set(value) - set(space))
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}", hint=", ".join(space))
    for name, choice in value.items():
        if choice not in space[name]:
            raise ConfigError(f"{name}={choice!r}{where}", hint=f"one of {space[name]}")
    return dict(value)
