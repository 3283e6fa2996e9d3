"""The stream template: CUDA C for few rows; its legality, resources, constants and source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdsl.kernels.matmul.weight_only.config import Config
from kdsl.kernels.matmul.weight_only.facts import ACTIVATIONS, View, view
from kdsl.specs import Matmul
from kdsl.targets import Target

FOLDER = Path(__file__).parent
FILES = tuple(FOLDER / n for n in ("stream.cu", "machine.cuh", "decode.cuh"))
ENTRY = "stream"
OPTIONS = ("--std=c++17",)
PIECE = 128
"""Columns of K that a warp takes at once: a thread has 32, sixteen bytes of four bits."""
MOST_ROWS = 32
CLUSTERS = (9, 0)
"""The first compute capability that has them."""
REGISTERS = 65_536
MOST_THREADS = 512
MOST_IDLE = 1.25
"""Pieces that warps take over those that there are."""


def rows_padded(spec: Matmul) -> int:
    """Rows rounded up to what an instruction multiplies."""
    return -(-spec.rows // 8) * 8


def method(held: View, config: Config) -> str:
    """How codes are decoded."""
    return "table" if config.table or held.kind == "table" else held.kind


def pieces_of_a_warp(spec: Matmul, config: Config) -> int:
    """Pieces of K that each warp takes."""
    return -(-spec.inner // (PIECE * config.split * config.num_warps))


def zero_kind(held: View, config: Config) -> int:
    """0: no zero point, 1: the same for all, 2: a byte a group."""
    if held.zeros:
        return 2
    return int(held.offset != 0 and method(held, config) == "uniform")


def shared_bytes(spec: Matmul, config: Config) -> int:
    """Bytes a block asks for, exactly: table, x, its sums, partial sums."""
    held = view(spec)
    chunks, nt = pieces_of_a_warp(spec, config), rows_padded(spec) // 8
    table = (32768 if held.bits == 4 else 8192) if method(held, config) == "table" else 0
    x = 0 if config.hold else config.num_warps * chunks * nt * 2048
    sums = config.num_warps * chunks * nt * 32 if zero_kind(held, config) else 0
    unit = 32 * (config.block_n // 16) * nt * 16
    part = buffers(spec, config) * config.num_warps * unit
    return table + x + sums + part + (2 * unit if config.split > 1 else 0)


def buffers(spec: Matmul, config: Config) -> int:
    """Copies of the warps' sums: with two, one barrier a tile is enough."""
    unit = 32 * (config.block_n // 16) * (rows_padded(spec) // 8) * 16
    return 2 if config.num_warps * unit <= 32 * 1024 else 1


def registers(spec: Matmul, config: Config) -> int:
    """Of a thread, about: codes ahead, a piece decoded, x, sums of a piece and of a tile; the rest
    is what ptxas needed beside them for sm_90."""
    held = view(spec)
    chunks, nt, tiles = pieces_of_a_warp(spec, config), rows_padded(spec) // 8, config.block_n // 16
    each = (4 if held.bits == 4 else 3) + 1 + (zero_kind(held, config) == 2)
    ahead = config.num_stages * tiles * chunks * 2 * each
    x = chunks * nt * 16 if config.hold else 4
    sums = tiles * nt * 4 * (1 if chunks == 1 else 2)
    rest = (8 if config.hold else 32) + (24 if tiles > 1 and chunks > 1 else 0)
    rest += (0, 16, 12)[zero_kind(held, config)]
    rest += 4 if zero_kind(held, config) and not config.hold else 0
    rest += max(chunks - 2, 0) * (12 + 16 * (zero_kind(held, config) > 0))
    return ahead + x + sums + 16 * tiles + 2 * nt + rest


def allowed(config: Config) -> int:
    """Registers that a thread may have."""
    warps = -(-config.num_warps // 4) * 4 * config.blocks
    return min(REGISTERS // (32 * warps) // 8 * 8, 255)


def problem(spec: Matmul, config: Config, target: Target) -> str | None:
    """Why the template cannot run a spec so, or None."""
    held = view(spec)
    if target.capability < (8, 0):
        return f"{target.name} is below compute capability 8.0"
    if spec.rows > MOST_ROWS:
        return f"{spec.rows} rows, the stream template takes {MOST_ROWS}"
    if spec.inner % PIECE or held.group % PIECE:
        return f"K and groups are taken in pieces of {PIECE}, not {spec.inner} and {held.group}"
    if config.block_m != rows_padded(spec) or config.block_k != PIECE or config.group != 1:
        return f"{spec.rows} rows are block_m={rows_padded(spec)}, block_k={PIECE}, group=1"
    if config.block_n not in (16, 32):
        return f"tiles of {config.block_n} columns, 16 or 32 may be"
    if config.split > 1 and target.capability < CLUSTERS:
        return f"{target.name} has no clusters of {config.split} blocks"
    if config.table and held.zeros:
        return "zero points belong to whole numbers, not to a table"
    chunks = pieces_of_a_warp(spec, config)
    pieces = spec.inner // PIECE
    if chunks * config.split * config.num_warps > max(MOST_IDLE * pieces, pieces + 2):
        return f"{config.split} x {config.num_warps} warps for {pieces} pieces of K: too many idle"
    if 32 * config.num_warps > MOST_THREADS:
        return f"{config.num_warps} warps"
    need, have = registers(spec, config), allowed(config)
    if need > have:
        return f"about {need} registers a thread, {have} are to be had"
    asked = shared_bytes(spec, config)
    if asked > target.smem_optin or config.blocks * (asked + 1024) > target.smem_sm:
        have = target.smem_sm
        return f"{config.blocks} x {asked} bytes of shared memory, {target.name} has {have}"
    return None


def preferences(spec: Matmul, target: Target) -> Iterator[Config]:
    """Configurations from the most to the least wanted.

    Tiles shared out evenly come first, then many bytes in flight, then x in registers.
    """
    pieces = spec.inner // PIECE
    found = []
    for split in (1, 2, 4, 8):
        for warps in (16, 14, 12, 10, 8, 7, 6, 5, 4):
            for block_n, blocks, hold in ((16, 1, 1), (16, 1, 0), (32, 1, 0), (16, 2, 0)):
                # With zero points a third tile ahead spilled a few words, whatever the estimate.
                for stages in (2, 1) if view(spec).zeros else (3, 2, 1):
                    config = Config(
                        "stream", rows_padded(spec), block_n, PIECE, warps, stages, 1,
                        split, hold, blocks,
                    )  # fmt: skip
                    if spec.rows <= MOST_ROWS and problem(spec, config, target) is None:
                        found.append(config)
    yield from sorted(found, key=lambda c: _cost(spec, c, target, pieces))
    yield Config("stream", min(rows_padded(spec), 128) if spec.rows <= MOST_ROWS else 32)


def _cost(spec: Matmul, config: Config, target: Target, pieces: int) -> float:
    """Relative time: rounds of tiles, idle pieces, bytes in flight, load of shared memory."""
    held, nt = view(spec), rows_padded(spec) // 8
    tiles = -(-spec.columns // config.block_n)
    groups = max(target.sms * config.blocks // config.split, 1)
    rounds = -(-tiles // groups) * groups / tiles
    chunks = pieces_of_a_warp(spec, config)
    idle = chunks * config.split * config.num_warps / pieces
    lane = config.num_stages * chunks * config.block_n // 8 * (16 if held.bits == 4 else 12)
    flight = config.blocks * config.num_warps * 32 * lane
    starved = math.sqrt(max(1.0, 48 * 1024 / flight))
    # Bytes through shared memory for each byte of weights: x, then partial sums twice.
    moved = (0 if config.hold else 2 * nt * 16 / config.block_n) + 2 * nt * 8 / (8 * chunks)
    return rounds * idle * starved * (1 + max(moved - 3, 0) / 8) * (1 + 0.01 * config.split)


def constants(spec: Matmul, config: Config) -> str:
    """Definitions of the template's constants."""
    held, how = view(spec), method(view(spec), config)
    values: dict[str, object] = {
        "BITS": held.bits,
        "METHOD": how.upper(),
        "K": spec.inner,
        "PIECES": spec.inner // PIECE,
        "CHUNKS": pieces_of_a_warp(spec, config),
        "GROUP": held.group // PIECE,
        "ROWS": spec.rows,
        "NT": rows_padded(spec) // 8,
        "TILES": config.block_n // 16,
        "WARPS": config.num_warps,
        "DEPTH": config.num_stages,
        "SPLIT": config.split,
        "HOLD": config.hold,
        "BLOCKS": config.blocks,
        "BUFFERS": buffers(spec, config),
        "ZERO": zero_kind(held, config),
        "OFFSET": held.offset,
        "BFLOAT": int(spec.dtype == "bfloat16"),
        "BIAS": int(spec.bias),
        "RESIDUAL": int(spec.residual),
        "ACTIVATION": ACTIVATIONS[spec.activation],
        "UNDO": "1.0f" if how == "table" else "16777216.0f",
        "CLUSTER": f"__cluster_dims__({config.split}, 1, 1)" if config.split > 1 else "",
        **_book(held, how),
    }
    return "".join(f"#define {name} {value}".rstrip() + "\n" for name, value in values.items())


def _book(held: View, how: str) -> dict[str, object]:
    if how == "signed":
        book = bytes(int(e) for e in held.entries[: len(held.entries) // 2]).ljust(8, b"\0")
        return {f"BOOK_{i}": f"{int.from_bytes(book[4 * i :][:4], 'little'):#x}u" for i in (0, 1)}
    if how == "table":
        bits = np.array(held.entries, np.float16).view(np.uint16)
        return {"BOOK": ", ".join(f"{int(b):#x}" for b in bits)}
    return {}


def source(spec: Matmul, config: Config) -> str:
    """The complete CUDA C file; it includes nothing."""
    text = FILES[0].read_text().replace('#include "constants"\n', constants(spec, config))
    for path in FILES[1:]:
        text = text.replace(f'#include "{path.name}"\n', path.read_text())
    return text


def grid(spec: Matmul, config: Config, multiprocessors: int) -> tuple[int, int]:
    """Blocks of a launch, and tiles: as many blocks as run at once, in whole clusters."""
    tiles = -(-spec.columns // config.block_n)
    groups = max(multiprocessors * config.blocks // config.split, 1)
    return min(tiles, groups) * config.split, tiles
