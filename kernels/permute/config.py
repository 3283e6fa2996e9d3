"""Configurations of the permute kernels: what may be chosen, and the sizes that follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from kdsl.errors import InputError, UnsupportedError
from kdsl.settings import checked
from kdsl.specs import Permute

SPACE: dict[str, tuple[int, ...]] = {
    "warps": (2, 4, 8, 16),
    "rows": (1, 2, 4, 8, 16),
    "lanes": (1, 2, 4, 8, 16, 32),
    "vector": (16, 8, 4, 2),
    "lag": (1, 2, 4, 8),
}
"""Choices by name; `problem` says which go together for a spec."""

ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities the kernels are written and compiled for."""

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
HELD_REGISTERS = 64
"""Registers of a thread that may hold rows; more would spill."""
OTHER_REGISTERS = 56
"""Registers of a thread for all else, about; the compiler finds a way with fewer."""
SHARED_BYTES = 48 * 1024
"""Shared memory a block has without asking the driver for more."""
TASKS_IN_FLIGHT = 512
"""Thread blocks that a large GPU runs at once, about."""


@dataclass(frozen=True)
class Config:
    """One way to run a kernel.

    ``warps`` of a thread block, ``rows`` that a thread holds at once, ``lanes`` that share a row,
    ``vector`` bytes of a load, and for scales over many tokens ``lag``: how many heads (or groups
    of tokens) the codes are behind the maxima.
    """

    warps: int = 8
    rows: int = 4
    lanes: int = 16
    vector: int = 16
    lag: int = 1

    def to_json(self) -> dict[str, int]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        return Config(**checked(value, SPACE))


