"""Configurations of the pre-pass: what may be chosen, what is legal, the default."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdsl.errors import ConfigError
from kdsl.kernels.prepass.facts import groups_of, halves, starts
from kdsl.kernels.prepass.shared import shared_bytes
from kdsl.layouts.attention import SUMMED
from kdsl.settings import checked
from kdsl.specs import Prepass
from kdsl.targets import Target

SPACE: dict[str, tuple[int, ...]] = {
    "block": (32, 64, 128, 256),
    "num_warps": (2, 4, 8, 16),
    "heads": (1, 2, 3, 4, 6, 8, 12),
    "num_stages": (1, 2, 3),
    "rows": (16, 32, 64, 128),
    "row_warps": (2, 4, 8),
    "row_heads": (1, 2, 3, 4, 6, 8, 12),
}
"""Choices by name; `problem` says which go together for a spec and a GPU."""

ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities the templates are written and compiled for."""
MOST_EACH = 64
"""Entries of a tile that a thread holds, at most: they are float32 registers, beside cosines and
sines."""
LEAST_EACH = 8


@dataclass(frozen=True)
class Config:
    """One way to run the pre-pass.

    Of its last kernel: ``block`` stored tokens are a tile, a program takes one of up to ``heads``
    heads, loading ``num_stages - 1`` ahead.  Of its first: ``rows``, ``row_warps`` and
    ``row_heads`` likewise.
    """

    block: int = 128
    num_warps: int = 8
    heads: int = 1
    num_stages: int = 1
    rows: int = 64
    row_warps: int = 4
    row_heads: int = 1

    def to_json(self) -> dict[str, int]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        return Config(**checked(value, SPACE))


def problem(spec: Prepass, config: Config, target: Target) -> str | None:
    """Why a configuration cannot run a spec on a GPU, or None."""
    if target.capability < min(ARCHITECTURES):
        return f"{target.name} is below compute capability 8.0"
    for name, layout in (("q", spec.layout.q), ("k", spec.layout.k)):
        span = groups_of(layout)[0]
        if span is None:
            return f"scales of {name} over all tokens"
        if span & (span - 1) or config.block % span:
            return f"tiles of {config.block} tokens, and scales of {name} over {span}"
    for size in spec.pool or ():
        if config.block % size:
            return f"tiles of {config.block} tokens, and means over {size}"
    if config.block % SUMMED:
        return f"tiles of {config.block} tokens, and sums over {SUMMED}"
    wide = 2 * halves(spec)
    sizes = [(config.block, config.num_warps)]
    sizes += [(config.rows, config.row_warps)] if starts(spec) else []
    for tokens, warps in sizes:
        each = tokens * wide // (32 * warps)
        if not LEAST_EACH <= each <= MOST_EACH:
            return f"{each} entries a thread, {LEAST_EACH} to {MOST_EACH} may be"
        if warps == 16 and each > 32:
            return f"{each} entries a thread, and 128 registers"
    if not starts(spec) and (config.rows, config.row_warps, config.row_heads) != (64, 4, 1):
        return "nothing runs over all tokens: no first kernel to choose for, (64, 4, 1)"
    if spec.norm == "rms_token" and config.row_heads != 1:
        return "a norm over all heads takes them all in one program"
    need = shared_bytes(spec, config, target)
    if need > target.smem_optin:
        return f"{need} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def candidates(spec: Prepass, target: Target) -> list[Config]:
    """Every legal configuration."""
    every = (
        Config(block, warps, heads, stages, rows, row_warps, row_heads)
        for block in SPACE["block"]
        for warps in SPACE["num_warps"]
        for heads in SPACE["heads"]
        for stages in SPACE["num_stages"]
        for rows in SPACE["rows"]
        for row_warps in SPACE["row_warps"]
        for row_heads in SPACE["row_heads"]
    )
    return [c for c in every if problem(spec, c, target) is None]


def preferences(spec: Prepass) -> list[Config]:
    """Configurations from the most to the least wanted: guesses, until rows are measured.

    About 32 entries a thread, in the smallest tile that holds whole groups; heads of one order, for
    which cosines, sines and places are looked up once, four at a time with the next one's numbers
    on their way.  Few tokens a tile where all heads of a token are read twice: the second reading
    should find them in the cache.
    """
    wide, out = 2 * halves(spec), []
    for each, stages in ((32, 2), (32, 1), (16, 2), (16, 1), (64, 1), (8, 1)):
        for block in (64, 128, 256, 32):
            warps = block * wide // (32 * each)
            rows = 16 if spec.norm == "rms_token" else 64
            row_warps = min(max(rows * wide // (32 * 32), 2), 8)
            row_heads = 1 if spec.norm == "rms_token" else 4
            if not starts(spec):
                rows, row_warps, row_heads = 64, 4, 1
            if warps in SPACE["num_warps"]:
                out.append(Config(block, warps, 4, stages, rows, row_warps, row_heads))
    return out


def default(spec: Prepass, target: Target) -> Config:
    """A good configuration without any measurement; ConfigError where none is legal."""
    wanted = preferences(spec)
    for config in wanted:
        if problem(spec, config, target) is None:
            return config
    # The largest tile is the last that a group would not fit.
    reason = problem(spec, max(wanted, key=lambda c: (c.block, c.num_warps)), target)
    raise ConfigError(
        f"no configuration fits {target.name}: {reason}",
        where=repr(spec.layout)[:200],
        hint='scales of up to 256 tokens, a power of two, or backend="reference"',
    )
