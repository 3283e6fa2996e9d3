"""The reading side of the tuning database: rows, keys, stores and the look-up ladder.

Standard library alone, because every build looks up. Writing is the tuner's
(``kdsl.autotune.store``).
"""

from kdsl.runtime.records.form import Row
from kdsl.runtime.records.keys import Key
from kdsl.runtime.records.ladder import Config, Found, Mode, lookup
from kdsl.runtime.records.link import Place, default_place
from kdsl.runtime.records.rows import (
    Candidate,
    Device,
    Measurement,
    Run,
    Toolchain,
    Workload,
)
from kdsl.runtime.records.select import Standing, Trial, ranked
from kdsl.runtime.records.sources import MemorySource, Source, default_sources, shipped

__all__ = [
    "Candidate",
    "Config",
    "Device",
    "Found",
    "Key",
    "Measurement",
    "MemorySource",
    "Mode",
    "Place",
    "Row",
    "Run",
    "Source",
    "Standing",
    "Toolchain",
    "Trial",
    "Workload",
    "default_place",
    "default_sources",
    "lookup",
    "ranked",
    "shipped",
]
