"""Clock, temperature and power limit of an NVIDIA GPU."""

from __future__ import annotations

import shutil
import subprocess
from importlib import import_module
from typing import Any

from kdsl.autotune.measuring.device import Vitals


class Gauge:
    """Reads a GPU by its UUID: through NVML's Python binding if it is there, else nvidia-smi."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self._nvml, self._handle = _nvml(uuid)
        self._tool = shutil.which("nvidia-smi") if self._nvml is None else None

    def vitals(self) -> Vitals:
        """Clock of the multiprocessors in MHz and temperature in degrees Celsius."""
        if self._nvml is not None:
            n = self._nvml
            clock = _asked(lambda: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_SM))
            heat = _asked(lambda: n.nvmlDeviceGetTemperature(self._handle, n.NVML_TEMPERATURE_GPU))
            return Vitals(clock, heat)
        clock, heat = self._query("clocks.sm", "temperature.gpu")
        return Vitals(clock, heat)

    def power_cap_w(self) -> float | None:
        """The power limit in force, in watts."""
        if self._nvml is not None:
            n = self._nvml
            cap = _asked(lambda: n.nvmlDeviceGetEnforcedPowerLimit(self._handle))
            return None if cap is None else cap / 1000
        return self._query("power.limit")[0]

    def driver(self) -> str:
        """The driver's version; empty if nobody says."""
        if self._nvml is not None:
            said = self._nvml.nvmlSystemGetDriverVersion()
            return said.decode() if isinstance(said, bytes) else str(said)
        return next(iter(self._lines("driver_version")), "")

    def _query(self, *fields: str) -> list[float | None]:
        line = next(iter(self._lines(*fields)), "")
        parts = [_number(part) for part in line.split(",")]
        return [*parts, *[None] * len(fields)][: len(fields)]

    def _lines(self, *fields: str) -> list[str]:
        if self._tool is None:
            return []
        command = [self._tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                [*command, "-i", self.uuid], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        return [line.strip() for line in done.stdout.splitlines()] if not done.returncode else []


def _nvml(uuid: str) -> tuple[Any, Any]:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
    except Exception:
        return None, None


def _asked(question: Any) -> float | None:
    try:
        return float(question())
    except Exception:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