@dataclass(frozen=True)
class Sizes:
    """What follows from a spec and a configuration."""

    spec: Permute
    config: Config

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.spec.dtype]

    @property
    def elements(self) -> int:
        """Elements of a vector."""
        return self.config.vector // self.item

    @property
    def vectors(self) -> int:
        """Vectors of a row."""
        return self.spec.head_dim // self.elements

    @property
    def chunks(self) -> int:
        """Vectors of a row that one thread holds."""
        return -(-self.vectors // self.config.lanes)

    @property
    def warp_rows(self) -> int:
        """Rows of a warp."""
        return self.config.rows * 32 // self.config.lanes

    @property
    def tile(self) -> int:
        """Rows of a thread block."""
        return self.config.warps * self.warp_rows

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.config.warps * 32

    @property
    def held(self) -> int:
        """Registers of a thread that hold rows."""
        return self.config.rows * self.chunks * max(self.config.vector // 4, 1)

    @property
    def shared_bytes(self) -> int:
        """Static shared memory of a block, exactly."""
        if self.method == "BLOCKS":
            return 4 * self.config.warps
        if self.method == "GROUPS":
            return -(-(4 + 4 * self.channel_groups) // 8) * 8 + 8 * self.channel_groups
        return 0

    @cached_property
    def method(self) -> str:
        """Which kernel; see `method`."""
        return method(self.spec)

    @cached_property
    def group(self) -> tuple[int, int]:
        """Tokens (0 for all) and channels of a scale."""
        return scale_group(self.spec)

    @property
    def channel_groups(self) -> int:
        """Scales along the channels."""
        return self.spec.head_dim // self.group[1]

    @property
    def unit_tokens(self) -> int:
        """Tokens whose scales are found together."""
        return min(self.group[0] or self.spec.grid.tokens, self.spec.grid.tokens)

    @property
    def groups(self) -> int:
        """Scales along the tokens."""
        return -(-self.spec.grid.tokens // max(self.unit_tokens, 1))

    @property
    def unit_tiles(self) -> int:
        """Thread blocks over the tokens of a scale."""
        return -(-self.unit_tokens // self.tile)


def scale_group(spec: Permute) -> tuple[int, int]:
    """Tokens (0 for all) and channels that share a scale; (0, all) without a layout."""
    group = spec.layout.group if spec.layout else (None, None)
    assert isinstance(group, tuple), "the spec refuses others"
    tokens, channels = group
    return tokens or 0, channels or spec.head_dim


def method(spec: Permute) -> str:
    """The kernel for a spec: ``"PERMUTE"``, ``"EACH_ROW"``, ``"BLOCKS"`` or ``"GROUPS"``.

    The first three read the input once.  ``"GROUPS"`` reads it twice: scales over all tokens, and
    groups that no thread block can hold or that the lanes of a row cannot share.
    """
    if spec.layout is None:
        return "PERMUTE"
    tokens, channels = scale_group(spec)
    whole = channels == spec.head_dim
    kind = "EACH_ROW" if tokens == 1 else "BLOCKS" if tokens and whole else "GROUPS"
    fits = kind == "GROUPS" or any(not problem(spec, c, kind) for c in _all(kind))
    return kind if fits else "GROUPS"


def _all(kind: str) -> list[Config]:
    """Every configuration, legal or not."""
    lags = SPACE["lag"] if kind == "GROUPS" else (1,)
    return [
        Config(warps, rows, lanes, vector, lag)
        for vector in SPACE["vector"]
        for lanes in SPACE["lanes"]
        for rows in SPACE["rows"]
        for warps in SPACE["warps"]
        for lag in lags
    ]


def candidates(spec: Permute) -> list[Config]:
    """Every legal configuration, the widest loads first."""
    kind = method(spec)
    return [c for c in _all(kind) if not problem(spec, c, kind)]


def problem(spec: Permute, config: Config, kind: str = "") -> str:
    """Why a configuration cannot run a spec, or an empty text."""
    kind = kind or method(spec)
    sizes = Sizes(spec, config)
    row = spec.head_dim * sizes.item
    if config.vector < sizes.item or row % config.vector:
        return f"loads of {config.vector} bytes do not fit rows of {row} bytes"
    if config.lanes >= 2 * sizes.vectors:
        return f"{config.lanes} lanes share a row of {sizes.vectors} vectors"
    if config.rows > config.lanes:
        return f"a warp of {sizes.warp_rows} rows, and 32 threads to find their sources"
    if sizes.held > HELD_REGISTERS:
        return f"{sizes.held} registers hold rows, at most {HELD_REGISTERS} may"
    if (sizes.held + OTHER_REGISTERS) * sizes.threads > 65536:
        return f"{sizes.threads} threads that hold {sizes.held} registers each"
    if kind != "GROUPS" and config.lag != 1:
        return "a lag, and only one phase"
    if kind == "EACH_ROW":
        return _row_problem(sizes)
    if kind == "GROUPS" and 12 * sizes.channel_groups + 8 > SHARED_BYTES:
        return f"{sizes.channel_groups} scales along the channels in shared memory"
    if kind == "BLOCKS" and not sizes.tile // 2 < sizes.group[0] <= sizes.tile:
        return f"a thread block holds {sizes.tile} rows, a group has {sizes.group[0]}"
    return ""


def _row_problem(sizes: Sizes) -> str:
    channels = sizes.group[1]
    if channels == sizes.spec.head_dim:
        return ""
    span = channels // sizes.elements
    if channels % sizes.elements or span & (span - 1) or span > sizes.config.lanes:
        return f"groups of {channels} channels over {sizes.config.lanes} lanes of {sizes.elements}"
    return ""


def default(spec: Permute, vector: int = 16) -> Config:
    """A good configuration without any measurement, with loads of at most ``vector`` bytes.

    Widest loads first, then few idle lanes, then 64 bytes in flight a thread (128 for `GROUPS`),
    then 256 threads.
    """
    kind = method(spec)
    legal = [c for c in _all(kind) if c.vector <= vector and not problem(spec, c, kind)]
    if not legal:
        raise UnsupportedError(
            f"no kernel holds rows of head_dim {spec.head_dim}",
            where=f"{spec.dtype}, loads of at most {vector} bytes",
            hint="head_dim up to 4096 in 16 bits, a multiple of 8",
        )

    # Where maxima of many rows are merged, more rows at once make that cheaper.
    wanted = 32 if kind == "GROUPS" else 16

    def worth(config: Config) -> tuple[float, ...]:
        sizes = Sizes(spec, config)
        slots = sizes.chunks * config.lanes
        # Up to a fifth of the lanes idle is better than short runs of bytes at a time.
        idle = max(slots / sizes.vectors - 1.2, 0.0)
        # Rows of thread blocks that reach beyond their group of tokens.
        beyond = 0.0
        if kind == "GROUPS" and sizes.unit_tokens:
            beyond = max(sizes.unit_tiles * sizes.tile / sizes.unit_tokens - 1.25, 0.0)
        in_flight = abs(sizes.held.bit_length() - wanted.bit_length())
        short = max(64 // config.vector - config.lanes, 0)
        warps = abs(config.warps.bit_length() - (8).bit_length())
        return (-config.vector, beyond, idle, short, in_flight, -config.lanes, warps, config.lag)

    best = min(legal, key=worth)
    if kind != "GROUPS":
        return best
    # So far behind that the maxima are ready when the codes ask for them.
    units = TASKS_IN_FLIGHT / max(Sizes(spec, best).unit_tiles, 1)
    return replace(best, lag=next((n for n in SPACE["lag"] if n >= units), SPACE["lag"][-1]))


def fitting(spec: Permute, config: Config, alignment: int) -> Config:
    """The configuration, with narrower loads where addresses and strides allow no wider ones."""
    if alignment % config.vector == 0:
        return config
    narrow = max((n for n in SPACE["vector"] if alignment % n == 0), default=0)
    try:
        return default(spec, narrow)
    except UnsupportedError as error:
        raise InputError(
            f"addresses and strides of x are multiples of {alignment} bytes only",
            where=repr(spec.layout),
            hint="x.contiguous()",
        ) from error
