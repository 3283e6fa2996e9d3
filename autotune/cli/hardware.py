"""Which GPUs are here and how they are measured: the one place where tests put others."""

from __future__ import annotations

from collections.abc import Mapping

from kdsl.autotune.compiling import CompilePool
from kdsl.autotune.measuring import Card
from kdsl.autotune.measuring.present import Present, devices
from kdsl.targets import Target


class Hardware:
    """The real machine."""

    def gpus(self, target: Target | None = None) -> list[Present]:
        """The GPUs here, of that model where one is given."""
        return [d for d in devices() if target is None or d.target.name == target.name]

    def card(self, found: Present) -> Card:
        """What the measuring process drives."""
        from kdsl.autotune.measuring.cuda import CudaCard

        return CudaCard(found.index)

    def pool(self, jobs: int, environment: Mapping[str, str]) -> CompilePool:
        """What compiles."""
        return CompilePool(jobs, environment=environment)
