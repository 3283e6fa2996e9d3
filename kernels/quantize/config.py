"""Configurations of the quantize template: what may be chosen, what is legal, the default."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdsl.errors import ConfigError
from kdsl.kernels.quantize.facts import ITEM_BYTES, View, stages_of, view
from kdsl.kernels.quantize.shared import shared_bytes, unit_of
from kdsl.settings import checked
from kdsl.specs import Quantize
from kdsl.targets import Target

SPACE: dict[str, tuple[int, ...]] = {
    "block_m": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "num_warps": (4, 8, 16),
    "num_stages": (1, 2, 3, 4),
    "workers": (0, 1, 2, 3, 4, 6, 8),
    "hold": (0, 1),
}
"""Choices by name; `problem` says which go together for a spec and a GPU."""

ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities the template is written and compiled for."""
MOST_EACH = 128
"""Entries of a tile that a thread holds, at most: they are float32 registers."""
MOST_TURNED = 64
"""The same where they are rotated: sums and operands are held at once."""
LEAST_EACH = 4
REGISTERS = 65_536
"""Of a multiprocessor, on every architecture here."""
OTHER_REGISTERS = 40
"""Of a thread beside those of its entries, about."""
ENOUGH = 128
"""Registers of a thread with which everything compiles."""
IN_FLIGHT = 32 * 1024
"""Bytes on their way to a multiprocessor that keep memory busy: 3.4 TB/s for 0.8 us, by 132."""
WIDEST = MOST_EACH * 32 * SPACE["num_warps"][-1]
"""Positions of the largest tile: a row that is kept whole takes no more."""


