"""Shared memory of the quantize template, from its configuration alone.

What the compiler allocates, read off the binaries of Triton 3.7 by samples of the space (a few in
each run of the tests, a hundred of each dtype and architecture at night): the matrices, for as long
as the kernel runs; what is loaded ahead (`num_stages`); and one place for what changes hands
between threads, the operand of a product, the codes on their way out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdsl.kernels.quantize.facts import ITEM_BYTES, coding, stages_of, view
from kdsl.specs import Quantize
from kdsl.targets import Target

if TYPE_CHECKING:
    from kdsl.kernels.quantize.config import Config


SUMS = 512
"""Of the largest entries of rows that several warps share."""
BARRIERS = 128
"""Of products that run beside the program, and of where in tensor memory they are."""


def shared_bytes(spec: Quantize, config: Config, target: Target) -> int:
    """Bytes that a block asks for: not below the compiler's figure, at most 10 % or 4 KiB above."""
    held, item = view(spec), ITEM_BYTES[spec.dtype]
    entries = config.block_m * held.n
    turned = [stage for stage in stages_of(spec) if stage.block]
    ahead, loaded = config.num_stages - 1, _loaded(spec, config)
    packed = coding(spec.format, spec.columns).bits == 4
    # Four bits change hands before they are packed; in large tiles after it.
    codes = entries // 2 if packed and entries > 8192 else entries
    few = entries // (32 * config.num_warps) <= 32
    if not turned:
        codes = entries // 2 if packed else 0
        codes //= 2 if target.capability[0] >= 10 and config.num_warps == 16 and not few else 1
        return entries * loaded * ahead + max(
            codes, SUMS, 4 * config.block_m, 4 * entries // held.group
        )
    unit, single = unit_of(config, target), spec.dtype == "float32"
    # A matrix in two parts, or of float32 with its TF32 remainder beside it.
    matrices = sum(held.n * held.n * item * (1 + (single or not s.hadamard)) for s in turned)
    first, second = stages_of(spec)
    itself = first.exact and not (first.multiplied or first.centred or first.permuted)
    apart = first.permuted or config.hold or not ahead or spec.norm is not None
    moved = entries * item if apart else 0
    fine = first.centred or (first.multiplied and not first.signed)
    if second.permuted or (fine and not ahead and not config.hold):
        moved = entries * 4
    # Where x is what is multiplied, these units read it from where it was loaded to.
    waiting = entries * item if ahead and itself and not single and unit != "mma" else 0
    if single and (spec.norm is not None or (config.hold and not ahead and unit == "mma")):
        moved = 2 * entries * item
    beside = 16 * config.num_warps // config.block_m
    if unit == "wgmma" and beside > 1 and moved and not single:
        # Warps that share rows, and an operand that is used twice.
        moved += entries * beside // 4 if spec.norm is not None or not first.hadamard else 0
    if unit == "tcgen05":
        # Operands that are computed go to tensor memory.
        moved = entries * item + BARRIERS if (itself and not single and moved) else 0
        moved = entries * item + BARRIERS if second.permuted else moved
        codes = (codes if few or single or packed else codes // 4) + BARRIERS
        waiting += entries * item if waiting and not first.hadamard else 0
    elif not (few or single) and (target.capability[0] == 10 or (unit == "wgmma" and held.n < 128)):
        codes //= 2
    return matrices + entries * loaded * ahead + waiting + max(moved, codes)


def unit_of(config: Config, target: Target) -> Literal["mma", "wgmma", "tcgen05"]:
    """What multiplies 16-bit tiles of 64 rows and more."""
    if target.capability[0] == 9:
        return "wgmma"
    return "tcgen05" if target.capability[0] == 10 and config.num_warps <= 8 else "mma"


def _loaded(spec: Quantize, config: Config) -> int:
    """Bytes an entry of what is loaded ahead."""
    item = ITEM_BYTES[spec.dtype]
    first, second = stages_of(spec)
    found = 0 if first.permuted and item < 4 else item
    if spec.modulate and not first.permuted:
        found += 2 * item
    if not config.hold:
        for stage in (first, second):
            if stage.multiplied:
                found += 1 if stage.signed else 4
            found += 4 * (stage.centred + stage.permuted)
    return found
