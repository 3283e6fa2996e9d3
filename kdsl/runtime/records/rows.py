"""What the tuning database is made of: frozen rows whose names are hashes of their content.

A row never changes and never goes; what is known later is another row. So the union of two
databases is a union of sets, and everything that looks like a decision ("best") is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from kdsl.errors import StoreError
from kdsl.runtime.records.form import Row, Scalar
from kdsl.targets import Target

SCHEMA_VERSION = 3
STATUSES = (
    "ok", "wrong", "compile_error", "compile_timeout", "oom", "smem", "run_timeout", "crash",
    "too_fast", "skipped",
)  # fmt: skip
"""Outcomes of a candidate. Points that the static model refuses (``illegal``) are no rows: a run
counts them. ``too_fast`` is under the roofline, ``skipped`` was not tried because a relative of it
failed."""
_PREDICTED_STATUSES = ("ok", "compile_error", "compile_timeout", "smem", "skipped")
MASK_STATS = ("density", "partial_share", "row_spread", "run_length")
"""Kept blocks / all blocks; partial / kept blocks; 95th percentile / median of the kept blocks in
a row; mean length of a run of neighbouring kept blocks."""
ALIGNMENTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Workload(Row):
    """What is computed, with its exact sizes.

    ``program`` is the spec's hash without sizes and constants, ``dims`` sizes by name (those of
    ``keys.HARD_DIMS`` shape the program, the others are bucketed), ``align`` the class 1, 2, 4, 8
    or 16 of each pointer and stride, ``mask_stats`` those of :data:`MASK_STATS`, ``numerics``
    switches such as TF32, ``spec_json`` the canonical spec, kept as text and never evaluated here.
    """

    __hash__ = Row.__hash__
    table = "workload"
    op: str
    program: str
    dtypes: Mapping[str, str]
    dims: Mapping[str, int]
    align: Mapping[str, int] = field(default_factory=dict)
    mask_stats: Mapping[str, float] = field(default_factory=dict)
    numerics: Mapping[str, Scalar] = field(default_factory=dict)
    spec_json: str = ""

    def check(self) -> None:
        """Names and ranges."""
        self._require(bool(re.fullmatch(r"[a-z][a-z0-9_]{0,60}", self.op)), f"op {self.op[:80]!r}")
        self._require(min(self.dims.values(), default=0) >= 0, "a size is negative")
        strange = set(self.mask_stats) - set(MASK_STATS)
        self._require(not strange, f"mask statistic {strange} is none of {MASK_STATS}")
        self._require(min(self.mask_stats.values(), default=0) >= 0, "a statistic is negative")
        self._require(
            set(self.align.values()) <= set(ALIGNMENTS), f"alignment is none of {ALIGNMENTS}"
        )


@dataclass(frozen=True, kw_only=True)
class Device(Row):
    """A kind of GPU: the name of ``kdsl.targets``, never a serial number or a host."""

    __hash__ = Row.__hash__
    table = "device"
    name: str
    cc: int
    sms: int
    memory_bytes: int | None = None
    smem_optin: int | None = None
    l2_bytes: int | None = None
    power_cap_w: float | None = None
    """The limit in force, where known: it changes speed, so it is part of the identity."""
    mig: str = ""

    @staticmethod
    def of(target: Target, *, power_cap_w: float | None = None, mig: str = "") -> Device:
        """The device row of a GPU of the table, absent or live."""
        return Device(
            name=target.name,
            cc=target.cc,
            sms=target.sms,
            memory_bytes=target.memory_bytes,
            smem_optin=target.smem_optin,
            l2_bytes=target.l2_bytes,
            power_cap_w=power_cap_w,
            mig=mig,
        )


@dataclass(frozen=True, kw_only=True)
class Toolchain(Row):
    """What compiled it. An empty field is not known and differs from nothing."""

    __hash__ = Row.__hash__
    table = "toolchain"
    kdsl: str
    template_hash: str = ""
    triton: str = ""
    ptxas: str = ""
    nvrtc: str = ""
    cuda: str = ""
    driver: str = ""
    torch: str = ""
    numerics_env: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate(Row):
    """A configuration, flat, of the search space that ``space_hash`` names."""

    __hash__ = Row.__hash__
    table = "candidate"
    space_hash: str
    params: Mapping[str, Scalar]


@dataclass(frozen=True, kw_only=True)
class Run(Row):
    """One start of the tuner; ``host`` and ``card`` are pseudonyms.

    A run that ends adds a second row that ``closes`` the first, with ``ended``, ``complete`` and
    counts; a run without one was cut off and can be resumed. The share of one GPU in a run on
    several is a row of its own, which names the whole in ``part_of``.
    """

    __hash__ = Row.__hash__
    table = "run"
    started: str
    command: str = ""
    budget: str = ""
    sampler: str = ""
    seed: int | None = None
    git_rev: str = ""
    git_dirty: bool = False
    host: str = ""
    card: str = ""
    nonce: str = ""
    closes: str = ""
    ended: str = ""
    complete: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    part_of: str = ""


@dataclass(frozen=True, kw_only=True)
class Measurement(Row):
    """One outcome. Times in microseconds; ``kind`` keeps measured and predicted apart.

    ``ci_lo_us`` and ``ci_hi_us`` bound the median, ``n`` counts samples, of which at most 64 are
    kept. ``error`` is the largest error relative to the reference kernel's own. Every status but
    ``ok`` has a reason, one line of at most 500 characters.
    """

    __hash__ = Row.__hash__
    table = "measurement"
    workload_id: str
    device_id: str
    toolchain_id: str
    candidate_id: str
    run_id: str
    kind: str
    status: str
    created: str
    reason: str = ""
    is_default: bool = False
    n: int = 0
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    ci_lo_us: float | None = None
    ci_hi_us: float | None = None
    samples: tuple[float, ...] = ()
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    stack_bytes: int | None = None
    binary_hash: str = ""
    clock_mhz: float | None = None
    temp_c: float | None = None
    error: float | None = None

    def check(self) -> None:
        """Kind, status, and a time or a reason as the status asks for."""
        object.__setattr__(self, "reason", " ".join(self.reason.split())[:500].rstrip())
        self._require(self.kind in ("measured", "predicted"), f"kind {self.kind[:20]!r}")
        may = STATUSES if self.kind == "measured" else _PREDICTED_STATUSES
        self._require(
            self.status in may, f"a {self.kind} row has no status {self.status[:20]!r}: {may}"
        )
        if self.status != "ok":
            self._require(bool(self.reason), f"status {self.status} needs a reason")
        else:
            self._require((self.median_us or 0) > 0, "status ok needs a median above 0")
            low, high = self.interval()
            self._require(0 <= low <= (self.median_us or 0) <= high, "interval without the median")
        self._require(len(self.samples) <= 64, "more than 64 samples")

    def interval(self) -> tuple[float, float]:
        """Bounds of the median; the median itself where none were recorded."""
        median = self.median_us or 0.0
        low = median if self.ci_lo_us is None else self.ci_lo_us
        return low, median if self.ci_hi_us is None else self.ci_hi_us


TABLES: Mapping[str, type[Row]] = MappingProxyType(
    {cls.table: cls for cls in (Device, Toolchain, Run, Workload, Candidate, Measurement)}
)
"""Row classes by table, referents before those who refer to them."""


@cache
def _names(cls: Any) -> frozenset[str]:
    return frozenset(spec.name for spec in fields(cls)) - {"extra"}


def from_content(table: str, content: Mapping[str, Any]) -> Row:
    """A row of fields by name; unknown names go to ``extra``."""
    cls: Any = TABLES.get(table)
    if cls is None:
        raise StoreError(f"unknown table {table[:80]!r}", hint=", ".join(TABLES))
    names = _names(cls)
    extra = {key: value for key, value in content.items() if key not in names}
    odd = [key for key in extra if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", key)]
    if odd or "extra" in extra or "id" in extra:
        raise StoreError(f"{table}: a field cannot be called {(odd or ['extra'])[0][:80]!r}")
    try:
        row: Row = cls(**{k: v for k, v in content.items() if k in names}, extra=extra)
    except TypeError as error:  # a required field is missing
        raise StoreError(f"{table}: {str(error).rpartition('() ')[2]}") from error
    return row


def now(precision: str = "seconds") -> str:
    """The time in UTC, as rows carry it: to the second, runs to the microsecond to sort them."""
    return datetime.now(UTC).isoformat(timespec=precision)