@dataclass(frozen=True)
class Config:
    """One way to run the kernel.

    ``block_m`` blocks of columns make a tile, ``num_stages`` tiles are loaded or worked on at a
    time, and ``workers`` programs a multiprocessor share the tiles out (0: a program for each).
    With ``hold`` the factors, means and places of columns stay in registers from tile to tile.
    """

    block_m: int = 128
    num_warps: int = 8
    num_stages: int = 2
    workers: int = 2
    hold: int = 0

    @property
    def most_registers(self) -> int:
        """Registers that a thread may have."""
        each = REGISTERS // (32 * self.num_warps * max(self.workers, 1))
        return min(each // 8 * 8, 255)

    def to_json(self) -> dict[str, int]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        return Config(**checked(value, SPACE))


def problem(spec: Quantize, config: Config, target: Target) -> str | None:
    """Why a configuration cannot run a spec on a GPU, or None."""
    if target.capability < min(ARCHITECTURES):
        return f"{target.name} is below compute capability 8.0"
    held = view(spec)
    if held.whole and held.slots * held.n > WIDEST:
        return f"a row of {spec.columns} columns does not stay in a program's registers"
    tile = _tile_problem(spec, held, config, target)
    if tile:
        return tile
    if config.num_stages > 1 and not config.workers:
        return "stages, and one tile a program"
    if config.num_stages > 1 and stages_of(spec)[1].permuted:
        # The compiler would load the next tile's numbers before this one's are stored.
        return "stages, and numbers exchanged through memory"
    if config.hold:
        vectors = sum(s.multiplied + s.centred + s.permuted for s in stages_of(spec))
        if not (vectors and held.whole and config.workers):
            return "nothing that could be held from tile to tile"
        each = config.block_m * held.n // (32 * config.num_warps)
        if (vectors + 1) * each > MOST_EACH:
            return f"{vectors} vectors of {each} entries a thread held"
    least = min(registers(spec, config), ENOUGH)
    if config.most_registers < least:
        # With too few ptxas gives up on Hopper's products.
        return f"{config.most_registers} registers a thread, about {least} are needed"
    need = shared_bytes(spec, config, target)
    if need > target.smem_optin:
        return f"{need} bytes of shared memory, {target.name} has {target.smem_optin}"
    return None


def _tile_problem(spec: Quantize, held: View, config: Config, target: Target) -> str | None:
    if held.whole and config.block_m % held.slots:
        return f"tiles of {config.block_m} blocks, and rows of {held.slots}"
    if held.group > held.n and config.block_m % (held.group // held.n):
        return f"tiles of {config.block_m} blocks, and scales over {held.group // held.n}"
    if any(s.block for s in stages_of(spec)):
        # Warps side by side would all hold the operand, and compute it.
        unit = unit_of(config, target)
        # Numbers that leave registers, or operands of twice the size.
        heavy = spec.dtype == "float32" or stages_of(spec)[1].permuted
        least = 16 * config.num_warps * 128 // max(held.n, 128)
        least = least if unit == "mma" and not heavy else 64
        split = spec.dtype != "float32" and any(s.block and not s.exact for s in stages_of(spec))
        if unit == "mma" and split and config.num_warps == 16:
            return "operands in two parts, and 128 registers a thread"
        if config.block_m < max(least, 64):
            return f"products of {config.block_m} rows, {max(least, 64)} at least are worth it"
        if unit == "tcgen05" and config.block_m > 128:
            # Operands and sums together are more than tensor memory holds.
            return f"products of {config.block_m} rows, 128 at most fit in tensor memory"
        most = MOST_TURNED // 2 if heavy else MOST_TURNED
    else:
        most = MOST_EACH
    each = config.block_m * held.n // (32 * config.num_warps)
    if not LEAST_EACH <= each <= most:
        return f"{each} entries a thread, {LEAST_EACH} to {most} may be"
    return None


def registers(spec: Quantize, config: Config) -> int:
    """Registers of a thread, about: read off the binaries for Hopper."""
    turned = stages_of(spec)
    busy = any(s.multiplied or s.centred or s.permuted for s in turned)
    split = any(s.block and not s.exact for s in turned)
    single = spec.dtype == "float32" and any(s.block for s in turned)
    each = config.block_m * view(spec).n / (32 * config.num_warps)
    return OTHER_REGISTERS + int(each * (1 + 1.5 * busy + 2 * split + 2 * single))


def candidates(spec: Quantize, target: Target) -> list[Config]:
    """Every legal configuration."""
    every = (
        Config(m, warps, stages, workers, hold)
        for m in SPACE["block_m"]
        for warps in SPACE["num_warps"]
        for stages in SPACE["num_stages"]
        for workers in SPACE["workers"]
        for hold in SPACE["hold"]
    )
    return [c for c in every if problem(spec, c, target) is None]


def default(spec: Quantize, target: Target) -> Config:
    """A good configuration without any measurement; ConfigError where none is legal.

    Enough bytes on their way to keep memory busy first, then registers to spare: about 32 entries a
    thread, two tiles in flight, and as many programs as the multiprocessor holds of them.
    """
    legal = candidates(spec, target)
    if not legal:
        config = Config(block_m=max(view(spec).slots, 64), num_warps=16, num_stages=1, workers=1)
        reason = problem(spec, config, target)
        raise ConfigError(
            f"no configuration fits {target.name}: {reason}",
            where=f"rows of {spec.columns} columns, {spec.dtype}",
            hint='scales for groups of columns, or backend="reference"',
        )
    n, item = view(spec).n, ITEM_BYTES[spec.dtype]

    def worth(config: Config) -> tuple[float, ...]:
        each = config.block_m * n // (32 * config.num_warps)
        taken = registers(spec, config)
        need = shared_bytes(spec, config, target)
        fit = min(target.smem_sm // (need + 1024), target.warps_sm // config.num_warps)
        fit = max(min(fit, REGISTERS // (32 * config.num_warps * min(taken, 255))), 1)
        spilled = max(taken - config.most_registers, 0)
        running = min(config.workers or fit, fit)
        # A program that loads nothing ahead leaves memory idle while it computes.
        tiles = running * (config.num_stages - 1) + (running - 1) / 2
        short = max(IN_FLIGHT - tiles * config.block_m * n * item, 0)
        beyond = abs(config.workers - min(fit, 8)) if config.workers else 3
        warps = abs(config.num_warps - 8)
        return (spilled, short, abs(each.bit_length() - 6), beyond, warps, config.num_stages)

    return min(legal, key=worth)
